"""What is typed into the screens in a real terminal: nothing goes on from it before its result was shown."""

import json
from pathlib import Path

from tests.terminal.terminal import CTRL_N, CTRL_T, ENTER, ESC, Terminal, started, write_recipe
from tuitune.recipe import Recipe
from tuitune.runs.folder import all_runs


def on_data(tmp_path: Path, demo_recipe: Recipe, terminals: list[Terminal]) -> Terminal:
    """The app with a row of the demo's dataset on show, and its path focused."""
    terminal = started(terminals, write_recipe(tmp_path, demo_recipe.to_yaml()))
    terminal.until("ready", 120)
    terminal.press(ENTER)
    terminal.until("tokens trained")
    return terminal


def test_a_typed_dataset_is_shown_before_it_is_gone_on_from(
    tmp_path: Path, demo_recipe: Recipe, terminals: list[Terminal]
) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text("\n".join(json.dumps({"question": "Whose?", "answer": f"Mine {n}."}) for n in range(3)))
    terminal = on_data(tmp_path, demo_recipe, terminals)
    terminal.press("nowhere.jsonl")
    of_the_old = ("400 rows", "tokens trained", "<|im_start|>")
    terminal.until(lambda text: "nowhere.jsonl" in text and not any(part in text for part in of_the_old))
    for _ in range(2):
        terminal.press(ENTER)
        terminal.until("There is no dataset file")
    terminal.press("x")
    shown = terminal.until(lambda text: "There is no dataset file" not in text)
    assert "2 Data" in shown and "by goal" not in shown
    terminal.press("\x15")
    terminal.until("my-data.jsonl, or")  # the field is empty
    terminal.press(str(mine) + CTRL_N)
    terminal.until("▸Mine 0.")
    assert "by goal" not in terminal.text
    terminal.press(ENTER)
    terminal.until("Settings: by goal")


def test_yaml_that_cannot_be_used_starts_no_run_and_is_kept(
    tmp_path: Path, demo_recipe: Recipe, terminals: list[Terminal]
) -> None:
    terminal = on_data(tmp_path, demo_recipe, terminals)
    terminal.press(ENTER)
    terminal.until("Settings: by goal")
    terminal.press(CTRL_T)
    terminal.until("every field")
    terminal.press(CTRL_T)
    terminal.until("Settings: YAML")
    terminal.until("model:")
    terminal.press("# edited\r" + "]" + CTRL_N)
    terminal.until("not valid YAML")
    for key in (CTRL_N, CTRL_T):
        terminal.press(key)
        terminal.until("not valid YAML")
        assert "Settings: YAML" in terminal.text
    terminal.press(ESC)
    terminal.until("What the model learns from")
    terminal.press(ENTER)
    shown = terminal.until("Settings: YAML")
    terminal.until("# edited")
    terminal.until("not valid YAML")
    assert not all_runs(tmp_path / "runs"), shown
    terminal.press("\x7f")
    terminal.until(lambda text: "not valid YAML" not in text)
    assert "# edited" in terminal.text
    terminal.press(CTRL_N)
    terminal.until("Done after 3 steps", 120)


def test_what_is_typed_at_once_with_going_on_is_what_is_trained_and_once_only(
    tmp_path: Path, demo_recipe: Recipe, terminals: list[Terminal]
) -> None:
    terminal = on_data(tmp_path, demo_recipe, terminals)
    terminal.press(ENTER)
    terminal.until("Settings: by goal")
    terminal.press(CTRL_T)
    terminal.until("every field")
    terminal.until("Rank of the two")  # the field is focused
    terminal.press("5" + CTRL_N)
    terminal.until("Done after 3 steps", 120)
    (run,) = all_runs(tmp_path / "runs")
    assert run.recipe().lora.r == 5

    terminal.press(ESC)
    terminal.until("every field")
    terminal.press(CTRL_N)
    terminal.until("has finished with these settings")
    terminal.press("n")
    terminal.until(lambda text: "has finished with these settings" not in text)
    terminal.press(CTRL_N)
    terminal.until("has finished with these settings")
    assert all_runs(tmp_path / "runs") == [run]
