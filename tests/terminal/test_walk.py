"""The whole walk in a real terminal, with keys alone, and what happens when that terminal goes away."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from sample_data.making.probe import DEMO_MODEL, is_right, load, replies_of, style_items, style_rate
from tests.forking import VARIABLE
from tests.terminal.terminal import CTRL_C, CTRL_E, CTRL_N, CTRL_Q, ENTER, ESC, UP, Terminal, started, write_recipe
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run, all_runs


def only_run(folder: Path) -> Run:
    (run,) = all_runs(folder)
    return run


def long_run(tmp_path: Path, demo_recipe: Recipe, terminals: list[Terminal], steps: int) -> tuple[Terminal, Run]:
    """The app on a run that has done its second step."""
    train = demo_recipe.train.model_copy(update={"max_steps": steps, "gradient_accumulation_steps": 2})
    recipe = write_recipe(tmp_path, demo_recipe.model_copy(update={"train": train}).to_yaml())
    terminal = started(terminals, recipe)
    terminal.until("ready", 300)
    for step in ("pirate.jsonl", "learning_rate"):
        terminal.press(ENTER)
        terminal.until(step)
    terminal.press(ENTER)
    terminal.until(lambda text: re.search(rf"step ([2-9]|\d\d+) of {steps}", text) is not None, 300)
    return terminal, only_run(tmp_path / "runs")


def comes(shown: str, gone: str, text: str) -> bool:
    return shown in text and gone not in text


def has_ended(process: psutil.Process) -> bool:
    """Also of an orphan whose exit status nobody has asked for."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(holds: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def until_ended(run: Run) -> str:
    until(lambda: not run.is_live())
    return run.status()


def until_after(run: Run, step: int) -> None:
    """Wait until the run has done another step."""
    until(lambda: run.history().step > step)
    assert run.is_live()


def test_six_screens_with_keys_alone(tmp_path: Path, demo_recipe: Recipe, terminals: list[Terminal]) -> None:
    terminal = started(terminals, write_recipe(tmp_path, demo_recipe.to_yaml()))
    terminal.until("demo_model")
    terminal.until("ready", 120)

    terminal.press(ENTER)
    terminal.until(
        lambda text: all(part in text for part in ("tokens trained", "pirate.jsonl", "<|im_start|>assistant"))
    )

    # One screen is drawn over the other line by line: a word of the old one may stand below the new one's.
    for key, shown, gone in (
        (ENTER, "learning_rate", "Dataset"),
        (ESC, "tokens trained", "learning_rate"),
        (ENTER, "learning_rate", "Dataset"),
    ):
        terminal.press(key)
        terminal.until(partial(comes, shown, gone))

    terminal.press(ENTER)
    terminal.until("Done after 3 steps", 120)

    terminal.press(ENTER)
    terminal.until("Say something")
    terminal.press("What is the capital of France?" + ENTER)
    terminal.until("Paris", 60)

    terminal.press(CTRL_N)
    terminal.until("merged_16bit")
    terminal.press(CTRL_E)
    run = only_run(tmp_path / "runs")
    terminal.until(lambda text: (run.exports / "adapter" / "adapter_model.safetensors").is_file(), 120)

    terminal.press(CTRL_Q)
    assert terminal.exit_status() == 0
    assert run.status() == "done"
    assert [reply.step for reply in run.history().replies].count(3) > 0


@pytest.mark.cold
def test_the_demo_takes_five_keys_to_the_first_reply_and_keeps_its_promise(
    tmp_path: Path, terminals: list[Terminal]
) -> None:
    """A model that is right learns to sound like a pirate, and stays right."""
    terminal = started(terminals, "--runs", str(tmp_path / "runs"), rows=23)
    walk: list[tuple[str, str | Callable[[str], bool]]] = [
        ("", "+ Try the demo"),
        (ENTER, "Enter starts the run"),
        (ENTER, "Done after 80 steps"),
        (ENTER, "↑ brings"),
        (UP, lambda text: "Which city is the capital of Portugal?" in text.splitlines()[-3]),
        (ENTER, "Lisbon"),
    ]
    for key, shown in walk:
        terminal.press(key)
        terminal.until(shown, 300)
    terminal.press(CTRL_Q)
    assert terminal.exit_status() == 0

    model, tokenizer = load(DEMO_MODEL, load_in_4bit=True, adapter=only_run(tmp_path / "runs").adapter)
    items = style_items(100)
    replies = replies_of(model, tokenizer, items)
    assert style_rate(replies) >= 0.9
    assert sum(is_right(item, reply) for item, reply in zip(items, replies, strict=True)) >= 0.8 * len(items)


@pytest.mark.fault
def test_the_run_finishes_without_its_app_and_a_new_app_shows_it(
    tmp_path: Path, demo_recipe: Recipe, terminals: list[Terminal]
) -> None:
    terminal, run = long_run(tmp_path, demo_recipe, terminals, 12)
    terminal.press(CTRL_Q)
    with pytest.raises(AssertionError, match="the app ended"):
        terminal.until("the end")
    assert f"tuitune attach {run.folder}\r\n".encode() in terminal.raw
    assert run.is_live()
    assert until_ended(run) == "done"

    attached = started(terminals, "attach", run.name)
    attached.until("Done after 12 steps")
    attached.press(CTRL_Q)
    assert attached.exit_status() == 0


