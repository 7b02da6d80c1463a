"""What a recipe's names stand for today, commits of the Hub and files of rewards: what records them can be repeated."""

from tuitune.data.dataset import eval_section, sections
from tuitune.hub.datasets import hub_files
from tuitune.model.config import is_folder, load_config
from tuitune.recipe import Recipe
from tuitune.recipe_sections import HUB, DataSection, ModelSection
from tuitune.reward_sections import PythonFile, Reward
from tuitune.rewards.confirmed import digest_of, source_of


def pinned(recipe: Recipe) -> Recipe:
    """The recipe with the commit of every Hub model and dataset as its revision. Raises UnusableInput."""
    data = recipe.data
    first, *further = [_commit(section) for section in sections(data)]
    eval_data = eval_section(data)
    also_pinned = [
        source.model_copy(update={"revision": commit}) for source, commit in zip(data.also, further, strict=True)
    ]
    changes = {"revision": first, "also": also_pinned}
    if eval_data is not None and eval_data.path != data.path:
        changes["eval_revision"] = _commit(eval_data)
    return recipe.model_copy(
        update={
            "method": recipe.method.with_rewards(_with_digest),
            "model": recipe.model.model_copy(update={"revision": _model_commit(recipe.model)}),
            "data": data.model_copy(update=changes),
        }
    )


def _with_digest(reward: Reward) -> Reward:
    """A reward of the user's own with the digest of its file. Raises UnusableInput."""
    if not isinstance(reward, PythonFile):
        return reward
    return reward.model_copy(update={"sha256": digest_of(source_of(reward))})


def _commit(data: DataSection) -> str | None:
    return hub_files(data).commit if data.path.startswith(HUB) else data.revision


def _model_commit(model: ModelSection) -> str | None:
    """The commit that transformers read the model's config from; unchanged where that is not known."""
    if is_folder(model.name):
        return model.revision
    return getattr(load_config(model), "_commit_hash", None) or model.revision
