"""The part of an exported script that depends on the method: what it imports, and its trainer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ScriptPart:
    """Python source: `imports`, definitions that the `trainer` needs, the class of its arguments, and itself."""

    imports: str
    definitions: str
    config: str
    trainer: str
    arguments: dict[str, Any]
    """What the class of arguments is told beside what every method's is."""
    rows: str = "the run's own rows, as token ids, with labels of -100 where a token is not trained"
    """What is in rows.parquet, for the script's first lines."""
    saving: str = ""
    """What `save_pretrained` is told beside the folder."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name to text of what lies beside the script."""
    libraries: tuple[str, ...] = ()
    """What must be installed beside what every script needs."""


def replies_part(constants: dict[str, Any], loss: str) -> ScriptPart:
    """Of a method whose loss is over whole replies; `loss` defines collate and loss_of, and names the constants."""
    values = constants_source(constants)
    return ScriptPart(
        imports="from torch.nn import functional as F\nfrom transformers import Trainer, TrainingArguments",
        definitions=f"\n{values}\n{_REPLIES}{loss}\n",
        config="TrainingArguments",
        trainer="ReplyTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)",
        arguments={"remove_unused_columns": False, "label_names": []},
    )


def constants_source(constants: dict[str, Any]) -> str:
    """Assignments, with the values as Python literals."""
    return "\n".join(f"{name} = {value!r}" for name, value in constants.items())


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
