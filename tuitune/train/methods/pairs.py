"""DPO, ORPO and SimPO: the chosen reply of each pair against the rejected one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tuitune import method_sections
from tuitune.backends.loaded import LoadedModel
from tuitune.data.prepare import Prepared
from tuitune.language import _
from tuitune.methods import METHODS
from tuitune.plan.advice import passes_over_data
from tuitune.recipe import Recipe
from tuitune.train.batching import pad_of
from tuitune.train.control import Control, Emit
from tuitune.train.graphs import Compute, Figures, PassGraphs
from tuitune.train.isolation import SequencePass
from tuitune.train.methods.learner import Collate, Learner
from tuitune.train.methods.script_part import ScriptPart, replies_part
from tuitune.train.ranks import Ranks
from tuitune.train.steps import queue_steps

if TYPE_CHECKING:
    from torch import Tensor

    from tuitune.train.methods.reply_trainer import Outcome, Totals

LN2 = 0.693147
_SIDES = ("chosen", "rejected")
START_NATS = 0.2
"""By how much the log-probabilities of long replies may be off in bf16, a mean over a step."""


class ReplyLearner(Learner):
    """What the methods of pairs and of single replies have in common."""

    has_reference = False

    def sequences(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The row's replies with their prompts, each `input_ids` and `labels`."""
        raise NotImplementedError

    def rows(self, prepared: Any, recipe: Recipe, reference: "Tensor | None") -> "ReplyRows":
        """The rows of a tokenised dataset as batches are made of them."""
        return ReplyRows(self, prepared, reference)

    def collate_rows(self, loaded: LoadedModel, rows: Sequence[Any]) -> dict[str, Any]:
        raise NotImplementedError

    def collator(self, loaded: LoadedModel) -> Collate:
        return lambda rows: self.collate_rows(loaded, [_with_sequences(self, row) for row in rows])

    def nothing(self, loaded: LoadedModel) -> dict[str, Any]:
        import torch

        return {"input_ids": torch.tensor([[pad_of(loaded)]]), "label_counts": torch.zeros(0, dtype=torch.int64)}

    def isolation_rows(self, rows: Any) -> Any:
        return Sequences(self, rows)

    @property
    def sequence_pass(self) -> SequencePass:
        from tuitune.train.methods.replies import CollateReplies, labels_loss

        return SequencePass(lambda loaded: CollateReplies.of(loaded).sequences, labels_loss)

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
        """Compute the untrained model's log-probabilities; of training rows only if each is needed twice or more."""
        if not self.has_reference:
            return True
        from tuitune.train.methods.reference import begins_as_base, reference_logps

        asks_training_rows = not begins_as_base(recipe) or passes_over_data(recipe, len(prepared.train)) > 1
        datasets = {"train": prepared.train if asks_training_rows else None, "eval": prepared.eval}
        rows = {name: self.rows(dataset, recipe, None) for name, dataset in datasets.items() if dataset is not None}
        total = sum(map(len, rows.values()))
        done = 0
        for name, dataset in rows.items():
            sequences = [dataset[place]["sequences"] for place in range(len(dataset))]
            reference = reference_logps(
                loaded,
                recipe,
                sequences,
                model_digest,
                partial(_tell, progress, done, total),
                cancelled,
                ranks,
            )
            if reference is None:
                return False
            loaded.reference[name] = reference
            done += len(dataset)
        return True

    def make_trainer(
        self,
        loaded: LoadedModel,
        recipe: Recipe,
        prepared: Prepared,
        arguments: dict[str, Any],
        callbacks: Sequence[Any],
        control: Control,
        emit: Emit,
        ranks: Ranks,
    ) -> Any:
        from tuitune.train.methods.reply_trainer import ReplyTrainer

        # The reference is asked once the trainer is there; rows look it up as they are drawn.
        reference = loaded.reference
        return ReplyTrainer(
            loaded,
            self.loss(recipe),
            lambda rows: self.collate_rows(loaded, rows),
            ranks,
            train_dataset=self.rows(prepared.train, recipe, reference.get("train")),
            eval_dataset=None if prepared.eval is None else self.rows(prepared.eval, recipe, reference.get("eval")),
            callbacks=list(callbacks),
            arguments=arguments,
        )

    def loss(self, recipe: Recipe) -> Any:
        """The `PassLoss` of the recipe's method."""
        raise NotImplementedError

    def loss_of(self, loaded: LoadedModel, batch: dict[str, Any]) -> Any:
        from tuitune.train.methods.replies import base_logps, reply_logps

        if self.has_reference:
            base_logps(loaded, batch)
        return reply_logps(loaded, batch).sum()


