"""Every screen's main states, shown real runs, data, models and exports: nine as pictures, all by their words.

A picture is of 80 × 24 cells; what else is shown, there and on a larger terminal, is asserted as words.

What would differ from machine to machine is fixed at its edge (`tests/screens/machine.py`), and where a path is shown
it begins with /proc/self/cwd, which means this test's own folder in every process that works there.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from screens.app import TuituneApp
from screens.chat import ChatScreen
from screens.run_link import RunLink
from screens.widgets.tokens import tokens_content
from tests.conftest import DEMO
from tests.screens import histories
from tests.screens.conftest import settled, until, words
from tests.screens.machine import be_the_machine, see_libraries, write_libraries, write_nvml
from tuitune.chat.conversation import Reply
from tuitune.documents.passage import Passage
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run
from tuitune.runs.manage import write_note
from tuitune.session.client import Session
from tuitune.session.result_requests import Export
from tuitune.session.run_requests import EndingStatus
from tuitune.settings import Settings

SIZE, LARGE = (80, 24), (120, 40)
REPOSITORY = Path(__file__).parents[2]
HERE = Path("/proc/self/cwd")
DAY = 86_400.0

Prepare = Callable[[Pilot[int]], Awaitable[None]]


@pytest.fixture(scope="module")
def place(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with runs in every state, and a session process that holds all but one of them."""
    place = tmp_path_factory.mktemp("place")
    runs = place / "runs"
    data = place / "pirate.jsonl"
    data.write_text("\n".join(sums(3_100)))  # a few bytes more in a script of megabytes are not seen
    recipe = recipe_of(data)
    finished = histories.write(histories.finished(histories.AT - DAY / 8), recipe, runs, "pirate-1")
    shutil.copytree(trained.adapter, finished.adapter)
    held = [
        finished,
        histories.write(histories.failed(histories.AT - DAY / 4), recipe, runs, "pirate-2"),
        histories.write(histories.loading(histories.NOW - 12), recipe, runs, "pirate-3"),
        histories.write(histories.training(), recipe, runs, "pirate-4"),
        histories.write(histories.overfitting(), recipe, place / "warned", "pirate-5"),  # not among the runs on home
    ]
    histories.write(histories.training(12, at=histories.AT - 3 * DAY), recipe, runs, "gsm8k-1")
    (place / "sums.jsonl").write_text("\n".join(with_problems()) + "\n")
    write_models(place)
    for name, write in (("nvml", write_nvml), ("libraries", write_libraries)):
        (place / name).mkdir()
        write(place / name)
    with held_by_a_session(held, place):
        export_and_change(finished, data)
        yield place


def recipe_of(data: Path, **model: Any) -> Recipe:
    return Recipe.from_data(
        {
            "model": {"name": str(DEMO / "demo_model"), "backend": "transformers", **model},
            "data": {"path": str(data), "max_length": 64},
        }
    )


def row(question: str, answer: str) -> str:
    return json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})


def sums(count: int) -> list[str]:
    return [row(f"What is {n} plus {n * n}?", f"Arr! {n} plus {n * n} be {n + n * n}, matey!") for n in range(count)]


def with_problems() -> list[str]:
    """Sums, and what an audit finds: duplicates, replies that are empty or too long, a row of another kind."""
    rows = sums(40)
    rows += [row(f"Count to {n}!", "Arr! " + ", ".join(map(str, range(1, n + 1)))) for n in range(10, 60, 10)]
    return [*rows, rows[3], rows[7], row("And then?", ""), row("Are you there?", " "), json.dumps({"text": "Ahoy!"})]


def write_models(place: Path) -> None:
    """A model in the Hub's cache, and one in a folder of the user's."""
    cached = place / "hub" / "models--unsloth--Qwen3-4B-Instruct-2507" / "snapshots" / "0"
    for folder in (cached, place / "home" / "models" / "my-llama"):
        folder.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).touch()


