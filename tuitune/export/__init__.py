"""Take a finished run along as an adapter, a merged model, a GGUF or for Ollama; each is proven before it is named."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from tuitune.backends.loading import require_adapter
from tuitune.errors import TuituneError, disk_is_full, explain
from tuitune.export import place
from tuitune.export.card import fingerprint, marked
from tuitune.export.commands import commands_for
from tuitune.export.kinds import (
    KINDS,
    Cancelled,
    Command,
    Exported,
    ExportOptions,
    Kind,
    NotExported,
    in_order,
    kind_named,
    require_known,
)
from tuitune.export.making import Making, Progress
from tuitune.export.needs import Readiness, preflight
from tuitune.language import N_, _
from tuitune.paths import expanded
from tuitune.runs.folder import Run
from tuitune.text import one_line
from tuitune.train.checkpoints import require_whole_adapter

__all__ = [
    "KINDS",
    "Cancelled",
    "Command",
    "ExportOptions",
    "Exported",
    "Kind",
    "NotExported",
    "Progress",
    "Readiness",
    "export",
    "exports_of",
    "preflight",
    "require_known",
]

log = logging.getLogger(__name__)

_CHANGED = N_("The run's adapter has changed since: export it again for the one it has now.")


def export(
    run: Run,
    kinds: list[str],
    out: Path | None,
    progress: Progress,
    allow_download: Callable[[str], bool],
    cancelled: Callable[[], bool],
    options: ExportOptions = ExportOptions(),  # noqa: B008 - it cannot be changed
) -> Iterator[Exported | NotExported]:
    """Export `run` as each of `kinds` (names that `kind_named` knows) into the folder `out`, by default the run's own.

    Yields each kind as soon as it is proven or has failed; a failure keeps no other kind from being made. An export
    is made under a temporary name, opened again and checked, and only then takes the place of an earlier one;
    whatever fails, the exports that were there stay. `allow_download` gets a question and says whether llama.cpp's
    converter may be fetched. `cancelled` is asked often. Raises UnusableInput, Cancelled, TuituneError where none
    can be made.
    """
    chosen = in_order(require_known(kinds))
    require_adapter(str(run.adapter))
    require_whole_adapter(run)
    out = expanded(out or run.exports).absolute()
    with _explained(out), place.locked(out), place.staging(out) as staging:
        making = Making(run, out, staging, progress, cancelled, options)
        refused = making.prepare(chosen, allow_download)
        yield from refused.values()
        for kind in chosen:
            if kind.name in refused:
                continue
            try:
                with _explained(out):
                    exported = making.make(kind)
            except Cancelled:
                raise
            except TuituneError as error:
                yield NotExported(kind.name, error)
            except Exception as error:  # libraries raise every kind there is; the other exports can still be made
                log.error("the export %s failed", kind.name, exc_info=error)
                reason = one_line(explain(error), max_length=300)
                yield NotExported(
                    kind.name, TuituneError("The export failed ({reason}): try another kind.", reason=reason)
                )
            else:
                yield exported


@contextlib.contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Turn an error of the disk into a sentence for the user."""
    try:
        yield
    except Exception as error:
        if disk_is_full(error):
            raise TuituneError(
                "The disk of {folder} filled up during the export, so what was unfinished was removed: make room "
                "there, or choose another folder.",
                folder=one_line(out),
            ) from error
        if not isinstance(error, OSError):
            raise
        raise TuituneError(
            "The export to {folder} failed ({reason}): make room there, or choose another folder.",
            folder=one_line(out),
            reason=one_line(explain(error), max_length=300),
        ) from error


def exports_of(run: Run) -> list[Exported]:
    """The exports in the run's own folder, each with a notice where the adapter has changed since."""
    try:
        adapter = fingerprint(run)
    except OSError:  # there is none to compare with
        adapter = None
    exports: dict[str, Exported] = {}
    kinds = []
    for path in place.exports_in(run.exports):
        fields = marked(path)
        kind = kind_named(str(fields.get("kind"))) if fields else None
        if fields is None or kind is None:
            continue
        notices = () if adapter in (None, fields.get("adapter_sha256")) else (_(_CHANGED),)
        base, new_tokens = str(fields.get("base", "")), "new_tokens" in fields
        commands = commands_for(kind.name, path, run.name, base=base, new_tokens=new_tokens)
        proof = str(fields.get("proof", ""))
        exports[kind.name] = Exported(kind.name, path, place.size(path), commands, notices, proof)
        kinds.append(kind)
    return [exports[kind.name] for kind in in_order(kinds)]
