"""What a client may ask of a session, and what it is answered.

A request is a dataclass; its fields are the message's arguments and are checked on arrival. Its reply is declared with
it, as the dictionary that it is on the wire. Recipes travel as `Recipe.model_dump(mode="json")` makes them, so that the
app needs no pydantic to ask; runs travel as their folders.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypedDict, TypeVar, dataclass_transform

from tuitune.errors import UnusableInput
from tuitune.language import _
from tuitune.text import one_line
from tuitune.typed import checked, field_types

VERSION = 6
"""Of these messages: each side tells it first, and does not go on with a side of another version."""

ReplyT = TypeVar("ReplyT")
T = TypeVar("T")
RecipeData = dict[str, Any]


class Nothing(TypedDict):
    """The reply of what is only done."""


@dataclass_transform(eq_default=False, frozen_default=True, field_specifiers=(field,))
def _request(cls: type[T]) -> type[T]:
    """A dataclass that the type checker holds frozen, with no more than is used: the app starts by making them all."""
    return dataclass(slots=True, eq=False, repr=False)(cls)


@_request
class Request(Generic[ReplyT]):
    """One of the classes below; `command` is its name on the wire."""

    command: ClassVar[str]

    def arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in field_types(type(self))}


# --- answered at once ----------------------------------------------------------------------------------------------


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


@_request
class Status(Request[SessionStatus]):
    command: ClassVar[str] = "status"


class Stopping(TypedDict):
    """When the run stops (`after this step` or `now`); None where there is none to stop."""

    stopping: str | None


@_request
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


@_request
class Pause(Request[Pausing]):
    """End the run of this name for a while, after its step: a checkpoint is saved, and the card is given back."""

    command: ClassVar[str] = "pause"
    run: str | None = None


class Changed(TypedDict):
    """The steps and the peak learning rate that the run is trained with from its next step on."""

    max_steps: int
    num_train_epochs: float
    learning_rate: float


@_request
class Change(Request[Changed]):
    """Go on by other settings: `field=value` texts of `tuitune.train.resume.CHANGEABLE`."""

    command: ClassVar[str] = "change"
    run: str
    changes: tuple[str, ...]


@_request
class Save(Request[Nothing]):
    """Save a checkpoint of the run of this name after its step; without a name of whichever is going."""

    command: ClassVar[str] = "save"
    run: str | None = None


@_request
class SetPrice(Request[Nothing]):
    """What an hour of this machine costs in the attempt that is going at the run of this name."""

    command: ClassVar[str] = "price"
    run: str
    price: str


@_request
class SetThen(Request[Nothing]):
    """Have the command of these words run after the run of this name; without words none, also while it is counted to.

    Raises UnusableInput where the run is not training, or there is no command to cancel.
    """

    command: ClassVar[str] = "then"
    run: str
    words: list[str] = field(default_factory=list)


@_request
class Cancel(Request[Nothing]):
    """End the job that this client asked for under the number `job`."""

    command: ClassVar[str] = "cancel"
    job: int


@_request
class Follow(Request[Nothing]):
    """Be sent the events of the session's runs, each from its first one."""

    command: ClassVar[str] = "follow"


# --- the data ------------------------------------------------------------------------------------------------------


class SourceSummary(TypedDict):
    """One dataset of a mix; `weight` and `share` (of what is drawn) are None where it is only measured on."""

    name: str
    rows: int
    rows_estimated: bool
    weight: float | None
    share: float | None


class DataSummary(TypedDict):
    """`bytes` is None for a dataset of the Hub."""

    file: str
    kind: str
    format: str
    reason: str
    columns: dict[str, str]
    rows: int
    rows_estimated: bool
    bytes: int | None
    sources: list[SourceSummary]
    method: str
    """What the rows lend themselves to learn from, and in `method_reason` why, as a sentence."""
    method_reason: str


@_request
class Summary(Request[DataSummary]):
    """What the recipe's dataset is; no file is read for longer than a moment."""

    command: ClassVar[str] = "summary"
    recipe: RecipeData