@contextmanager
def held_by_a_session(runs: list[Run], place: Path) -> Iterator[None]:
    """Have a session process hold the runs, on the machine of `write_nvml` and in the folder `place`."""
    path = [str(place / "nvml"), str(REPOSITORY), os.environ.get("PYTHONPATH")]
    settings = {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "XDG_RUNTIME_DIR": str(place),
        "LOGNAME": "me",
        "SSH_CONNECTION": "10.0.0.2 50000 gpu-server 22",
    }
    with (place / "session.log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.screens.holding", *(str(run.folder) for run in runs)],
            env={name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | settings,
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        with process:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == b"ready\n", (place / "session.log").read_text()
            yield
            process.stdin.close()


def export_and_change(run: Run, data: Path) -> None:
    """Make a script of the run; change its adapter as a user may, take its data away, put a file in an export's way."""

    async def export() -> None:
        session = await Session.attach(run)
        await session.call(Export(str(run.folder), ["script"]))
        await session.close()

    asyncio.run(export())
    config = run.adapter / "adapter_config.json"
    config.write_text(config.read_text() + "\n")
    (run.adapter / "manifest.json").unlink()
    data.unlink()
    (run.exports / "merged_16bit").touch()


@pytest.fixture(autouse=True)
def same_everywhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    be_the_machine(place / "nvml", monkeypatch)
    monkeypatch.chdir(place)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(Input.cursor_blink, "_default", False)
    monkeypatch.setattr(TextArea.cursor_blink, "_default", False)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def app_on(run: str, runs: str = "runs") -> TuituneApp:
    """The app attached to the session of one of the runs."""
    return TuituneApp(
        None,
        runs_folder=Path(runs),
        attach=Run(HERE / runs / run),
        settings=Settings(reduced_motion=True, notifications=False),
    )


async def seen(pilot: Pilot[int], *shown: str) -> None:
    """Wait until the screen shows all of these words. Raises AssertionError, at which Textual ends the app."""
    try:
        await until(pilot, lambda: all(word in words(pilot) for word in shown), seconds=60, what=" and ".join(shown))
    except pytest.fail.Exception as failure:
        raise AssertionError(str(failure)) from None


async def still(pilot: Pilot[int], *shown: str) -> None:
    """Wait until the session is ready, the screen shows all of these words, and nothing moves any more."""
    await seen(pilot, "6 Export ready", *shown)
    await settled(pilot)


def pressing(first: str, *steps: tuple[str, str]) -> Prepare:
    """Wait until the first words are shown, then press each key and wait until its words are."""

    async def prepare(pilot: Pilot[int]) -> None:
        await seen(pilot, first)
        for key, shown in steps:
            await pilot.press(key)
            await seen(pilot, shown)
        await still(pilot)

    return prepare


def choosing(recipe: Recipe, first: str, *steps: tuple[str, str]) -> Prepare:
    """Begin a new run with this recipe, as one that was picked on the home screen, then go on as `pressing` does."""

    async def prepare(pilot: Pilot[int]) -> None:
        app = pilot.app
        assert isinstance(app, TuituneApp)
        await seen(pilot, FINISHED)
        await app.new_run(recipe)
        await pressing(first, *steps)(pilot)

    return prepare


# The last words that a dashboard shows of each state's record.
FINISHED = "Enter: chat with it"
TRAINING = "Disk 12.0 GiB free"
STATES = {
    "loading": ("pirate-3", "120 of 290"),
    "training": ("pirate-4", TRAINING),
    "finished": ("pirate-1", FINISHED),
    "failed": ("pirate-2", "The GPU ran out of memory"),
}


@pytest.fixture
def is_as_pictured(snap_compare: Any) -> Callable[[TuituneApp, Prepare], bool]:
    return lambda app, prepare: bool(snap_compare(app, terminal_size=SIZE, run_before=prepare))


IsAsPictured = Callable[[TuituneApp, Prepare], bool]


async def shows(app: TuituneApp, prepare: Prepare, *texts: str) -> None:
    """Require that the app, once prepared, shows the texts in 80 × 24 cells and, made larger, still does."""
    async with app.run_test(size=SIZE) as pilot:
        await prepare(pilot)
        for size in (SIZE, LARGE):
            await pilot.resize_terminal(*size)
            await settled(pilot)
            shown = words(pilot)
            assert not [text for text in texts if text not in shown], shown


@pytest.mark.parametrize("state", ["training", "failed"])
def test_dashboard(state: str, is_as_pictured: IsAsPictured) -> None:
    run, shown = STATES[state]
    assert is_as_pictured(app_on(run), pressing(shown))


@pytest.mark.parametrize("state", ["loading", "finished"])
async def test_dashboard_of_a_run_that_has_not_begun_or_is_done(state: str) -> None:
    run, shown = STATES[state]
    await shows(app_on(run), pressing(shown), run, shown)


async def test_dashboard_of_a_run_that_overfits() -> None:
    await shows(app_on("pirate-5", runs="warned"), pressing(TRAINING), "pirate-5", "overfitting")


async def test_dashboard_curves() -> None:
    steps = [("m", "Learning rate"), ("m", "Gradient norm"), ("l", "before Two plus three is five.")]
    await shows(app_on("pirate-4"), pressing(TRAINING, *steps), "Gradient norm", "Two plus three is five.")


def test_home(place: Path, is_as_pictured: IsAsPictured, monkeypatch: pytest.MonkeyPatch) -> None:
    see_libraries(place / "libraries", monkeypatch)

    async def examined(pilot: Pilot[int]) -> None:
        app = pilot.app
        assert isinstance(app, TuituneApp)
        await seen(pilot, TRAINING)
        await app.show_step("home")
        await still(pilot, "gsm8k-1", "12.0 GiB free for runs.")

    assert is_as_pictured(app_on("pirate-4"), examined)


@pytest.fixture
def past(tmp_path: Path) -> Path:
    """Runs in every state but live, of data and a model that are called the same everywhere."""
    runs = tmp_path / "past"
    recipe = recipe_of(Path("/data/sums.jsonl"), name="unsloth/Llama-3.2-1B-Instruct", backend="auto")
    slower = recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": 1e-4})})
    noted = histories.write(histories.finished(histories.AT - DAY / 8), recipe, runs, "sums-1")
    write_note(noted, "The usual rate: good answers, no repetition.")
    histories.write(histories.slower(histories.finished(histories.AT - DAY / 4)), slower, runs, "sums-low-rate")
    histories.write(histories.failed(histories.AT - DAY), recipe, runs, "sums-2")
    histories.write(histories.training(12, at=histories.AT - 3 * DAY), recipe, runs, "gsm8k-1")
    return runs


def history_of(past: Path, is_as_pictured: IsAsPictured, *keys: tuple[str, str]) -> bool:
    """Whether the history of these runs looks as it did after each key was pressed and its words shown."""

    async def prepare(pilot: Pilot[int]) -> None:
        app = pilot.app
        assert isinstance(app, TuituneApp)
        await seen(pilot, TRAINING)
        await app.show_step("history")
        await seen(pilot, "Runs: 4", "The usual rate")
        await pressing("sums-1", *keys)(pilot)

    app = app_on("pirate-4")
    app.link.runs_folder = past
    return is_as_pictured(app, prepare)


def test_history(past: Path, is_as_pictured: IsAsPictured) -> None:
    keys = [("down", "sums-2"), ("space", "1 marked"), ("up", "1 marked"), ("up", "The usual rate")]
    assert history_of(past, is_as_pictured, *keys)


def test_compare(past: Path, is_as_pictured: IsAsPictured) -> None:
    keys = [("space", "1 marked"), ("space", "2 marked"), ("c", "train.learning_rate")]
    assert history_of(past, is_as_pictured, *keys)


def test_model(place: Path, is_as_pictured: IsAsPictured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "hub"))
    monkeypatch.setenv("HOME", str(HERE / "home"))
    chosen = recipe_of(Path("sums.jsonl"), name="unsloth/Llama-3.2-1B-Instruct", backend="auto")
    assert is_as_pictured(app_on("pirate-1"), choosing(chosen, "my-llama"))


