"""What usual settings are, and warnings about unusual ones, before anything is trained."""

from collections.abc import Iterator

from tuitune.recipe import Recipe
from tuitune.units import gib

USUAL = {
    "model.load_in_4bit": "true on a card that the 16-bit weights would fill",
    "data.max_length": "2048; less saves memory, but longer rows are cut",
    "data.train_on": "assistant",
    "data.eval_share": "0.05, where there are some hundred rows",
    "lora.r": "8 to 64",
    "lora.lora_alpha": "r, or twice r",
    "lora.lora_dropout": "0",
    "lora.target_modules": "auto; attention for a smaller adapter",
    "train.max_steps": "60 for a try; else -1 and epochs",
    "train.num_train_epochs": "1 to 3",
    "train.per_device_train_batch_size": "2 to 16, as memory allows",
    "train.gradient_accumulation_steps": "so that batch × accumulation is 8 to 64",
    "train.learning_rate": "1e-4 to 2e-4; 1e-5 to 5e-5 for long runs",
    "train.warmup_steps": "5, or 3% of the steps",
    "train.weight_decay": "0.01",
    "train.gpus": "auto for one card; all, or numbers such as 0, 2: the estimate says what they bring",
    "train.max_grad_norm": "1.0, or 0.3 in 4-bit",
}
"""Field name to the values that are usually right."""


def passes_over_data(recipe: Recipe, rows: int) -> float:
    """How often each of `rows` rows is seen."""
    train = recipe.train
    if train.max_steps < 0:
        return train.num_train_epochs
    return train.max_steps * train.per_device_train_batch_size * train.gradient_accumulation_steps / max(1, rows)


def training_seconds(recipe: Recipe, rows: int, tokens: int, tokens_per_second: float) -> float:
    """How long the steps take over `rows` rows of `tokens` tokens in all; no loading, evaluating or saving."""
    return passes_over_data(recipe, rows) * tokens / tokens_per_second


def offer_of_16bit(peak_bytes: int) -> str:
    """That the base could be left as it is, and the peak it would take then: another model, so the user's choice."""
    return f"In 16-bit, without what quantising loses: {gib(peak_bytes)} (model.load_in_4bit: false)."


def warnings(recipe: Recipe, rows: int | None = None, parameters: int | None = None) -> Iterator[str]:
    """One sentence for each setting that is likely to spoil the run.

    `rows` is how many rows are trained on, `parameters` how many the model has; None where that is not known yet.
    """
    lora, train = recipe.lora, recipe.train
    small = parameters is None or parameters < 100_000_000  # these take larger steps
    usual = recipe.method.usual_learning_rate
    if train.learning_rate > (1e-2 if small else 5 * usual):
        yield f"learning_rate {train.learning_rate:g} is high: the loss may rise or become NaN; {usual:g} is usual."
    elif train.learning_rate < usual / 200:
        yield f"learning_rate {train.learning_rate:g} is so low that little will change; {usual:g} is usual."
    if lora.lora_alpha / lora.r > 4:
        yield f"lora_alpha is {lora.lora_alpha / lora.r:g} times r, which scales the adapter up; 1 or 2 is usual."
    if lora.lora_dropout > 0.3:
        yield f"lora_dropout {lora.lora_dropout:g} drops much of what is learnt; 0 to 0.1 is usual."
    if 0 < train.max_steps <= train.warmup_steps:
        yield f"warmup_steps {train.warmup_steps} is not less than max_steps: the learning rate never gets to its peak."
    if rows is not None and not recipe.method.learns_from_rewards:  # prompts are answered anew each time
        passes = passes_over_data(recipe, rows)
        if passes > 5:
            yield f"Each row would be seen {passes:.0f} times: the model will learn the rows by heart; 1 to 3 is usual."
        if rows < 50:
            yield f"{rows} rows are few: style can be learnt from them, knowledge hardly."
        if recipe.data.eval_share and rows * recipe.data.eval_share < 4:
            yield f"eval_share {recipe.data.eval_share:g} holds out fewer than 4 rows: their loss will say little."
