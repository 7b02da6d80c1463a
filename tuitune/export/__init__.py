"""Take a finished run along as an adapter, a merged model, a GGUF or for Ollama; each is proven before it is named."""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from tuitune.atomic import publish
from tuitune.backends.loading import explained, require_adapter
from tuitune.errors import TuituneError, UnusableInput, disk_is_full, explain
from tuitune.export import llama_cpp, place
from tuitune.export.card import fingerprint, is_ours, mark, marked
from tuitune.export.commands import commands_for
from tuitune.export.kinds import KINDS, Cancelled, Command, Exported, Kind, NotExported, require_known
from tuitune.export.needs import Readiness, bytes_of, earlier_merged, preflight, require_room
from tuitune.paths import expanded
from tuitune.runs.folder import Run
from tuitune.text import one_line
from tuitune.train.checkpoints import require_whole_adapter

__all__ = [
    "KINDS",
    "Cancelled",
    "Command",
    "Exported",
    "Kind",
    "NotExported",
    "Readiness",
    "export",
    "exports_of",
    "preflight",
    "require_known",
]

log = logging.getLogger(__name__)

_CHANGED = "The run's adapter has changed since: export it again for the one it has now."

Progress = Callable[[str, str, int | None, int | None], None]
"""Called with the kind, what is being done, and how much of how much where that can be counted."""


def export(
    run: Run,
    kinds: list[str],
    out: Path | None,
    progress: Progress,
    allow_download: Callable[[str], bool],
    cancelled: Callable[[], bool],
) -> Iterator[Exported | NotExported]:
    """Export `run` as each of `kinds` (names in KINDS) into the folder `out`, by default the run's own.

    Yields each kind as soon as it is proven or has failed; a failure keeps no other kind from being made. An export
    is made under a temporary name, opened again and checked, and only then takes the place of an earlier one;
    whatever fails, the exports that were there stay. `allow_download` gets a question and says whether llama.cpp's
    converter may be fetched. `cancelled` is asked often. Raises UnusableInput, Cancelled, TuituneError where none
    can be made.
    """
    # In the order of KINDS, what others are made from comes before them.
    chosen = sorted(require_known(kinds), key=KINDS.index)
    require_adapter(str(run.adapter))
    require_whole_adapter(run)
    out = expanded(out or run.exports).absolute()
    with _explained(out), place.held(out), place.staging(out) as staging:
        making = _Making(run, out, staging, progress, cancelled)
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
                sentence = f"The export failed ({one_line(explain(error), max_length=300)}): try another kind."
                yield NotExported(kind.name, TuituneError(sentence))
            else:
                yield exported