@dataclass
class ReplyRows:
    """A tokenised dataset whose rows hold their `sequences`, and with a reference their `reference` (sequences,)."""

    learner: ReplyLearner
    dataset: Any
    reference: "Tensor | None"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = _with_sequences(self.learner, self.dataset[place])
        return row if self.reference is None else {**row, "reference": self.reference[place]}


@dataclass
class Sequences:
    """Every sequence of every row of a tokenised dataset, one behind the other."""

    learner: ReplyLearner
    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset) * self.learner.method.sequences_a_row

    def __getitem__(self, place: int) -> dict[str, Any]:
        row, side = divmod(place, self.learner.method.sequences_a_row)
        return self.learner.sequences(self.dataset[row])[side]


def _tell(progress: Callable[[int, int], None], before: int, total: int, done: int, _total: int) -> None:
    progress(before + done, total)


def wrong_start(method: str, start: str, expected: str) -> str:
    return _(
        "The first step of this run has {start}, where {method} begins at {expected}: the reference is not the model "
        "that training began with, so nothing would be learned from it; this is a bug: please report it.",
        start=start,
        method=method,
        expected=expected,
    )


def _with_sequences(learner: ReplyLearner, row: Mapping[str, Any]) -> dict[str, Any]:
    return row if "sequences" in row else {**row, "sequences": learner.sequences(row)}  # type: ignore[return-value]


class PairLearner(ReplyLearner):
    """All chosen replies of a pass stand before all rejected ones."""

    captures = True

    def sequences(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"input_ids": row[f"{side}_input_ids"], "labels": row[f"{side}_labels"]} for side in _SIDES]

    def collate_rows(self, loaded: LoadedModel, rows: Sequence[Any]) -> dict[str, Any]:
        import torch

        from tuitune.train.methods.replies import CollateReplies

        batch = CollateReplies.of(loaded)([row["sequences"][side] for side in (0, 1) for row in rows])
        if "reference" in rows[0]:
            batch["reference"] = torch.stack([row["reference"] for row in rows], dim=1).flatten()
        return batch

    def loss(self, recipe: Recipe) -> "PairLoss":
        return PairLoss(self, recipe.method)

    def compute(self, loaded: LoadedModel, recipe: Recipe) -> Compute:
        from tuitune.train.methods.reply_trainer import Totals

        loss = self.loss(recipe)

        def outcome(batch: dict[str, Any], amounts: Any) -> tuple[Any, Figures]:
            told = loss.outcome(loaded, batch, Totals(rows=amounts[0], tokens=amounts[1]))
            return told.loss, told.sums

        return outcome

    def amounts(self, batches: Sequence[dict[str, Any]]) -> tuple[float, ...]:
        totals = totals_of(batches)
        return totals.rows, totals.tokens

    def queue_steps(self, trainer: Any, graphs: PassGraphs) -> None:
        trainer.asks_ahead = False
        queue_steps(trainer, graphs, lambda _pairs: (trainer.totals.rows, trainer.totals.tokens), trainer.add_figures)

    def pair_loss(self, section: Any, chosen: Any, rejected: Any, totals: "Totals") -> tuple[Any, dict[str, Any]]:
        """The share of these `Replies` in a step's loss, and sums of further figures with their counts."""
        raise NotImplementedError

    def reward(self, section: Any, side: Any) -> Any:
        """What the method's users call the reward of replies, (pairs,)."""
        raise NotImplementedError


