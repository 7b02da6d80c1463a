"""What usual settings are, and warnings about unusual ones, before anything is trained."""

from collections.abc import Iterator

from tuitune.language import N_, _
from tuitune.recipe import Recipe
from tuitune.units import gib

USUAL = {
    "model.load_in_4bit": N_("true on a card that the 16-bit weights would fill"),
    "data.max_length": N_("2048; less saves memory, but longer rows are cut"),
    "data.train_on": N_("assistant"),
    "data.eval_share": N_("0.05, where there are some hundred rows"),
    "lora.r": N_("8 to 64"),
    "lora.lora_alpha": N_("r, or twice r"),
    "lora.lora_dropout": N_("0"),
    "lora.target_modules": N_("auto; attention for a smaller adapter"),
    "train.max_steps": N_("60 for a try; else -1 and epochs"),
    "train.num_train_epochs": N_("1 to 3"),
    "train.per_device_train_batch_size": N_("2 to 16, as memory allows"),
    "train.gradient_accumulation_steps": N_("so that batch × accumulation is 8 to 64"),
    "train.learning_rate": N_("1e-4 to 2e-4; 1e-5 to 5e-5 for long runs"),
    "train.warmup_steps": N_("5, or 3% of the steps"),
    "train.weight_decay": N_("0.01"),
    "train.gpus": N_("auto for one card; all, or numbers such as 0, 2: the estimate says what they bring"),
    "train.max_grad_norm": N_("1.0, or 0.3 in 4-bit"),
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
    return _("In 16-bit, without what quantising loses: {peak} (model.load_in_4bit: false).", peak=gib(peak_bytes))


def warnings(recipe: Recipe, rows: int | None = None, parameters: int | None = None) -> Iterator[str]:
    """One sentence for each setting that is likely to spoil the run.

    `rows` is how many rows are trained on, `parameters` how many the model has; None where that is not known yet.
    """
    lora, train = recipe.lora, recipe.train
    small = parameters is None or parameters < 100_000_000  # these take larger steps
    usual = recipe.method.usual_learning_rate
    rate = train.learning_rate
    if rate > (1e-2 if small else 5 * usual):
        yield _(
            "learning_rate {rate:g} is high: the loss may rise or become NaN; {usual:g} is usual.",
            rate=rate,
            usual=usual,
        )
    elif rate < usual / 200:
        yield _("learning_rate {rate:g} is so low that little will change; {usual:g} is usual.", rate=rate, usual=usual)
    if lora.lora_alpha / lora.r > 4:
        yield _(
            "lora_alpha is {times:g} times r, which scales the adapter up; 1 or 2 is usual.",
            times=lora.lora_alpha / lora.r,
        )
    if lora.lora_dropout > 0.3:
        yield _("lora_dropout {dropout:g} drops much of what is learnt; 0 to 0.1 is usual.", dropout=lora.lora_dropout)
    if 0 < train.max_steps <= train.warmup_steps:
        yield _(
            "warmup_steps {warmup_steps} is not less than max_steps: the learning rate never gets to its peak.",
            warmup_steps=train.warmup_steps,
        )
    if rows is not None and not recipe.method.learns_from_rewards:  # prompts are answered anew each time
        passes = passes_over_data(recipe, rows)
        if passes > 5:
            yield _(
                "Each row would be seen {times:.0f} times: the model will learn the rows by heart; 1 to 3 is usual.",
                times=passes,
            )
        if rows < 50:
            yield _("{rows} rows are few: style can be learnt from them, knowledge hardly.", rows=rows)
        if recipe.data.eval_share and rows * recipe.data.eval_share < 4:
            yield _(
                "eval_share {share:g} holds out fewer than 4 rows: their loss will say little.",
                share=recipe.data.eval_share,
            )