@contextlib.contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Say in a sentence what the disk did not take."""
    try:
        yield
    except Exception as error:
        if disk_is_full(error):
            raise TuituneError(
                f"The disk of {one_line(out)} filled up during the export, so what was unfinished was removed: "
                "make room there, or choose another folder."
            ) from error
        if not isinstance(error, OSError):
            raise
        raise TuituneError(
            f"The export to {one_line(out)} failed ({one_line(explain(error), max_length=300)}): "
            "make room there, or choose another folder."
        ) from error


class _Making:
    """One call of `export`: what its kinds share is made once."""

    def __init__(self, run: Run, out: Path, staging: Path, progress: Progress, cancelled: Callable[[], bool]) -> None:
        self._run = run
        self._out = out
        self._staging = staging
        self._progress = progress
        self._cancelled = cancelled
        self._llama_cpp: Path | None = None
        self._merged: Path | None = None
        self._merge_notices: tuple[str, ...] = ()
        self._merge_failure: TuituneError | OSError | None = None
        self._ggufs: dict[str, Path] = {}

    def prepare(self, kinds: list[Kind], allow_download: Callable[[str], bool]) -> dict[str, NotExported]:
        """Ask for what the kinds need before the long work, while the user is still there; what cannot be made."""
        refused: dict[str, NotExported] = {}

        @contextlib.contextmanager
        def needed_by(those: list[Kind]) -> Iterator[None]:
            try:
                yield
            except Cancelled:
                raise
            except TuituneError as error:
                refused.update((kind.name, NotExported(kind.name, error)) for kind in those)

        for kind in kinds:
            with needed_by([kind]):
                _require_ours(self._out / _file_name(self._run, kind))
        whole_models = [kind for kind in kinds if kind.bytes_per_weight and kind.name not in refused]
        if whole_models:
            with needed_by(whole_models):
                require_room(whole_models, bytes_of(self._run.resolved(), self._run), self._run, self._out)
        ggufs = [kind for kind in kinds if kind.gguf and kind.name not in refused]
        if ggufs:
            with needed_by(ggufs):
                self._llama_cpp = llama_cpp.obtain(
                    allow_download,
                    lambda done, total: self._progress(ggufs[0].name, "Downloading llama.cpp's converter", done, total),
                    self._cancelled,
                )
        return refused

    def make(self, kind: Kind) -> Exported:
        if self._cancelled():
            raise Cancelled
        name = _file_name(self._run, kind)
        final, made = self._out / name, self._staging / name
        try:
            notices = self._make(kind, made)
            publish(made, final)
            if final.suffix == ".gguf":
                mark(final, self._run, kind.name)
        except Exception:
            self._make_room()
            raise
        if kind.name == "merged_16bit":
            self._merged = final
        elif kind.gguf and final.is_file():
            self._ggufs[kind.gguf] = final
        return Exported(kind.name, final, place.size(final), commands_for(kind.name, final, self._run.name), notices)

    def _make(self, kind: Kind, made: Path) -> tuple[str, ...]:
        if kind.name == "adapter":
            return self._make_adapter(made)
        if kind.name == "merged_16bit":
            return self._make_merged(kind, made)
        if kind.name == "script":
            return self._make_script(made)
        if kind.name == "ollama":
            return self._make_ollama(kind, made)
        return (*self._make_gguf(kind, made), *self._exported_tokenizer[1])

    @cached_property
    def _exported_tokenizer(self) -> tuple[Any, tuple[str, ...]]:
        """The run's tokenizer with replies beginning as in its training, and notices for the user."""
        from transformers import AutoTokenizer

        from tuitune.chat_template.reply_start import begin_as_trained

        with explained(self._run.resolved(), "opening the tokenizer of the run of"):
            tokenizer = AutoTokenizer.from_pretrained(self._run.adapter, trust_remote_code=False)
        if not tokenizer.chat_template or self._run.thinks():
            return tokenizer, ()
        return tokenizer, begin_as_trained(tokenizer)

    def _make_room(self) -> None:
        """Remove what a kind that failed left half made, for those that are still to come."""
        for left in self._staging.iterdir():
            if left.is_file():
                left.unlink()
            elif left != self._merged:
                shutil.rmtree(left, ignore_errors=True)

    def _make_adapter(self, made: Path) -> tuple[str, ...]:
        from tuitune.export.adapter import copy_adapter

        self._progress("adapter", "Copying the adapter", None, None)
        copy_adapter(self._run, self._exported_tokenizer[0], made)
        return self._exported_tokenizer[1]

    def _make_script(self, made: Path) -> tuple[str, ...]:
        from tuitune.export.script import write_script

        self._progress("script", "Writing the script and its rows", None, None)
        write_script(self._run, made)
        mark(made, self._run, "script")
        return ()

    def _make_merged(self, kind: Kind, made: Path) -> tuple[str, ...]:
        from tuitune.export.merged import merge

        def step(text: str) -> None:
            self._progress(kind.name, text, None, None)

        if self._merge_failure is not None:  # it takes minutes, and would fail again
            raise self._merge_failure
        try:
            self._merge_notices = merge(self._run, self._exported_tokenizer[0], made, step, self._cancelled)
        except (TuituneError, OSError) as error:
            self._merge_failure = error
            raise
        return (*self._merge_notices, *self._exported_tokenizer[1])

    def _make_gguf(self, kind: Kind, made: Path) -> tuple[str, ...]:
        from tuitune.export.gguf import convert, left_out

        assert self._llama_cpp is not None and kind.gguf is not None
        merged = self._merged_model(kind)
        notices = (*self._merge_notices, *left_out(merged))
        if kind.gguf in self._ggufs:
            with contextlib.suppress(OSError):  # a file system without hard links
                os.link(self._ggufs[kind.gguf], made)
                return notices
        self._progress(kind.name, "Converting to GGUF", None, None)
        convert(
            merged,
            made,
            kind.gguf,
            llama_cpp=self._llama_cpp,
            name=self._run.name,
            log=self._staging / "convert.log",
            progress=lambda done, total: self._progress(kind.name, "Converting to GGUF", done, total),
            cancelled=self._cancelled,
        )
        return notices

    def _make_ollama(self, kind: Kind, made: Path) -> tuple[str, ...]:
        from tuitune.export.ollama import GGUF_NAME, write_modelfile

        made.mkdir()
        # The Modelfile first: a template that cannot be written as one is known before the long work.
        template_notices = write_modelfile(made, self._run)
        mark(made, self._run, kind.name)
        return (*self._make_gguf(kind, made / GGUF_NAME), *template_notices)

    def _merged_model(self, kind: Kind) -> Path:
        """The merged model of this very adapter: exported here, now or before, or made for this call alone."""
        if self._merged is None:
            self._merged = earlier_merged(self._run, self._out)
        if self._merged is None:
            made = self._staging / "merged"
            self._make_merged(kind, made)
            self._merged = made
        return self._merged


def exports_of(run: Run) -> list[Exported]:
    """The exports in the run's own folder, each with a notice where the adapter has changed since."""
    try:
        adapter = fingerprint(run)
    except OSError:  # there is none to compare with
        adapter = None
    found = []
    for kind in KINDS:
        path = run.exports / _file_name(run, kind)
        about = marked(path)
        if about is None or not path.exists():
            continue
        notices = () if adapter in (None, about.get("adapter_sha256")) else (_CHANGED,)
        found.append(Exported(kind.name, path, place.size(path), commands_for(kind.name, path, run.name), notices))
    return found


def _file_name(run: Run, kind: Kind) -> str:
    return f"{run.name}-{kind.gguf}.gguf" if kind.name.startswith("gguf:") else kind.name


def _require_ours(final: Path) -> None:
    """Refuse to take the place of a file or folder that is not an earlier export. Raises UnusableInput."""
    if os.path.lexists(final) and not is_ours(final):
        raise UnusableInput(
            f"{one_line(final)} exists and is not an export of tuitune's: move it away, or choose another folder."
        )
