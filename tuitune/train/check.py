"""What refuses a run before it begins."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuitune.backends.loading import require_adapter
from tuitune.backends.loftq import require_loftq
from tuitune.errors import UnusableInput
from tuitune.model.config import require_weights
from tuitune.plan.sharding import why_not_sharded
from tuitune.recipe import Recipe
from tuitune.reward_sections import Reward
from tuitune.rewards.confirmed import require_rewards
from tuitune.text import one_line

if TYPE_CHECKING:
    from tuitune.data.dataset import Dataset

_LOOKED_AT = 100
"""Rows, among which one has each column that is needed."""


def check(recipe: Recipe, hosts: int = 1) -> None:
    """Refuse, before a run folder is made, what can be refused at once. Raises UnusableInput."""
    from tuitune.data import open_dataset
    from tuitune.model.config import training_config
    from tuitune.train.reporting import require_reporters

    require_weights(recipe.model)
    dataset = open_dataset(recipe.data)
    training_config(recipe)
    require_rewards(recipe.method.judges())
    _require_columns(recipe.method.judges(), dataset)
    require_loftq(recipe)
    require_reporters(recipe)
    reason = why_not_sharded(recipe, hosts)
    if recipe.train.shard is True and reason is not None:
        raise UnusableInput(
            "The weights cannot be shared out, because {reason}: set train.shard to false.", reason=reason
        )
    if recipe.lora.init_adapter is not None:
        require_adapter(recipe.lora.init_adapter)


def _require_columns(rewards: Sequence[Reward], dataset: "Dataset") -> None:
    """Refuse rewards that compare with a column which no one of the first rows has. Raises UnusableInput."""
    needed = {column: reward.title for reward in rewards if (column := getattr(reward, "column", None))}
    rows = dataset.rows(stop=_LOOKED_AT) if needed else ()
    columns = {name for row in rows if row.sample for name in row.sample.columns or {}}
    for column, title in needed.items():
        if column not in columns:
            raise UnusableInput(
                "The reward {reward} needs the column {column}, which the rows of {file} lack: they have {columns}. "
                "Name another column or other rewards in method.rewards.",
                reward=title,
                column=column,
                file=one_line(dataset.path.name, max_length=80),
                columns=sorted(map(one_line, columns))[:20],
            )
