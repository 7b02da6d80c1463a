"""KTO: single replies that are good or bad, measured against how far the model has drifted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuitune import method_sections
from tuitune.backends.loaded import LoadedModel
from tuitune.language import _
from tuitune.methods import METHODS
from tuitune.recipe import Recipe
from tuitune.train.batching import IGNORED
from tuitune.train.methods.pairs import START_NATS, ReplyLearner, ReplyRows, wrong_start
from tuitune.train.methods.script_part import ScriptPart, replies_part

if TYPE_CHECKING:
    from torch import Tensor

    from tuitune.train.methods.reply_trainer import Outcome, Totals


@dataclass
class ThumbRows(ReplyRows):
    """Each row's prompt also stands before another row's reply: by such replies, which nobody gave to that prompt, the
    drift from the reference is measured. The other row is drawn from the seed once, so that a step's rows have the same
    ones however it is divided into passes.
    """

    seed: int
    max_length: int

    def __post_init__(self) -> None:
        import numpy as np

        order = np.random.default_rng(self.seed).permutation(len(self))
        self._other = np.empty(len(self), dtype=np.int64)
        self._other[order] = np.roll(order, 1)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row, other = self.dataset[place], self.dataset[int(self._other[place])]
        sequences = [*self.learner.sequences(row), mismatched(row, other, self.max_length)]
        item = {**row, "sequences": sequences}
        return item if self.reference is None else {**item, "reference": self.reference[place]}


def mismatched(row: Mapping[str, Any], other: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """The prompt of one row with the reply of another behind it, which is counted; the prompt's beginning is cut."""
    begin, reply_start = _reply_of(row), _reply_of(other)
    reply, labels = list(other["input_ids"][reply_start:]), list(other["labels"][reply_start:])
    prompt = list(row["input_ids"][:begin])[-max(1, max_length - len(reply)) :]
    return {"input_ids": prompt + reply, "labels": [IGNORED] * len(prompt) + labels}


def _reply_of(row: Mapping[str, Any]) -> int:
    """Where the row's first counted token stands; at least 1, as the first token is never counted."""
    return max(1, next(place for place, label in enumerate(row["labels"]) if label != IGNORED))


class KTO(ReplyLearner):
    method = METHODS["kto"]
    has_reference = True

    def sequences(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"input_ids": row["input_ids"], "labels": row["labels"]}]

    def rows(self, prepared: Any, recipe: Recipe, reference: "Tensor | None") -> ThumbRows:
        return ThumbRows(self, prepared, reference, recipe.train.seed, recipe.data.max_length)

    def collate_rows(self, loaded: LoadedModel, rows: Sequence[Any]) -> dict[str, Any]:
        import torch

        from tuitune.train.methods.replies import CollateReplies

        collate = CollateReplies.of(loaded)
        batch = collate([row["sequences"][0] for row in rows])
        batch["desirable"] = torch.tensor([bool(row["desirable"][0]) for row in rows])
        if len(rows[0]["sequences"]) > 1:
            batch["kl"] = collate([row["sequences"][1] for row in rows])
        if "reference" in rows[0]:
            batch["reference"] = torch.stack([row["reference"][0] for row in rows])
            batch["kl"]["reference"] = torch.stack([row["reference"][1] for row in rows])
        return batch

    def loss(self, recipe: Recipe) -> "ThumbLoss":
        assert isinstance(recipe.method, method_sections.KTO)
        return ThumbLoss(recipe.method)

    def problem_of_first_step(self, recipe: Recipe, loss: float, metrics: Mapping[str, float]) -> str | None:
        section = recipe.method
        assert isinstance(section, method_sections.KTO)
        reward = max(abs(metrics.get(f"rewards/{side}", 0.0)) for side in ("chosen", "rejected"))
        tolerance, weighs_alike = START_NATS * section.beta, section.desirable_weight == section.undesirable_weight == 1
        if (weighs_alike and abs(loss - 0.5) > tolerance) or reward > 4 * tolerance:
            start = _("loss {loss:.4f} and rewards of {reward:.4f}", loss=loss, reward=reward)
            return wrong_start("kto", start, _("{first} and {second}", first="0.5", second="0"))
        return None

    def script_part(self, recipe: Recipe) -> ScriptPart:
        section = recipe.method
        assert isinstance(section, method_sections.KTO)
        constants = {
            "BETA": section.beta,
            "KL": section.loss_type == "kto",
            "GOOD_WEIGHT": section.desirable_weight,
            "BAD_WEIGHT": section.undesirable_weight,
        }
        return replies_part(constants, _SCRIPT)