def totals_of(batches: Sequence[dict[str, Any]]) -> "Totals":
    """Pairs, and labels of the chosen replies, of all these passes."""
    from tuitune.train.methods.reply_trainer import Totals

    counts = [batch["label_counts"] for batch in batches]
    pairs = [len(count) // 2 for count in counts]
    chosen = sum(int(count[:half].sum()) for count, half in zip(counts, pairs, strict=True))
    return Totals(sum(pairs), chosen)


@dataclass
class PairLoss:
    """The loss of a pass of pairs by the recipe's section `method`."""

    learner: PairLearner
    section: Any

    def totals(self, loaded: LoadedModel, batches: Sequence[dict[str, Any]]) -> "Totals":
        return totals_of(batches)

    def ask_reference(self, loaded: LoadedModel, batches: Sequence[dict[str, Any]]) -> None:
        import torch

        from tuitune.train.methods.replies import ask_base

        if self.learner.has_reference:
            ask_base(loaded, batches)
        for batch in batches:
            if "reference" not in batch:
                batch["reference"] = torch.zeros(len(batch["label_counts"]), device=batch["label_counts"].device)

    def outcome(self, loaded: LoadedModel, batch: dict[str, Any], totals: "Totals") -> "Outcome":
        import torch

        from tuitune.train.methods.losses import Replies
        from tuitune.train.methods.replies import reply_logps
        from tuitune.train.methods.reply_trainer import Outcome

        self.ask_reference(loaded, [batch])
        reference = batch["reference"].to(loaded.model.device)
        logps, tokens = reply_logps(loaded, batch), batch["label_counts"].to(loaded.model.device)
        sides = zip(logps.chunk(2), reference.chunk(2), tokens.chunk(2), strict=True)
        chosen, rejected = (Replies(*side) for side in sides)
        loss, more_figures = self.learner.pair_loss(self.section, chosen, rejected, totals)
        with torch.no_grad():
            rewards = [self.learner.reward(self.section, side) for side in (chosen, rejected)]
            figures = {
                "rewards/chosen": rewards[0],
                "rewards/rejected": rewards[1],
                "rewards/margins": rewards[0] - rewards[1],
                "rewards/accuracies": (rewards[0] > rewards[1]).float(),
                "logps/chosen": chosen.logps,
                "logps/rejected": rejected.logps,
            }
            sums = {name: (value.sum(), len(value)) for name, value in figures.items()}
        return Outcome(loss, {**sums, **more_figures})


class DPO(PairLearner):
    method = METHODS["dpo"]
    has_reference = True

    def pair_loss(self, section: method_sections.DPO, chosen: Any, rejected: Any, totals: Any) -> tuple[Any, Any]:
        from tuitune.train.methods.losses import dpo_loss

        weights = section.loss_weights or [1.0] * len(section.loss_type)
        loss = 0.0
        for kind, weight in zip(section.loss_type, weights, strict=True):
            if kind == "sft":
                loss = loss - weight * chosen.logps.sum() / totals.tokens
            else:
                loss = loss + weight * dpo_loss(section, kind, chosen, rejected).sum() / totals.rows
        return loss, {}

    def reward(self, section: method_sections.DPO, side: Any) -> Any:
        return section.beta * side.ratio

    def problem_of_first_step(self, recipe: Recipe, loss: float, metrics: Mapping[str, float]) -> str | None:
        section = recipe.method
        assert isinstance(section, method_sections.DPO)
        margin, tolerance = metrics.get("rewards/margins", 0.0), START_NATS * section.beta
        if (section.loss_type == ["sigmoid"] and abs(loss - LN2) > tolerance) or abs(margin) > 4 * tolerance:
            start = _("loss {loss:.4f} and margin {margin:.4f}", loss=loss, margin=margin)
            return wrong_start("dpo", start, _("{first} and {second}", first="0.6931", second="0"))
        return None

    def script_part(self, recipe: Recipe) -> ScriptPart:
        section = recipe.method
        assert isinstance(section, method_sections.DPO)
        weights = section.loss_weights or [1.0] * len(section.loss_type)
        losses = list(zip(section.loss_type, weights, strict=True))
        constants = {"BETA": section.beta, "SMOOTHING": section.label_smoothing, "LOSSES": losses}
        return replies_part(constants, _PAIRS_SCRIPT + _DPO_SCRIPT)


class ORPO(PairLearner):
    method = METHODS["orpo"]

    def pair_loss(self, section: method_sections.ORPO, chosen: Any, rejected: Any, totals: Any) -> tuple[Any, Any]:
        from torch.nn.functional import logsigmoid

        from tuitune.train.methods.losses import orpo_log_odds, orpo_loss

        imitation = -chosen.logps.sum() / totals.tokens
        loss = imitation + orpo_loss(section, chosen, rejected).sum() / totals.rows
        log_odds = logsigmoid(orpo_log_odds(chosen, rejected)).detach()
        figures = {
            "nll_loss": (-chosen.logps.detach().sum(), chosen.tokens.sum()),
            "log_odds_ratio": (log_odds.sum(), len(log_odds)),
        }
        return loss, figures

    def reward(self, section: method_sections.ORPO, side: Any) -> Any:
        return section.beta * side.mean

    def script_part(self, recipe: Recipe) -> ScriptPart:
        assert isinstance(recipe.method, method_sections.ORPO)
        return replies_part({"BETA": recipe.method.beta}, _PAIRS_SCRIPT + _ORPO_SCRIPT)


class SimPO(PairLearner):
    method = METHODS["simpo"]

    def pair_loss(self, section: method_sections.SimPO, chosen: Any, rejected: Any, totals: Any) -> tuple[Any, Any]:
        from tuitune.train.methods.losses import simpo_loss

        return simpo_loss(section, chosen, rejected).sum() / totals.rows, {}

    def reward(self, section: method_sections.SimPO, side: Any) -> Any:
        return section.beta * side.mean

    def script_part(self, recipe: Recipe) -> ScriptPart:
        assert isinstance(recipe.method, method_sections.SimPO)
        constants = {"BETA": recipe.method.beta, "GAMMA": recipe.method.simpo_gamma}
        return replies_part(constants, _PAIRS_SCRIPT + _SIMPO_SCRIPT)


# What the losses above are in an exported script.
_PAIRS_SCRIPT = '''
def collate(rows):
    """All chosen replies, then all rejected ones."""
    return padded([(r[f"{side}_input_ids"], r[f"{side}_labels"]) for side in ("chosen", "rejected") for r in rows])


def loss_of(model, batch):
    logps, tokens = log_probabilities(model, batch)
    (chosen, rejected), (chosen_tokens, rejected_tokens) = logps.chunk(2), tokens.chunk(2)
'''

_DPO_SCRIPT = """    kept = reference(batch).chunk(2)
    chosen_ratio, rejected_ratio = chosen - kept[0], rejected - kept[1]
    margin = chosen_ratio - rejected_ratio
    losses = {
        "sigmoid": lambda: -F.logsigmoid(BETA * margin),
        "hinge": lambda: torch.relu(1 - BETA * margin),
        "ipo": lambda: (chosen_ratio / chosen_tokens - rejected_ratio / rejected_tokens - 1 / (2 * BETA)) ** 2,
        "robust": lambda: (SMOOTHING * F.logsigmoid(-BETA * margin) - (1 - SMOOTHING) * F.logsigmoid(BETA * margin))
        / (1 - 2 * SMOOTHING),
        "apo_zero": lambda: 1 - torch.sigmoid(BETA * chosen_ratio) + torch.sigmoid(BETA * rejected_ratio),
        "apo_down": lambda: torch.sigmoid(BETA * chosen_ratio) + 1 - torch.sigmoid(BETA * margin),
        "sigmoid_norm": lambda: -F.logsigmoid(BETA * (chosen_ratio / chosen_tokens - rejected_ratio / rejected_tokens)),
        "sft": lambda: -chosen.sum() / chosen_tokens.sum(),
    }
    return sum(weight * losses[kind]().mean() for kind, weight in LOSSES)
"""

_ORPO_SCRIPT = """    imitation = -chosen.sum() / chosen_tokens.sum()
    chosen, rejected = chosen / chosen_tokens, rejected / rejected_tokens
    odds = chosen - rejected - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
    return imitation - BETA * F.logsigmoid(odds).mean()
"""

_SIMPO_SCRIPT = """    difference = chosen / chosen_tokens - rejected / rejected_tokens
    return -F.logsigmoid(BETA * difference - GAMMA).mean()
"""
