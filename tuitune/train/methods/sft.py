"""Supervised fine-tuning, and continued pretraining: TRL's SFTTrainer on rows that are labelled already."""

from collections.abc import Sequence
from typing import Any

from tuitune.backends.loaded import LoadedModel
from tuitune.data.prepare import Prepared
from tuitune.methods import METHODS
from tuitune.recipe import Recipe
from tuitune.train.batching import IGNORED, collator
from tuitune.train.control import Control, Emit
from tuitune.train.graphs import Compute, Figures, PassGraphs
from tuitune.train.isolation import loss_of
from tuitune.train.methods.learner import Collate, Learner
from tuitune.train.methods.script_part import ScriptPart
from tuitune.train.ranks import Ranks
from tuitune.train.steps import queue_steps

ARGUMENTS = {
    "max_length": None,
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "router_aux_loss_coef": 0.0,  # it would count filling too, and is for routers, which stay frozen
}
"""What TRL's SFTConfig is told beside what every trainer is."""


class SFT(Learner):
    method = METHODS["sft"]
    counts_labels = True
    captures = True

    def collator(self, loaded: LoadedModel) -> Collate:
        return collator(loaded)

    def loss_of(self, loaded: LoadedModel, batch: dict[str, Any]) -> Any:
        return loss_of(loaded, batch, batch["labels"].numel())

    def compute(self, loaded: LoadedModel, recipe: Recipe) -> Compute:
        def own_loss(batch: dict[str, Any], amounts: Any) -> tuple[Any, Figures]:
            return loaded.model(**batch, use_cache=False, num_items_in_batch=amounts[0]).loss, {}

        return own_loss

    def amounts(self, batches: Sequence[dict[str, Any]]) -> tuple[float, ...]:
        return (sum(int((batch["labels"] != IGNORED).sum()) for batch in batches),)

    def queue_steps(self, trainer: Any, graphs: PassGraphs) -> None:
        queue_steps(trainer, graphs)

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
        from trl import SFTConfig, SFTTrainer

        return SFTTrainer(
            model=loaded.model,
            processing_class=loaded.tokenizer,
            train_dataset=prepared.train,
            eval_dataset=prepared.eval,
            data_collator=collator(loaded),
            callbacks=list(callbacks),
            args=SFTConfig(**arguments, **ARGUMENTS, remove_unused_columns=True),
        )

    def script_part(self, recipe: Recipe) -> ScriptPart:
        return _SCRIPT


_SCRIPT = ScriptPart(
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
