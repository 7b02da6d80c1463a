"""Learning from pairs in a real terminal: the method is proposed, both replies are shown, the margin is followed."""

from pathlib import Path

from tests.conftest import DEMO
from tests.terminal.terminal import ENTER, Terminal, started, write_recipe
from tests.terminal.test_walk import only_run
from tuitune.recipe import Recipe


def test_from_a_file_of_pairs_to_a_chat(tmp_path: Path, demo_recipe: Recipe, terminals: list[Terminal]) -> None:
    data = demo_recipe.data.model_copy(update={"path": str(DEMO / "preferences.jsonl")})
    changed = Recipe.from_data(
        {**demo_recipe.model_dump(mode="json"), "data": data.model_dump(mode="json"), "method": {"name": "dpo"}}
    )
    terminal = started(terminals, write_recipe(tmp_path, changed.to_yaml()))
    terminal.until("ready", 300)
    terminal.press(ENTER)
    terminal.until(lambda text: all(part in text for part in ("Method: dpo", "Prompt", "Chosen")), 60)
    terminal.press(ENTER)
    terminal.until("learning_rate")
    terminal.press(ENTER)
    terminal.until("Done after 3 steps", 300)
    terminal.until("margin")
    history = only_run(tmp_path / "runs").history()
    assert history.plan is not None and history.plan.method == "dpo"
    assert round(history.steps[0].loss, 3) == 0.693
    terminal.press(ENTER)
    terminal.until("something it was trained for", 60)
