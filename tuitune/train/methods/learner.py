"""What a method is to the training: batches, the loss of one, a trainer, and what its first step must look like."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tuitune.backends.loaded import LoadedModel
from tuitune.data.prepare import Prepared
from tuitune.errors import UnusableInput
from tuitune.methods import Method
from tuitune.recipe import Recipe
from tuitune.train.batching import IGNORED, collator, pad_of
from tuitune.train.control import Control, Emit
from tuitune.train.graphs import Compute, PassGraphs
from tuitune.train.isolation import SequencePass, loss_of
from tuitune.train.methods.script_part import ScriptPart
from tuitune.train.ranks import Ranks

if TYPE_CHECKING:
    from transformers import TrainerCallback

_FILLING_TOKENS = 8
Collate = Callable[[Sequence[Any]], dict[str, Any]]


class Learner:
    """How a method trains; the `Method` of the same name says what it learns from."""

    method: Method
    fits: bool = True
    """Whether ways to run a step are timed on a GPU."""
    divides_steps: bool = False
    """Whether its trainer is given the rows of a whole step in each process, and divides the work itself."""
    counts_labels: bool = False
    """Whether a pass is the model's own loss, a mean over its labels."""
    captures: bool = False
    """Whether its passes can be captured as CUDA graphs: it has `compute`, `amounts` and `queue_steps`."""

    def collator(self, loaded: LoadedModel) -> Collate:
        """What makes batches of tokenised rows for this model."""
        raise NotImplementedError

    def loss_of(self, loaded: LoadedModel, batch: dict[str, Any]) -> Any:
        """A scalar to call backward on, as a training step does, for timing a pass; its value means nothing."""
        raise NotImplementedError

    def make_trainer(
        self,
        loaded: LoadedModel,
        recipe: Recipe,
        prepared: Prepared,
        arguments: dict[str, Any],
        callbacks: Sequence["TrainerCallback"],
        control: Control,
        emit: Emit,
        ranks: Ranks,
    ) -> Any:
        """A transformers.Trainer for the loaded model; `arguments` are those of its TrainingArguments.

        What holds for a whole step it takes from all `ranks`; rows, gradients and loss are shared for it.
        """
        raise NotImplementedError

    def nothing(self, loaded: LoadedModel) -> Any:
        """A batch without rows, for a pass of several processes in which this one has none."""
        filling = {"input_ids": [pad_of(loaded)] * _FILLING_TOKENS, "labels": [IGNORED] * _FILLING_TOKENS}
        return self.collator(loaded)([filling])

    def compute(self, loaded: LoadedModel, recipe: Recipe) -> Compute:
        """What a pass of `PassGraphs` computes."""
        raise NotImplementedError

    def amounts(self, batches: Sequence[dict[str, Any]]) -> tuple[float, ...]:
        """What the loss of a step of these passes is divided by, as `compute` takes it."""
        raise NotImplementedError

    def queue_steps(self, trainer: Any, graphs: PassGraphs) -> None:
        """Have the trainer's passes run by `graphs`, queued without waiting for the GPU."""
        raise NotImplementedError

    def require(self, recipe: Recipe, prepared: Prepared) -> None:
        """Refuse data that the recipe cannot train on, before a model is loaded. Raises UnusableInput."""

    def isolation_rows(self, rows: Any) -> Any:
        """Sequences of the training dataset (`input_ids`, `labels`), by which a batch is proven to keep them apart."""
        return rows

    @property
    def sequence_pass(self) -> SequencePass:
        """How such sequences are put into batches, and the loss of one, as in training."""
        return SequencePass(collator, loss_of)

    def before_training(
        self,
        loaded: LoadedModel,
        recipe: Recipe,
        prepared: Prepared,
        model_digest: str,
        progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
        ranks: Ranks,
    ) -> bool:
        """What has to be known of the model as it is, with its adapter as it begins; False where `cancelled`.

        All `ranks` do a share of it, and ask `cancelled` at the same time.
        """
        return True

    def script_part(self, recipe: Recipe) -> ScriptPart:
        """What an exported script trains by. Raises UnusableInput where a script could not repeat the run."""
        raise UnusableInput(
            "A script cannot repeat a run of method {method}; `tuitune run` with its recipe can.",
            method=recipe.method.name,
        )

    def problem_of_first_step(self, recipe: Recipe, loss: float, metrics: Mapping[str, float]) -> str | None:
        """What is wrong with the first step of a run, in a sentence for the user; None where nothing is."""
        return None
