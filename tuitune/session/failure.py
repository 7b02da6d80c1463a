"""What ended a run, as the sentence that the user is told."""

from tuitune.errors import TuituneError, disk_is_full, explain
from tuitune.language import _
from tuitune.runs.folder import Run
from tuitune.text import one_line


def failure_of(error: BaseException, run: Run) -> str:
    """Why the training of `run` ended with `error`, and what to do."""
    if isinstance(error, TuituneError):
        return error.sentence
    if type(error).__name__ == "OutOfMemoryError":
        return _(
            "The GPU ran out of memory: halve train.per_device_train_batch_size and double "
            "train.gradient_accumulation_steps, or lower data.max_length."
        )
    if disk_is_full(error):
        return _(
            "The disk of {folder} filled up: make room there, or keep runs on another disk with --runs; checkpoints "
            "saved before are whole.",
            folder=one_line(run.folder),
        )
    return _(
        "Training failed ({reason}); the details are in {file}.",
        reason=one_line(explain(error), max_length=300),
        file=str(run.log_file),
    )
