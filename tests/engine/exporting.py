"""What the export tests share: an export of which each kind must be made."""

from collections.abc import Callable
from pathlib import Path

from tuitune import export as engine
from tuitune.export import Exported, ExportOptions
from tuitune.runs.folder import Run


def export(
    run: Run,
    kinds: list[str],
    out: Path | None,
    progress: engine.Progress,
    allow_download: Callable[[str], bool],
    cancelled: Callable[[], bool],
    options: ExportOptions = ExportOptions(),  # noqa: B008 - it cannot be changed
) -> list[Exported]:
    """Everything asked for, in the order of KINDS. Raises the error of the first kind that could not be made."""
    exports = []
    for result in engine.export(run, kinds, out, progress, allow_download, cancelled, options):
        if not isinstance(result, Exported):
            raise result.error
        exports.append(result)
    return exports
