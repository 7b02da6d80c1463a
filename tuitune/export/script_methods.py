"""The part of an exported script that depends on the method: what it imports, and its trainer."""

from dataclasses import dataclass
from typing import Any

from tuitune.errors import UnusableInput
from tuitune.recipe import Recipe
from tuitune.train.methods.sft import ARGUMENTS


@dataclass(frozen=True)
class ScriptPart:
    """Python source: `imports`, definitions that the `trainer` needs, the class of its arguments, and itself."""

    imports: str
    definitions: str
    config: str
    trainer: str
    arguments: dict[str, Any]
    """What the class of arguments is told beside what every method's is."""


_SFT = ScriptPart(
    imports="from transformers import DataCollatorForSeq2Seq\nfrom trl import SFTConfig, SFTTrainer",
    definitions="",
    config="SFTConfig",
    trainer="""SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=rows,
    data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
    args=arguments,
)""",
    arguments=dict(ARGUMENTS),
)

_REPLIES = '''

def padded(sequences):
    """Sequences (input_ids, labels) as a batch; labels are -100 where a token is not counted."""
    longest = max(len(ids) for ids, _ in sequences)
    fill = lambda values, value: values + [value] * (longest - len(values))  # noqa: E731
    return {
        "input_ids": torch.tensor([fill(ids, tokenizer.pad_token_id) for ids, _ in sequences]),
        "attention_mask": torch.tensor([fill([1] * len(ids), 0) for ids, _ in sequences]),
        "labels": torch.tensor([fill(labels, -100) for _, labels in sequences]),
    }


def log_probabilities(model, batch):
    """Sum over the counted tokens of each sequence, and how many those are."""
    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    logps = -F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return logps.sum(1), (labels != -100).sum(1)


def reference(batch):
    """The model without its adapter, which is what it was before training."""
    with torch.no_grad(), model.disable_adapter():
        return log_probabilities(model, batch)[0]


class ReplyTrainer(Trainer):
    """Rows come tokenised, and the loss is that of whole replies."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = loss_of(model, inputs)
        return (loss, {}) if return_outputs else loss

'''

_PAIRS = '''
def collate(rows):
    """All chosen replies, then all rejected ones."""
    return padded([(r[f"{side}_input_ids"], r[f"{side}_labels"]) for side in ("chosen", "rejected") for r in rows])


def loss_of(model, batch):
    logps, tokens = log_probabilities(model, batch)
    (chosen, rejected), (chosen_tokens, rejected_tokens) = logps.chunk(2), tokens.chunk(2)
'''

_DPO = """    kept = reference(batch).chunk(2)
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

_ORPO = """    imitation = -chosen.sum() / chosen_tokens.sum()
    chosen, rejected = chosen / chosen_tokens, rejected / rejected_tokens
    odds = chosen - rejected - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
    return imitation - BETA * F.logsigmoid(odds).mean()
"""

_SIMPO = """    difference = chosen / chosen_tokens - rejected / rejected_tokens
    return -F.logsigmoid(BETA * difference - GAMMA).mean()
"""

_KTO = '''
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


def _reply_part(constants: dict[str, Any], loss: str) -> ScriptPart:
    values = "\n".join(f"{name} = {value!r}" for name, value in constants.items())
    return ScriptPart(
        imports="from torch.nn import functional as F\nfrom transformers import Trainer, TrainingArguments",
        definitions=f"\n{values}\n{_REPLIES}{loss}\n",
        config="TrainingArguments",
        trainer="ReplyTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)",
        arguments={"remove_unused_columns": False, "label_names": []},
    )


def script_part(recipe: Recipe) -> ScriptPart:
    """The part of the recipe's method. Raises UnusableInput where a script could not repeat it."""
    section: Any = recipe.method
    name = section.name
    if name in ("sft", "pretrain"):
        whole = {"embed_tokens", "lm_head"} & set(recipe.lora.modules_to_save)
        if name == "pretrain" and whole:
            raise UnusableInput(
                "A script cannot repeat a run with a learning rate of its own for embeddings; "
                "`tuitune run` with its recipe can."
            )
        return _SFT
    if name == "dpo":
        weights = section.loss_weights or [1.0] * len(section.loss_type)
        losses = list(zip(section.loss_type, weights, strict=True))
        constants = {"BETA": section.beta, "SMOOTHING": section.label_smoothing, "LOSSES": losses}
        return _reply_part(constants, _PAIRS + _DPO)
    if name == "orpo":
        return _reply_part({"BETA": section.beta}, _PAIRS + _ORPO)
    if name == "simpo":
        return _reply_part({"BETA": section.beta, "GAMMA": section.simpo_gamma}, _PAIRS + _SIMPO)
    if name == "kto":
        constants = {
            "BETA": section.beta,
            "KL": section.loss_type == "kto",
            "GOOD_WEIGHT": section.desirable_weight,
            "BAD_WEIGHT": section.undesirable_weight,
        }
        return _reply_part(constants, _KTO)
    raise UnusableInput(f"A script cannot repeat a run of method {name}; `tuitune run` with its recipe can.")