SUMS = recipe_of(Path("sums.jsonl"))
LISTED = "23.0 GiB free on NVIDIA"
TO_DATA = ("ctrl+n", "tokens trained")


def test_data(is_as_pictured: IsAsPictured) -> None:
    assert is_as_pictured(app_on("pirate-1"), choosing(SUMS, LISTED, TO_DATA))


async def test_audit() -> None:
    audited = choosing(SUMS, LISTED, TO_DATA, ("ctrl+t", "Rows by their tokens"))
    await shows(app_on("pirate-1"), audited, "Rows by their tokens")


def test_settings(is_as_pictured: IsAsPictured) -> None:
    looked_ahead = choosing(SUMS, LISTED, TO_DATA, ("ctrl+n", "tokens/s of pirate-4"))
    assert is_as_pictured(app_on("pirate-1"), looked_ahead)


async def test_empty_chat() -> None:
    await shows(app_on("pirate-1"), pressing(FINISHED, ("enter", "Ask pirate-1")), "Ask pirate-1")


def test_chat(is_as_pictured: IsAsPictured) -> None:
    async def talked(pilot: Pilot[int]) -> None:
        to_both = [
            ("enter", "Ask pirate-1"),
            ("ctrl+b", "Who answers"),
            ("down", "base model"),
            ("space", "Who answers"),
        ]
        await pressing(FINISHED, *to_both, ("enter", "adapter | base model"))(pilot)
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        turn = screen.dialogue.say("What is the capital of France?")
        turn.passages = [Passage("cities.md", "Paris lies on the Seine.", "France", 3, 9)]
        pirate = Reply("Arr! **Paris**, matey:\n\n- on the Seine\n- in `France`", 14, 0.5, 0.12)
        plain = Reply("Paris is the capital of France.", 8, 0.25, 0.1, stopped=True)
        turn.replies = dict(zip(screen.sides, (pirate, plain), strict=True))
        await screen.show_branch()
        await still(pilot, "on the Seine", "Paris is")

    assert is_as_pictured(app_on("pirate-1"), talked)


