"""What may be asked of the run that a session trains, and of the session itself."""

from dataclasses import field
from typing import ClassVar, TypedDict

from tuitune.session.request import Nothing, RecipeData, Request, request


class EndingStatus(TypedDict):
    """The command for the end of a run: `state` is pending until it ends, then waiting, counting or running.

    `seconds` are those left of the countdown.
    """

    run: str
    command: str
    state: str
    seconds: float | None


class SessionStatus(TypedDict):
    """`ready` once the libraries are imported; `job` is the command being worked on, `run` the newest run's folder.

    `ending` is None where no command is to follow a run.
    """

    ready: bool
    job: str | None
    run: str | None
    pid: int
    ending: EndingStatus | None


@request
class Status(Request[SessionStatus]):
    command: ClassVar[str] = "status"


class Stopping(TypedDict):
    """When the run stops (`after this step` or `now`); None where there is none to stop."""

    stopping: str | None


@request
class Stop(Request[Stopping]):
    """End the run of this name after its step, or `now`; without a name whichever is going, or will be the first.

    With `in_time` what does not end in the time that schedulers give is given up, as after a SIGTERM to the session.
    """

    command: ClassVar[str] = "stop"
    run: str | None = None
    now: bool = False
    in_time: bool = False


class Pausing(TypedDict):
    """Whether there is a run to pause."""

    pausing: bool


@request
class Pause(Request[Pausing]):
    """End the run of this name for a while, after its step: a checkpoint is saved, and the card is given back."""

    command: ClassVar[str] = "pause"
    run: str | None = None


class Changed(TypedDict):
    """The steps and the peak learning rate that the run is trained with from its next step on."""

    max_steps: int
    num_train_epochs: float
    learning_rate: float


@request
class Change(Request[Changed]):
    """Go on by other settings: `field=value` texts of `tuitune.train.resume.CHANGEABLE`."""

    command: ClassVar[str] = "change"
    run: str
    changes: tuple[str, ...]


@request
class Save(Request[Nothing]):
    """Save a checkpoint of the run of this name after its step; without a name of whichever is going."""

    command: ClassVar[str] = "save"
    run: str | None = None


@request
class SetPrice(Request[Nothing]):
    """What an hour of this machine costs in the attempt that is going at the run of this name."""

    command: ClassVar[str] = "price"
    run: str
    price: str


@request
class SetThen(Request[Nothing]):
    """Have the command of these words run after the run of this name; without words none, also while it is counted to.

    Raises UnusableInput where the run is not training, or there is no command to cancel.
    """

    command: ClassVar[str] = "then"
    run: str
    words: list[str] = field(default_factory=list)


@request
class Cancel(Request[Nothing]):
    """End the job that this client asked for under the number `job`."""

    command: ClassVar[str] = "cancel"
    job: int


@request
class Follow(Request[Nothing]):
    """Be sent the events of the session's runs, each from its first one."""

    command: ClassVar[str] = "follow"


class Trained(TypedDict):
    """How the run has ended."""

    status: str


@request
class Train(Request[Trained]):
    """Train in a new run folder, which is sent as the part `run` as soon as it exists; goes on without its client.

    `price` is what an hour of this machine costs (empty: as in the user's settings); `then` are the words of the
    command that follows a run that is done or has failed. Of several `hosts` this one is the first, which the others
    find at `rendezvous` (HOST:PORT).
    """

    command: ClassVar[str] = "train"
    recipe: RecipeData
    runs: str | None = None
    name: str | None = None
    price: str = ""
    then: list[str] = field(default_factory=list)
    hosts: int = 1
    rendezvous: str = ""


@request
class Resume(Request[Trained]):
    """Go on with a run that was interrupted, stopped or has failed, from its newest checkpoint that is whole.

    Its folder is sent as the part `run` as soon as it is held; goes on without its client. `changes` are as in Change;
    with them a run that is done can be trained further. All else is as in Train.
    """

    command: ClassVar[str] = "resume"
    run: str
    changes: tuple[str, ...] = ()
    price: str = ""
    then: list[str] = field(default_factory=list)
    hosts: int = 1
    rendezvous: str = ""
