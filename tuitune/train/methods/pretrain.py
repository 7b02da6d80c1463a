"""Continued pretraining: as imitation, on packed text, with a learning rate of their own for embeddings and head."""

from collections.abc import Sequence
from typing import Any

from tuitune.backends.loaded import LoadedModel
from tuitune.data.prepare import Prepared
from tuitune.errors import UnusableInput
from tuitune.method_sections import Pretrain as Section
from tuitune.methods import METHODS
from tuitune.recipe import Recipe
from tuitune.train.control import Control, Emit
from tuitune.train.methods.script_part import ScriptPart
from tuitune.train.methods.sft import SFT
from tuitune.train.ranks import Ranks

RATE_SHARE = "rate_share"
"""Key of an optimizer's group: its learning rate as a share of the recipe's. It travels with checkpoints."""
_EMBEDDINGS_SHARE = 0.1


class Pretrain(SFT):
    method = METHODS["pretrain"]

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
        assert isinstance(recipe.method, Section)
        trainer = super().make_trainer(loaded, recipe, prepared, arguments, callbacks, control, emit, ranks)
        rate, embedding_rate = recipe.train.learning_rate, recipe.method.embedding_learning_rate
        share = _EMBEDDINGS_SHARE if embedding_rate is None else embedding_rate / rate
        create = trainer.create_optimizer

        def create_optimizer(*arguments: Any, **options: Any) -> Any:
            optimizer = create(*arguments, **options)
            set_embeddings_apart(optimizer, loaded.model, rate, share, new_rows=embedding_rate is not None)
            return optimizer

        trainer.create_optimizer = create_optimizer
        return trainer

    def script_part(self, recipe: Recipe) -> ScriptPart:
        assert isinstance(recipe.method, Section)
        rate_of_rows = recipe.model.new_tokens and recipe.method.embedding_learning_rate is not None
        if rate_of_rows or {"embed_tokens", "lm_head"} & set(recipe.lora.modules_to_save):
            raise UnusableInput(
                "A script cannot repeat a run with a learning rate of its own for embeddings; "
                "`tuitune run` with its recipe can."
            )
        return super().script_part(recipe)


def set_embeddings_apart(
    optimizer: Any, model: Any, learning_rate: float, share: float, *, new_rows: bool = True
) -> None:
    """Give embeddings and head that are trained whole a group of their own, the last one, with `share` of the rate.

    With `new_rows` those of new tokens are in it, too; else these learn as fast as the adapter, as they hold nothing
    yet that is to be kept. Nothing is changed where none is trained, or they are apart already. `optimizer` has taken
    no step yet.
    """
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    full_ids = {id(p) for module in modules if module is not None for p in module.parameters() if p.requires_grad}
    others = ("lora_",) if new_rows else ("lora_", "trainable_tokens_")
    full_ids -= {id(p) for name, p in model.named_parameters() if any(part in name for part in others)}
    if not full_ids or any(RATE_SHARE in group for group in optimizer.param_groups):
        return
    full_parameters = []
    for group in optimizer.param_groups:
        full_parameters += [p for p in group["params"] if id(p) in full_ids]
        group["params"] = [p for p in group["params"] if id(p) not in full_ids]
    options = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    optimizer.add_param_group(
        {**options, "params": full_parameters, "weight_decay": 0.0, "lr": learning_rate * share, RATE_SHARE: share}
    )
