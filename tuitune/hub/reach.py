"""Asks the Hugging Face Hub whether a repository can be read, explains what it did not give, and knows its folders."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tuitune.language import Sentence, _
from tuitune.paths import expanded
from tuitune.text import one_line

What = Literal["model", "dataset"]

_TIMEOUT_SECONDS = 5
_CONNECT_SECONDS = 3
_ASKED_AGAIN_SECONDS = 20
"""After a Hub was not reached, so long it is not asked again: each question would wait as long for nothing."""


def hub_cache() -> Path:
    """Where downloaded models lie, as huggingface_hub finds it, which takes a while to import."""
    return _folder("HF_HUB_CACHE", "hub")


def has_token() -> bool:
    """Whether a Hub access token is set up, as huggingface_hub finds it; it is not read."""
    named = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    return bool(named.strip()) or _folder("HF_TOKEN_PATH", "token").is_file()


def _folder(variable: str, name: str) -> Path:
    """The place that an environment variable names, else `name` in the Hub's home."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    return expanded(os.path.expandvars(os.environ.get(variable) or os.path.join(home, name)))


@dataclass
class _Reach:
    """What the Hub has said to this process so far."""

    open: set[tuple[str, What]] = field(default_factory=set)
    """Repositories that it gives."""
    problem: Exception | None = None
    """Why it was not reached the last time."""
    ask_from: float = 0.0
    """When it is asked again after that, in seconds of the monotonic clock."""


_reach = _Reach()


def refusal(name: str, what: What) -> Exception | None:
    """Why the Hub will not give this repository's files, None where it will; answered at once or within seconds.

    The libraries find the same out by trying each file again and again, for most of a minute where no Hub is reached.
    """
    if (name, what) in _reach.open:
        return None
    if _reach.problem is not None and time.monotonic() < _reach.ask_from:
        return _reach.problem
    problem = _refusal(name, what)
    _reach.problem = None
    if problem is None:
        _reach.open.add((name, what))
    elif not _answered(problem):
        _reach.problem, _reach.ask_from = problem, time.monotonic() + _ASKED_AGAIN_SECONDS
    return problem


def _answered(problem: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(problem, HfHubHTTPError)


def _refusal(name: str, what: What) -> Exception | None:
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

    address = f"{constants.ENDPOINT}/api/{what}s/{name}/auth-check"
    try:
        timeout = httpx.Timeout(_TIMEOUT_SECONDS, connect=_CONNECT_SECONDS)
        hf_raise_for_status(get_session().get(address, headers=build_hf_headers(), timeout=timeout))
    except (RepositoryNotFoundError, OfflineModeIsEnabled, httpx.TransportError) as error:
        return error
    except Exception:  # a mirror that does not know this question: the files themselves will tell
        return None
    return None


def unreached() -> Exception | None:
    """Why the Hub cannot be asked anything at all, None where it answers; within seconds, without trying again."""
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        timeout = httpx.Timeout(_TIMEOUT_SECONDS, connect=_CONNECT_SECONDS)
        get_session().get(f"{constants.ENDPOINT}/api/datasets?limit=1", timeout=timeout)
    except (OfflineModeIsEnabled, httpx.TransportError) as error:
        return error
    return None


def search_explained(error: BaseException) -> Sentence:
    """The sentence for a search that the Hub did not answer."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return _(
                "HF_HUB_OFFLINE is set, so the Hugging Face Hub is not asked: unset it, or give a dataset file instead."
            )
        if isinstance(cause, httpx.TransportError | ConnectionError):
            return _(
                "The Hugging Face Hub ({address}) cannot be reached: check the connection, or give a dataset file "
                "instead.",
                address=_endpoint(),
            )
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            if status in (401, 403):
                return _(
                    "The Hugging Face Hub refuses to search (error {status}): run `hf auth login` again, or give a "
                    "dataset file instead.",
                    status=status,
                )
            return _(
                "The Hugging Face Hub answered with error {status}: try again later, or give a dataset file instead.",
                status=status,
            )
    return _(
        "The Hugging Face Hub gave no list ({reason}): try again later, or give a dataset file instead.",
        reason=one_line(error, max_length=120),
    )


def _endpoint() -> str:
    return one_line(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", max_length=120)


def explained(error: BaseException, name: str, what: What, revision: str | None) -> Sentence:
    """The sentence for an exception of huggingface_hub, or of a library that it went through."""
    import httpx
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    shown = one_line(name, max_length=200)
    causes = list(_causes(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(GatedRepoError):
        return _(
            "{name} is gated: accept its licence on its Hub page, then run `hf auth login` with your access token.",
            name=shown,
        )
    kind = _("model") if what == "model" else _("dataset")
    if caused_by(RepositoryNotFoundError):
        return _(
            "The Hugging Face Hub has no {kind} {name} that you may read: check the spelling, or run `hf auth login` "
            "where it is private.",
            kind=kind,
            name=shown,
        )
    if caused_by(RevisionNotFoundError):
        return _(
            "{name} has no revision {revision}: give a branch, tag or commit of it in {section}.revision.",
            name=shown,
            revision=one_line(revision or "main", max_length=120),
            section="model" if what == "model" else "data",
        )
    instead = _("give a model folder") if what == "model" else _("give a dataset file")
    if caused_by(OfflineModeIsEnabled):
        return _(
            "{name} is not downloaded here and HF_HUB_OFFLINE is set: unset it, or {instead}.",
            name=shown,
            instead=instead,
        )
    if any(isinstance(cause, HfHubHTTPError) and cause.response.status_code == 403 for cause in causes):
        return _(
            "The Hub forbids reading {name}: run `hf auth login` with a token that may read it, or {instead}.",
            name=shown,
            instead=instead,
        )
    if caused_by(httpx.TransportError, LocalEntryNotFoundError, ConnectionError):
        return _(
            "{name} is not downloaded here and the Hugging Face Hub ({address}) cannot be reached: check the "
            "connection, or {instead}.",
            name=shown,
            address=_endpoint(),
            instead=instead,
        )
    lines = str(error).strip().splitlines()
    return _(
        "The {kind} {name} cannot be read from the Hugging Face Hub ({reason}): check its page, or {instead}.",
        kind=kind,
        name=shown,
        reason=one_line(lines[0] if lines else type(error).__name__, max_length=200).rstrip("."),
        instead=instead,
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
