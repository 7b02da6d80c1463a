"""Which Python files of rewards the user has seen and confirmed, by the digest of what is in them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tuitune.atomic import write_atomic
from tuitune.errors import UnusableInput
from tuitune.language import _
from tuitune.paths import open_file
from tuitune.reward_sections import PythonFile, Reward
from tuitune.settings import settings_file
from tuitune.text import one_line

_MOST_BYTES = 1_000_000


def source_of(reward: PythonFile) -> str:
    """The text of the file. Raises UnusableInput."""
    path = one_line(reward.path, max_length=200)
    try:
        with open_file(Path(reward.path)) as file:
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise UnusableInput("The rewards' file {path} is longer than a million bytes: give another.", path=path)
        return raw.decode("utf-8")
    except OSError as error:
        reason = error.strerror or _("it cannot be read")
        raise UnusableInput(
            "The rewards' file {path} cannot be read ({reason}): mend method.rewards.", path=path, reason=reason
        ) from None
    except UnicodeDecodeError:
        raise UnusableInput("The rewards' file {path} is not UTF-8 text: save it as such.", path=path) from None


def digest_of(source: str) -> str:
    """SHA-256 of the file's text."""
    return hashlib.sha256(source.encode()).hexdigest()


def is_confirmed(reward: PythonFile) -> bool:
    """Whether the user has confirmed the file as it is now. Raises UnusableInput where it cannot be read."""
    return digest_of(source_of(reward)) in _digests()


def unconfirmed(rewards: Sequence[Reward]) -> list[PythonFile]:
    """Those in files of the user's own that are not confirmed as they are now. Raises UnusableInput."""
    return [reward for reward in rewards if isinstance(reward, PythonFile) and not is_confirmed(reward)]


def confirm(reward: PythonFile) -> None:
    """Keep that the user has seen the file and wants it to be run. Raises UnusableInput, OSError."""
    digests = [*_digests(), digest_of(source_of(reward))]
    file = _file()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(file, json.dumps(list(dict.fromkeys(digests)), indent=1))


def require_confirmed(reward: PythonFile) -> str:
    """The file's text. Raises UnusableInput where it was not confirmed, or is not what the recipe was run with."""
    source = source_of(reward)
    path, digest = one_line(reward.path, max_length=200), digest_of(source)
    if reward.sha256 is not None and reward.sha256 != digest:
        raise UnusableInput(
            "The rewards' file {path} has changed since the run was begun with it: bring back what it was, "
            "or train a new run (leave out sha256 in method.rewards).",
            path=path,
        )
    if digest not in _digests():
        raise UnusableInput(
            "The rewards' file {path} is code that would run on this machine: read it, then confirm it "
            "with `tuitune rewards RECIPE --confirm`.",
            path=path,
        )
    return source


def require_rewards(rewards: Sequence[Reward]) -> None:
    """Refuse rewards that would not be computed when they are needed. Raises UnusableInput."""
    for reward in rewards:
        if isinstance(reward, PythonFile):
            require_confirmed(reward)


def _digests() -> list[str]:
    try:
        digests = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [digest for digest in digests if isinstance(digest, str)] if isinstance(digests, list) else []


def _file() -> Path:
    return settings_file().with_name("confirmed_rewards.json")
