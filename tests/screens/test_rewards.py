"""The rewards' screen: a file of one's own is shown before it runs, then answers with their values."""

from pathlib import Path

from screens.app import TuituneApp
from tests.conftest import DEMO
from tests.screens.conftest import SIZE, screen_text, until
from tuitune.recipe import Recipe

SCORE = (
    "def score(completions):\n    print('\x1b]0;owned\x07')\n    return [float(len(reply)) for reply in completions]\n"
)


async def test_ones_own_rewards_are_read_and_confirmed_and_then_show_their_values(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(SCORE)
    recipe = Recipe.from_data(
        {
            "model": {"name": str(DEMO / "demo_model"), "load_in_4bit": False},
            "data": {"path": str(DEMO / "animals.jsonl"), "max_length": 64},
            "method": {
                "name": "grpo",
                "rewards": [{"name": "python", "function": f"{file}:score"}],
                "num_generations": 2,
                "max_completion_length": 6,
            },
            "train": {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
        }
    )
    app = TuituneApp(recipe, runs_folder=tmp_path / "runs")
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("data")
        await pilot.press("f4")
        await until(pilot, lambda: "with all that you may do" in screen_text(pilot), what="the file was not shown")
        assert "def score(completions):" in screen_text(pilot) and "\x1b" not in screen_text(pilot)
        await pilot.press("y")
        await until(pilot, lambda: "Mean reward" in screen_text(pilot), what="no answers")
        assert "score" in screen_text(pilot) and "tokens" in screen_text(pilot)
