"""Where a run that ended early goes on, and whether it is still the same run."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tuitune.data.prepare import Prepared
from tuitune.errors import UnusableInput
from tuitune.language import _
from tuitune.model.config import is_folder
from tuitune.paths import key_of
from tuitune.recipe import Recipe
from tuitune.recipe_sections import ModelSection
from tuitune.runs.events import Evaluation, Notice, Plan, Started
from tuitune.runs.folder import Run
from tuitune.text import one_line
from tuitune.train import checkpoints
from tuitune.train.control import Emit

_SAMPLE_BYTES = 2**20
"""Of the beginning, the middle and the end of a file of weights: other weights differ everywhere."""


@dataclass(frozen=True)
class Resumption:
    """The attempt that goes on from `checkpoint`, or from the start where none is whole, as the attempts before did."""

    attempt: int
    checkpoint: Path | None
    plan: Plan | None
    """Of the attempt before, which this one's must equal in data and model; None where it came to no plan."""
    measured: tuple[Evaluation, ...]
    """What the attempts before have measured up to the checkpoint."""


def resumption_of(run: Run, emit: Emit) -> Resumption:
    """How the run goes on; damaged checkpoints are told about and passed over. Only for who holds the run."""
    checkpoints.tidy(run)
    events = list(run.events())
    attempts = max((event.attempt for event in events if isinstance(event, Started)), default=0)
    plan = next((event for event in reversed(events) if isinstance(event, Plan)), None)
    checkpoint = newest_whole_checkpoint(run, emit)
    step = checkpoints.step_of(checkpoint) if checkpoint else 0
    evaluations = [event for event in run.history().evaluations if event.step <= step]
    return Resumption(attempts + 1, checkpoint, plan, tuple(evaluations))


CHANGEABLE = (
    *("max_steps", "num_train_epochs", "learning_rate", "save_steps"),
    *("eval_steps", "early_stopping_patience", "early_stopping_threshold", "gpus", "shard"),
)
"""Fields of `train` that can change in a run that has begun; every other one would make it another run."""


def changed(recipe: Recipe, changes: list[str]) -> Recipe:
    """The recipe of a run that has begun with `field=value` changes. Raises UnusableInput for other fields."""
    changed_recipe = Recipe.from_data(recipe.model_dump(mode="json"), changes=changes)
    if with_tail_of(recipe, changed_recipe) != changed_recipe:
        raise UnusableInput(
            "A run that has begun can change train.{fields} alone: for anything else train a new run, "
            "with --from where it should begin with this run's adapter.",
            fields=", ".join(CHANGEABLE),
        )
    if changed_recipe.train.num_train_epochs != recipe.train.num_train_epochs and changed_recipe.train.max_steps != -1:
        raise UnusableInput(
            "The run ends after train.max_steps: {max_steps} steps, whatever its epochs: change that, or "
            "set max_steps=-1 with num_train_epochs.",
            max_steps=changed_recipe.train.max_steps,
        )
    return changed_recipe


def with_tail_of(recipe: Recipe, other: Recipe) -> Recipe:
    """The recipe with the changeable fields of the other one."""
    tail = {name: getattr(other.train, name) for name in CHANGEABLE}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=tail)})


def require_unfinished(run: Run, recipe: Recipe) -> None:
    """Refuse a run that has nothing left to train by `recipe`, or whose session is alive. Raises UnusableInput."""
    history = run.history()
    status, train = run.status(history), recipe.train
    if status == "live":
        raise UnusableInput("Run {run} is going: `tuitune attach {run}` shows it.", run=one_line(run.name))
    has_steps_left = train.max_steps > history.step or (
        train.max_steps == -1 and train.num_train_epochs > (history.steps[-1].epoch if history.steps else 0) + 1e-6
    )
    if status == "done" and not has_steps_left:
        raise UnusableInput(
            "Run {run} is done after {step} steps: `tuitune resume {run} --set max_steps={more}` trains it further.",
            run=one_line(run.name),
            step=history.step,
            more=2 * history.step,
        )


def newest_whole_checkpoint(run: Run, emit: Emit) -> Path | None:
    """The newest checkpoint that is as it was saved; damaged ones are told about and passed over."""
    for checkpoint in reversed(checkpoints.checkpoints_of(run)):
        problem = checkpoints.damage(checkpoint)
        if problem is None:
            return checkpoint
        emit(
            Notice(
                text=_(
                    "{checkpoint} is damaged and passed over: {problem}.", checkpoint=checkpoint.name, problem=problem
                )
            )
        )
    return None


def require_same(before: Plan, now: Plan, run: Run) -> None:
    """Refuse to go on with other data or another base model than the run began with. Raises UnusableInput."""
    if before.data_digest and before.data_digest != now.data_digest:
        raise UnusableInput(
            "Run {run} cannot go on, because its data has changed since: {rows:,} rows of {tokens:,} "
            "tokens then, {rows_now:,} rows of {tokens_now:,} tokens now; bring back what it was, or train a new run.",
            run=one_line(run.name),
            rows=before.rows,
            tokens=before.tokens,
            rows_now=now.rows,
            tokens_now=now.tokens,
        )
    if before.model_digest and before.model_digest != now.model_digest:
        raise UnusableInput(
            "Run {run} cannot go on, because its base model's weights have changed since; bring back what it was, "
            "or train a new run.",
            run=one_line(run.name),
        )


def data_digest(prepared: Prepared) -> str:
    """A digest of every row that is trained on or measured on, in their order."""
    sources = [*prepared.sources, *filter(None, [prepared.eval_source])]
    rows = [hashlib.blake2b(source.rows.digests.tobytes(), digest_size=16).hexdigest() for source in sources]
    return key_of(rows, prepared.tokens, prepared.trained_tokens, len(prepared.train), len(prepared.eval or ()))


def model_digest(model: ModelSection) -> str:
    """A digest of a local base model's configuration and of samples of its weights; empty for one of the Hub.

    That one is held by its commit.
    """
    if not is_folder(model.name):
        return ""
    digest = hashlib.blake2b(digest_size=16)
    folder = Path(model.name)
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
                stream.seek(start)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()
