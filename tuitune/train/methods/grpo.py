"""Group relative policy optimization (Shao et al. 2024): the model learns from answers of its own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuitune.backends.loaded import LoadedModel
from tuitune.data.prepare import Prepared
from tuitune.errors import UnusableInput
from tuitune.masking import IGNORED
from tuitune.methods import METHODS
from tuitune.methods.prompts import prompts_a_step, section_of
from tuitune.recipe import Recipe
from tuitune.train.control import Control, Emit
from tuitune.train.methods.grpo_script import grpo_part
from tuitune.train.methods.learner import Collate, Learner
from tuitune.train.methods.script_part import ScriptPart
from tuitune.train.ranks import Ranks

if TYPE_CHECKING:
    from transformers import TrainerCallback


class GRPO(Learner):
    method = METHODS["grpo"]
    fits = False
    divides_steps = True

    def collator(self, loaded: LoadedModel) -> Collate:
        """Prompts as they are: what a pass takes is known only once they are answered."""
        return rows_as_they_are  # type: ignore[return-value]

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
        from transformers import TrainingArguments

        from tuitune.train.grpo_trainer import GRPOTrainer

        return GRPOTrainer(
            loaded,
            recipe,
            control,
            emit,
            ranks,
            train_dataset=prepared.train,
            eval_dataset=prepared.eval,
            data_collator=rows_as_they_are,
            callbacks=list(callbacks),
            args=TrainingArguments(**arguments, remove_unused_columns=False),
        )

    def nothing(self, loaded: LoadedModel) -> Any:
        return []

    def require(self, recipe: Recipe, prepared: Prepared) -> None:
        section = section_of(recipe)
        needed = prompts_a_step(recipe)
        if len(prepared.train) < needed:
            raise UnusableInput(
                "A step needs {needed} prompts ({answers} answers, {generations} to each) and the data has "
                "{prompts}: add prompts, or lower train.gradient_accumulation_steps.",
                needed=needed,
                answers=needed * section.num_generations,
                generations=section.num_generations,
                prompts=len(prepared.train),
            )

    def script_part(self, recipe: Recipe) -> ScriptPart:
        from tuitune.chat_template.turn_end import end_of_turn_id
        from tuitune.model.config import load_tokenizer

        tokenizer = load_tokenizer(recipe.model)
        return grpo_part(section_of(recipe), end_of_turn_id(tokenizer), tokenizer.eos_token_id)

    def isolation_rows(self, rows: Any) -> Any:
        return PromptsAsAnswers(rows)


class PromptsAsAnswers(Sequence[Any]):
    """Tokenised prompts as rows that a pass could take: each with its own tokens once more in place of an answer."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        ids = list(self._rows[place]["prompt_ids"])
        return {"input_ids": ids + ids, "labels": [IGNORED] * len(ids) + ids}


def rows_as_they_are(rows: list[Any]) -> list[Any]:
    return rows
