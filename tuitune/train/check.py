"""What refuses a run before it begins."""

from tuitune.backends.loading import require_adapter
from tuitune.backends.loftq import require_loftq
from tuitune.errors import UnusableInput
from tuitune.model.config import require_weights
from tuitune.plan.sharding import why_not_sharded
from tuitune.recipe import Recipe
from tuitune.rewards.confirmed import require_rewards


def check(recipe: Recipe, hosts: int = 1) -> None:
    """Refuse, before a run folder is made, what can be refused at once. Raises UnusableInput."""
    from tuitune.data import open_dataset
    from tuitune.model.config import training_config
    from tuitune.train.reporting import require_reporters

    require_weights(recipe.model)
    open_dataset(recipe.data)
    training_config(recipe)
    require_rewards(recipe.method.judges())
    require_loftq(recipe)
    require_reporters(recipe)
    reason = why_not_sharded(recipe, hosts)
    if recipe.train.shard is True and reason is not None:
        raise UnusableInput(
            "The weights cannot be shared out, because {reason}: set train.shard to false.", reason=reason
        )
    if recipe.lora.init_adapter is not None:
        require_adapter(recipe.lora.init_adapter)