class MaskedRows(TypedDict):
    """Each row with its `tokens` (`id`, `text`, `trained`) and their numbers, or with its `error`."""

    rows: list[dict[str, Any]]


@_request
class Rows(Request[MaskedRows]):
    """Rows `start` to `stop` of a dataset of the recipe, as they will be trained."""

    command: ClassVar[str] = "rows"
    recipe: RecipeData
    start: int
    stop: int
    source: int = 0


class UnusableRows(TypedDict):
    """Rows that cannot be used, with `source`, `row`, `error`, `code`, of the first `looked_at` of each dataset."""

    looked_at: int
    unusable: list[dict[str, Any]]


@_request
class Unusable(Request[UnusableRows]):
    command: ClassVar[str] = "unusable"
    recipe: RecipeData
    among: int


class ColumnNames(TypedDict):
    """`columns`: each name with a value from the first rows; `mappable`: what they may be mapped to."""

    columns: dict[str, str]
    mappable: list[str]


@_request
class Columns(Request[ColumnNames]):
    command: ClassVar[str] = "columns"
    recipe: RecipeData


class FoundDatasets(TypedDict):
    """`datasets`: each dataset's name, whether it is gated, and its downloads."""

    datasets: list[dict[str, Any]]


@_request
class SearchDatasets(Request[FoundDatasets]):
    """Datasets of the Hugging Face Hub, by words."""

    command: ClassVar[str] = "search_datasets"
    words: str


class Splits(TypedDict):
    """Each configuration of a Hub dataset with its splits."""

    configs: dict[str, list[str]]


@_request
class DatasetSplits(Request[Splits]):
    command: ClassVar[str] = "dataset_splits"
    name: str
    revision: str = ""


@_request
class Audit(Request[dict[str, Any]]):
    """Every problem in the data (`tuitune.audit.scan.Audit`); parts tell how many rows are `done` of about `total`."""

    command: ClassVar[str] = "audit"
    recipe: RecipeData


@_request
class PreviewRewards(Request[dict[str, Any]]):
    """Answers of the model as it is, with their rewards (`tuitune.train.reward_preview`); parts tell the `loading`."""

    command: ClassVar[str] = "preview_rewards"
    recipe: RecipeData
    prompts: int = 4


@_request
class Estimate(Request[dict[str, Any]]):
    """What will be trained, in how many steps and how much memory (`tuitune.plan.estimate.Estimate`).

    `runs` is the folder in which the run would be kept, the default one if None. What its `exports` need is looked at
    here alone: what the Hub says of its repository is asked by HubAccess.
    """

    command: ClassVar[str] = "estimate"
    recipe: RecipeData
    runs: str | None = None


class Access(TypedDict):
    """`refusal`: the sentence that says why the repository cannot be written to; None where it can."""

    refusal: str | None


@_request
class HubAccess(Request[Access]):
    """Whether a repository of the Hub may be written to; asked beside other jobs, which do not wait for the Hub.

    The Hub is asked once for each repository, visibility and token; with `again` once more where it refused.
    """

    command: ClassVar[str] = "hub_access"
    repository: str | None
    public: bool
    again: bool = False


# --- the model -----------------------------------------------------------------------------------------------------


class Trained(TypedDict):
    """How the run has ended."""

    status: str


@_request
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


@_request
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


class Answer(TypedDict):
    """`ended` is False where `max_new_tokens` cut the reply; the rest is as in `tuitune.chat.reply.ChatReply`.

    `seconds` and `first_token_s` begin with the reading of the prompt; `unseen` messages and all but the first
    `passages` did not fit the model's context.
    """

    reply: str
    tokens: int
    seconds: float
    ended: bool
    first_token_s: float
    unseen: int
    passages: int


