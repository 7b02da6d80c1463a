"""What a recipe settles of TRL's SFTConfig, the same in a run and in the script that repeats it."""

from typing import Any

from tuitune.recipe import Recipe


def settled_arguments(recipe: Recipe) -> dict[str, Any]:
    """SFTConfig's arguments that depend on the recipe alone, and not on the machine."""
    train = recipe.train
    return {
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_steps": train.max_steps,
        "num_train_epochs": train.num_train_epochs,
        "per_device_train_batch_size": train.per_device_train_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.lr_scheduler_type,
        "warmup_steps": train.warmup_steps,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "router_aux_loss_coef": 0.0,  # it would count filling too, and is for routers, which stay frozen
        "seed": train.seed,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
    }
