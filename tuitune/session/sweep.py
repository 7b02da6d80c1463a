"""What killed sessions left unfinished in a runs folder: removed, or brought to its end, by the next session."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

from tuitune.errors import TuituneError
from tuitune.export import place
from tuitune.runs.folder import NEW_RUN, Run, all_runs
from tuitune.train import checkpoints

_YOUNG_SECONDS = 60


def sweep(runs_folder: Path) -> None:
    """Tidy every run that no session holds, and its exports; what cannot be read or removed stays as it is."""
    with suppress(OSError):
        for folder in runs_folder.glob(f"{NEW_RUN}*"):
            is_young = time.time() - folder.stat().st_mtime < _YOUNG_SECONDS  # its session may be about to lock it
            with Run(folder).without_session() as is_free:
                if is_free and not is_young:
                    shutil.rmtree(folder, ignore_errors=True)
    for run in all_runs(runs_folder):
        with suppress(OSError), run.without_session() as is_free:
            if is_free:
                checkpoints.tidy(run)
        with suppress(OSError, TuituneError):  # an export may be going on
            if any(run.exports.glob(".tuitune-*")):
                with place.locked(run.exports):  # which tidies
                    pass