async def test_export() -> None:
    async def exported(pilot: Pilot[int]) -> None:
        app = pilot.app
        assert isinstance(app, TuituneApp)
        await seen(pilot, FINISHED)
        await app.show_step("export")
        to_both = [
            ("down", "as a GGUF file"),
            ("down", "A whole model in 16-bit"),
            ("space", "[✔] merged_16bit"),
            ("enter", "✘ merged_16bit"),
        ]
        await pressing("made earlier", *to_both)(pilot)
        await still(pilot, "✔ adapter · 1.7 MiB", "Tab: make others")

    await shows(app_on("pirate-1"), exported, "✘ merged_16bit", "✔ adapter · 1.7 MiB", "scp -r me@gpu-server:")


async def test_help() -> None:
    helped = pressing(TRAINING, ("f1", "Train: help"))
    await shows(app_on("pirate-4"), helped, "Train: help")


async def test_endings() -> None:
    async def asked(pilot: Pilot[int]) -> None:
        await still(pilot, FINISHED)
        await pilot.press("f3")
        await seen(pilot, "Price of an hour")

    await shows(app_on("pirate-1"), asked, "Price of an hour", "Command at the end", "Webhook")


async def test_countdown() -> None:
    async def counting(pilot: Pilot[int]) -> None:
        await still(pilot, FINISHED)
        command = "sh -c 'rsync -a /data/runs backup: && sudo poweroff'"
        ending = EndingStatus(run="pirate-1", command=command, state="counting", seconds=7.4)
        pilot.app.post_message(RunLink.EndingTold(ending))
        await seen(pilot, "in 8 s")
        await settled(pilot)

    await shows(app_on("pirate-1"), counting, "in 8 s", "sudo poweroff")


async def test_too_small() -> None:
    async with app_on("pirate-4").run_test(size=(60, 20)) as pilot:
        await seen(pilot, "step 40 of 60", "Enlarge it")


def test_trained_tokens_are_told_apart_without_colour() -> None:
    tokens = [
        {"id": 1, "text": "<|im_start|>", "trained": False},
        {"id": 2, "text": "Hi", "trained": False},
        {"id": 3, "text": "Arr", "trained": True},
        {"id": 4, "text": "<|im_end|>", "trained": True},
    ]
    assert tokens_content(tokens).plain == "<|im_start|>Hi▸Arr<|im_end|>◂"