@_request
class Chat(Request[Answer]):
    """The next message of a conversation with a run's adapter, or its base model.

    `checkpoint` (`best`, `last` or a step) means the adapter of that one. `passages` of documents stand before the
    newest message. `beside` has the models in memory stay, as for the sides of a comparison: one that does not fit is
    refused. With `engine` an exported GGUF answers in llama.cpp: `gguf`, or `gguf:TYPE`.

    Parts are `text` as it comes; before it `loading` with `done` of `total`, and `notice`. `sampling` are fields of
    `tuitune.chat.sampling.Sampling`.
    """

    command: ClassVar[str] = "chat"
    run: str
    messages: list[dict[str, str]]
    adapter: bool = True
    sampling: dict[str, Any] | None = None
    checkpoint: str | None = None
    passages: list[str] = field(default_factory=list)
    beside: bool = False
    engine: str = ""


class Attached(TypedDict):
    """Documents as they are indexed: `left_out` files with their `reason`; `embeddings` names their model, if any.

    `notice` is a sentence for the user where they are searched by their words alone.
    """

    files: int
    passages: int
    left_out: list[dict[str, str]]
    embeddings: str
    notice: str


@_request
class Attach(Request[Attached]):
    """Read and index documents: files and folders. Parts tell the progress: `indexing`, `done` of `total`."""

    command: ClassVar[str] = "attach"
    paths: list[str]


class Retrieved(TypedDict):
    """`passages`: fields of `tuitune.documents.passage.Passage`, the best first."""

    passages: list[dict[str, Any]]


@_request
class Retrieve(Request[Retrieved]):
    """The passages of documents that answer a question best; what has changed since is read again, as in Attach."""

    command: ClassVar[str] = "retrieve"
    paths: list[str]
    question: str
    limit: int = 5


@_request
class Export(Request[Nothing]):
    """Make a run's exports; goes on without its client.

    Every kind is a part when it is there: `exported`, or `failed` with its `error`. Other parts are the progress:
    `kind`, `text`, `done` of `total`.
    """

    command: ClassVar[str] = "export"
    run: str
    kinds: list[str]
    out: str | None = None
    allow_download: bool = False
    checkpoint: str | None = None
    hub_repo: str | None = None
    hub_public: bool = False
    tar: bool = False
    split_bytes: int = 0
    imatrix: bool = False


class Exports(TypedDict):
    """`kinds`: what can be made (`tuitune.export.Readiness`); `exports`: what lies in the run's own folder already."""

    kinds: list[dict[str, Any]]
    exports: list[dict[str, Any]]


@_request
class Preflight(Request[Exports]):
    """With `hub_repo` the Hub is asked whether the repository may be written to."""

    command: ClassVar[str] = "preflight"
    run: str
    checkpoint: str | None = None
    hub_repo: str | None = None


REQUESTS: dict[str, type[Request[Any]]] = {
    request.command: request
    for request in (
        *(Status, Stop, Pause, Change, Save, SetPrice, SetThen, Cancel, Follow),
        *(Summary, Rows, Unusable, Columns, SearchDatasets, DatasetSplits, Audit, PreviewRewards, Estimate, HubAccess),
        *(Train, Resume, Chat, Attach, Retrieve, Export, Preflight),
    )
}


def request_from(command: Any, arguments: Any) -> Request[Any]:
    """The request in a message. Raises UnusableInput for one there is not, and for wrong arguments."""
    cls = REQUESTS.get(command) if isinstance(command, str) else None
    if cls is None:
        raise UnusableInput("The session knows no command {command}.", command=one_line(command, max_length=40))
    types, arguments_given = field_types(cls), arguments or {}
    if not isinstance(arguments_given, dict) or (unknown := arguments_given.keys() - types.keys()):
        problem = (
            _("unknown: {names}", names=one_line(", ".join(unknown), max_length=80))
            if isinstance(arguments_given, dict)
            else _("not named")
        )
        raise UnusableInput(
            "The command {command} was given wrong arguments ({problem}).", command=command, problem=problem
        )
    try:
        return cls(**{name: checked(value, types[name]) for name, value in arguments_given.items()})
    except (TypeError, ValueError, OverflowError) as error:
        raise UnusableInput(
            "The command {command} was given wrong arguments ({problem}).",
            command=command,
            problem=one_line(error, max_length=80),
        ) from None