@dataclass
class ThumbLoss:
    section: method_sections.KTO

    def ask_reference(self, loaded: LoadedModel, batches: Sequence[dict[str, Any]]) -> None:
        from tuitune.train.methods.replies import ask_base

        ask_base(loaded, batches)
        if self.section.loss_type == "kto":
            ask_base(loaded, [batch["kl"] for batch in batches])

    def totals(self, loaded: LoadedModel, batches: Sequence[dict[str, Any]]) -> "Totals":
        """With the drift over all of their rows, without gradient."""
        import torch

        from tuitune.train.methods.replies import evaluating
        from tuitune.train.methods.reply_trainer import Totals

        rows = sum(len(batch["label_counts"]) for batch in batches)
        drift = torch.zeros((), device=loaded.model.device)
        if self.section.loss_type == "kto":
            # Without dropout: this runs before the trainer has the random state of the step it goes on from.
            with torch.no_grad(), evaluating(loaded.model):
                for batch in batches:
                    drift = drift + _ratio(loaded, batch["kl"])[0].sum()
        return Totals(rows, rows, drift)

    def outcome(self, loaded: LoadedModel, batch: dict[str, Any], totals: "Totals") -> "Outcome":
        import torch

        from tuitune.train.methods.losses import Replies, kto_loss
        from tuitune.train.methods.reply_trainer import Outcome

        ratio, logps = _ratio(loaded, batch)
        tokens, desirable = (batch[name].to(loaded.model.device) for name in ("label_counts", "desirable"))
        replies = Replies(logps, logps.detach() - ratio.detach(), tokens)
        losses = kto_loss(self.section, replies, desirable, totals.kl)
        with torch.no_grad():
            good_rows, bad_rows = int(batch["desirable"].sum()), int((~batch["desirable"]).sum())
            reward = self.section.beta * ratio
            sums = {
                "kl": (totals.kl * len(tokens), len(tokens)),
                "rewards/chosen": (reward[desirable].sum(), good_rows),
                "rewards/rejected": (reward[~desirable].sum(), bad_rows),
                "logps/chosen": (logps[desirable].sum(), good_rows),
                "logps/rejected": (logps[~desirable].sum(), bad_rows),
            }
        return Outcome(losses.sum() / totals.rows, sums)


def _ratio(loaded: LoadedModel, batch: dict[str, Any]) -> tuple[Any, Any]:
    """By how much the model finds each reply likelier than its reference does, and its log-probability."""
    from tuitune.train.methods.replies import ask_base, reply_logps

    ask_base(loaded, [batch])
    reference = batch["reference"].to(loaded.model.device)
    logps = reply_logps(loaded, batch)
    return logps - reference, logps


# What the loss is in an exported script.
_SCRIPT = '''
def collate(rows):
    """Each reply, and for the drift each prompt with the reply of the row before it."""
    begin = [next(i for i, label in enumerate(r["labels"]) if label != -100) for r in rows]
    replies = [(r["input_ids"], r["labels"]) for r in rows]
    mixed = [
        (r["input_ids"][:at] + other["input_ids"][begin[i - 1] :], [-100] * at + other["labels"][begin[i - 1] :])
        for i, (r, at, other) in enumerate(zip(rows, begin, rows[-1:] + rows[:-1]))
    ]
    good = torch.tensor([bool(r["desirable"][0]) for r in rows])
    return {**padded(replies), "good": good, "mixed": padded(mixed)}


def loss_of(model, batch):
    ratio = log_probabilities(model, batch)[0] - reference(batch)
    drift = torch.zeros((), device=ratio.device)
    if KL:  # by the pass here; tuitune measures it over the whole step
        with torch.no_grad():
            drift = (log_probabilities(model, batch["mixed"])[0] - reference(batch["mixed"])).mean().clamp(min=0)
    sign = torch.where(batch["good"], 1.0, -1.0)
    weight = torch.where(batch["good"], GOOD_WEIGHT, BAD_WEIGHT)
    return (weight * (1 - torch.sigmoid(BETA * sign * (ratio - drift)))).mean()
'''
