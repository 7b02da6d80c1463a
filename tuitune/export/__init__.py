"""Take a finished run along as an adapter, a merged model, a GGUF or for Ollama; each is proven before it is named."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from tuitune.backends.loading import require_adapter
from tuitune.errors import TuituneError, UnusableInput
from tuitune.export import llama_cpp, place
from tuitune.export.card import mark, marked
from tuitune.export.commands import commands_for
from tuitune.export.kinds import KINDS, Cancelled, Command, Exported, Kind, require_known
from tuitune.export.needs import Readiness, bytes_of, earlier_merged, preflight, require_room
from tuitune.run import Run
from tuitune.text import one_line

__all__ = ["KINDS", "Cancelled", "Command", "Exported", "Kind", "Readiness", "export", "preflight", "require_known"]

Progress = Callable[[str, str, int | None, int | None], None]
"""Called with the kind, what is being done, and how much of how much where that can be counted."""


def export(
    run: Run,
    kinds: list[str],
    out: Path | None,
    progress: Progress,
    allow_download: Callable[[str], bool],
    cancelled: Callable[[], bool],
) -> list[Exported]:
    """Export `run` as each of `kinds` (names in KINDS) into the folder `out`, by default the run's own.

    An export is made under a temporary name, opened again and checked, and only then takes the place of an earlier
    one; whatever fails, the exports that were there stay. `allow_download` gets a question and says whether
    llama.cpp's converter may be fetched. `cancelled` is asked often. Raises UnusableInput, Cancelled, TuituneError.
    """
    chosen = require_known(kinds)
    require_adapter(str(run.adapter))
    out = (out or run.exports).expanduser().absolute()
    whole_models = [kind for kind in chosen if kind.bytes_per_weight]
    try:
        with place.held(out), place.staging(out) as staging:
            for kind in chosen:
                _require_ours(out / _file_name(run, kind))
            if whole_models:
                require_room(chosen, bytes_of(run.recipe(), run), run, out)
            making = _Making(run, out, staging, progress, cancelled)
            making.prepare(chosen, allow_download)
            # In the order of KINDS, what others are made from comes before them.
            done = {kind.name: making.make(kind) for kind in sorted(chosen, key=KINDS.index)}
    except OSError as error:
        raise TuituneError(
            f"The export to {one_line(out)} failed ({one_line(error.strerror or error)}): "
            "make room there, or choose another folder with --out."
        ) from error
    except TuituneError as error:
        if "No space left on device" not in str(error):  # in the words of whichever library was writing
            raise
        raise TuituneError(
            f"The disk of {one_line(out)} filled up during the export, so what was unfinished was removed: "
            "make room there, or choose another folder with --out."
        ) from error
    return [done[kind.name] for kind in chosen]


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
        self._ggufs: dict[str, Path] = {}

    def prepare(self, kinds: list[Kind], allow_download: Callable[[str], bool]) -> None:
        """Ask for what the kinds need before the long work, while the user is still there."""
        first = next((kind.name for kind in kinds if kind.gguf), None)
        if first is not None:
            self._llama_cpp = llama_cpp.obtain(
                allow_download,
                lambda done, total: self._progress(first, "Downloading llama.cpp's converter", done, total),
                self._cancelled,
            )

    def make(self, kind: Kind) -> Exported:
        if self._cancelled():
            raise Cancelled
        name = _file_name(self._run, kind)
        final, made = self._out / name, self._staging / name
        if kind.name == "adapter":
            notices = self._make_adapter(made)
        elif kind.name == "merged_16bit":
            notices = self._make_merged(kind, made)
        elif kind.name == "script":
            notices = self._make_script(made)
        elif kind.name == "ollama":
            notices = self._make_ollama(kind, made)
        else:
            notices = self._make_gguf(kind, made)
        place.put(made, final)
        if kind.name == "merged_16bit":
            self._merged = final
        elif kind.gguf and final.is_file():
            self._ggufs[kind.gguf] = final
        self._progress(kind.name, "Done", None, None)
        return Exported(kind.name, final, place.size(final), commands_for(kind.name, final, self._run.name), notices)

    def _make_adapter(self, made: Path) -> tuple[str, ...]:
        from tuitune.export.adapter import copy_adapter

        self._progress("adapter", "Copying the adapter", None, None)
        copy_adapter(self._run, made)
        return ()

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

        self._merge_notices = merge(self._run, made, step, self._cancelled)
        return self._merge_notices

    def _make_gguf(self, kind: Kind, made: Path) -> tuple[str, ...]:
        from tuitune.export.gguf import convert

        assert self._llama_cpp is not None and kind.gguf is not None
        if kind.gguf in self._ggufs:
            with contextlib.suppress(OSError):  # a file system without hard links
                os.link(self._ggufs[kind.gguf], made)
                return self._merge_notices
        self._progress(kind.name, "Converting to GGUF", None, None)
        convert(
            self._merged_model(kind),
            made,
            kind.gguf,
            llama_cpp=self._llama_cpp,
            name=self._run.name,
            log=self._staging / "convert.log",
            progress=lambda done, total: self._progress(kind.name, "Converting to GGUF", done, total),
            cancelled=self._cancelled,
        )
        return self._merge_notices

    def _make_ollama(self, kind: Kind, made: Path) -> tuple[str, ...]:
        from tuitune.export.ollama import GGUF_NAME, write_modelfile

        made.mkdir()
        # The Modelfile first: a template that cannot be written as one is known before the long work.
        template_notices = write_modelfile(made, self._run.adapter)
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


def _file_name(run: Run, kind: Kind) -> str:
    return f"{run.name}-{kind.gguf}.gguf" if kind.name.startswith("gguf:") else kind.name


def _require_ours(final: Path) -> None:
    """Refuse to take the place of a file or folder that is not an earlier export. Raises UnusableInput."""
    if final.suffix == ".gguf":
        ours = not final.exists() or final.is_file()
    else:
        ours = not (final.exists() or final.is_symlink()) or marked(final) is not None
    if not ours:
        raise UnusableInput(
            f"{one_line(final)} exists and is not an export of tuitune's: "
            "move it away, or choose another folder with --out."
        )