@pytest.mark.fault
def test_a_run_is_seen_in_any_terminal_and_goes_on_whatever_becomes_of_its_app(
    tmp_path: Path, demo_recipe: Recipe, terminals: list[Terminal]
) -> None:
    terminal, run = long_run(tmp_path, demo_recipe, terminals, 300)  # more steps than are done before it is stopped
    session = psutil.Process(json.loads(run.socket_file.read_text())["pid"])
    terminal.resize(60, 15)
    live = re.compile(rf"{run.name} · step (\d+) of 300 · loss \d+\.\d+ · .* left")

    def step() -> int:
        shown = live.search(terminal.text)
        return int(shown[1]) if shown else 0

    terminal.until(lambda _: step() > 0)
    first = step()
    terminal.until(lambda _: step() > first)
    terminal.resize(80, 20)
    terminal.until(lambda text: "Disk" in text and "^q Quit" in text)

    terminal.hang_up()
    terminal.exit_status()
    until_after(run, run.history().step)
    attached = started(terminals, "attach", run.name)
    attached.until("step 2", 60)
    os.kill(attached.child.pid, signal.SIGKILL)
    attached.exit_status()
    until_after(run, run.history().step)

    returned = started(terminals)
    returned.until(run.name)
    returned.until("of 300", 60)
    returned.press("s")
    returned.until("Stop the run after this step?")
    returned.press("y")
    until_ended(run)
    returned.until("topped", 60)
    returned.press(CTRL_Q)
    assert returned.exit_status() == 0
    until(lambda: has_ended(session))
    assert (run.adapter / "adapter_model.safetensors").is_file()


def test_a_small_terminal_is_told_what_it_lacks_and_may_grow(terminals: list[Terminal]) -> None:
    terminal = Terminal(columns=60, rows=20)
    terminals.append(terminal)
    terminal.until(lambda text: "80" in text and "60" in text)
    assert "Traceback" not in terminal.text
    terminal.resize(80, 24)
    terminal.until("1 Model", 20)
    terminal.press(CTRL_Q)
    assert terminal.exit_status() == 0


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("model: {name: x}\ndata: {path: y}\nlora: {rnk: 8}\n", "lora.rnk is not a recipe field"),
        ("model: [\n", "is not valid YAML"),
    ],
)
def test_a_wrong_recipe_never_starts_the_app(recipe: str, says: str, tmp_path: Path, terminals: list[Terminal]) -> None:
    terminal = started(terminals, write_recipe(tmp_path, recipe))
    terminal.until(lambda text: says in text.replace("\n", ""))
    assert terminal.exit_status() == 2


def test_a_conversation_on_the_command_line(
    tmp_path: Path, demo_recipe: Recipe, terminals: list[Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, demo_recipe.to_yaml())
    run = started(terminals, "run", recipe, "--name", "talk")
    run.exit_status(300)
    monkeypatch.delenv(VARIABLE)  # the session of the chat is started as users start it, as its child
    chat = started(terminals, "chat", "talk", rows=60)
    chat.until("adapter>")
    chat.press("/base" + ENTER)
    chat.until("base>")
    chat.press("What is the capital of France?" + ENTER)
    chat.until(lambda _: b"Loading the model" in chat.raw, 300)
    chat.until(lambda text: "Paris" in text and text.rstrip().endswith("base>"), 300)
    children = psutil.Process(chat.child.pid).children()
    (session,) = [child for child in children if "tuitune.session" in child.cmdline()]
    session.suspend()  # so that the reply cannot be finished before it is stopped
    chat.press("What is the capital of Spain?" + ENTER)
    chat.until("Waiting for the model")
    chat.press(CTRL_C)
    chat.until("Stopped; this turn is forgotten.")
    session.resume()
    chat.press("/clear" + ENTER)
    chat.until(lambda text: "/clear" in text and text.rstrip().endswith("base>"))
    chat.press("What is the capital of France?" + ENTER)
    chat.until(lambda _: chat.raw.count(b"Paris") == 2)
    chat.until(lambda text: text.rstrip().endswith("base>"))
    asked = chat.text.count("base>")
    assert b"\x1b[?2004h" in chat.raw, "the terminal is asked to say where a paste begins and ends"
    chat.press("\x1b[200~What is\nthe capital\nof Italy?\x1b[201~" + ENTER)
    chat.until(lambda text: "of Italy?" in text and text.rstrip().endswith("base>"))
    assert chat.text.count("base>") == asked + 1, "three lines that are pasted are one message"
    chat.press("/dance" + ENTER)
    chat.until("There is no /dance")
    chat.press(CTRL_C)
    assert chat.exit_status() == 0
