"""What a recipe settles of a trainer's arguments, the same in a run and in the script that repeats it."""

from typing import Any

from tuitune.recipe import Recipe


def settled_arguments(recipe: Recipe) -> dict[str, Any]:
    """The arguments that every method's trainer takes and that depend on the recipe alone, not on the machine."""
    train = recipe.train
    return {
        "max_steps": train.max_steps,
        "num_train_epochs": train.num_train_epochs,
        "per_device_train_batch_size": train.per_device_train_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.lr_scheduler_type,
        "warmup_steps": train.warmup_steps,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "seed": train.seed,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
    }
