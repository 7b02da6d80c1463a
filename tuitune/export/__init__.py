"""Take a finished run along: the adapter, a merged model, or a GGUF, each proven before it gets its name."""

from collections.abc import Callable
from pathlib import Path

from tuitune.backends.loading import require_adapter
from tuitune.errors import TuituneError, UnusableInput
from tuitune.export import place
from tuitune.export.card import marked
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
    kinds = require_known(kinds)
    require_adapter(str(run.adapter))
    out = (out or run.exports).expanduser().absolute()
    finals = {kind: out / _file_name(run, kind) for kind in kinds}
    try:
        with place.held(out), place.staging(out) as staging:
            for final in finals.values():
                _require_ours(final)
            sizes = {"adapter": place.size(run.adapter)} if kinds == ["adapter"] else bytes_of(run.recipe(), run)
            require_room(kinds, sizes, run, out)
            made = _Making(run, out, staging, progress, cancelled)
            made.prepare(kinds, allow_download)
            # The merged model comes before the files that are made from it.
            done = {
                kind: made.make(kind, finals[kind]) for kind in sorted(kinds, key=lambda kind: kind.startswith("gguf:"))
            }
    except OSError as error:
        raise TuituneError(
            f"The export to {one_line(out)} failed ({one_line(error.strerror or error)}): "
            "make room there, or choose another folder with --out."
        ) from error
    return [done[kind] for kind in kinds]


class _Making:
    """One call of `export`: what its kinds share is made once."""

    def __init__(
        self,
        run: Run,
        out: Path,
        staging: Path,
        progress: Progress,
        cancelled: Callable[[], bool],
    ) -> None:
        self._run = run
        self._out = out
        self._staging = staging
        self._progress = progress
        self._cancelled = cancelled
        self._llama_cpp: Path | None = None
        self._merged: Path | None = None
        self._notices: tuple[str, ...] = ()

    def prepare(self, kinds: list[str], allow_download: Callable[[str], bool]) -> None:
        """Ask for what the kinds need before the long work, while the user is still there."""
        first = next((kind for kind in kinds if kind.startswith("gguf:")), None)
        if first is not None:
            from tuitune.export import llama_cpp

            self._llama_cpp = llama_cpp.obtain(
                allow_download,
                lambda done, total: self._progress(first, "Downloading llama.cpp's converter", done, total),
                self._cancelled,
            )

    def make(self, kind: str, final: Path) -> Exported:
        if self._cancelled():
            raise Cancelled
        made = self._staging / final.name
        notices: tuple[str, ...] = ()
        if kind == "adapter":
            self._make_adapter(made)
        elif kind == "merged_16bit":
            self._make_merged(kind, made)
            notices = self._notices
        else:
            self._make_gguf(kind, made)
            notices = self._notices
        place.put(made, final)
        if kind == "merged_16bit":
            self._merged = final
        self._progress(kind, "Done", None, None)
        return Exported(kind, final, place.size(final), commands_for(kind, final), notices)

    def _make_adapter(self, made: Path) -> None:
        from tuitune.export.adapter import copy_adapter

        self._progress("adapter", "Copying the adapter", None, None)
        copy_adapter(self._run, made)

    def _make_merged(self, kind: str, made: Path) -> None:
        from tuitune.export.merged import merge

        self._notices = merge(self._run, made, lambda text: self._progress(kind, text, None, None), self._cancelled)

    def _make_gguf(self, kind: str, made: Path) -> None:
        from tuitune.export.gguf import convert

        assert self._llama_cpp is not None
        outtype = kind.removeprefix("gguf:")
        merged = self._merged or earlier_merged(self._run, self._out)
        if merged is None:
            merged = self._staging / "merged"
            self._make_merged(kind, merged)
        self._merged = merged
        self._progress(kind, "Converting to GGUF", None, None)
        convert(
            merged,
            made,
            outtype,
            llama_cpp=self._llama_cpp,
            name=self._run.name,
            progress=lambda done, total: self._progress(kind, "Converting to GGUF", done, total),
            cancelled=self._cancelled,
        )


def _file_name(run: Run, kind: str) -> str:
    return f"{run.name}-{kind.removeprefix('gguf:')}.gguf" if kind.startswith("gguf:") else kind


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
