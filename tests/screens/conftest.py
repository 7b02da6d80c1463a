"""What the screen tests share: an app on a short recipe, and waiting for what it shows."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from screens.app import TuituneApp
from tests.conftest import DEMO
from tests.forking import Forker
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run
from tuitune.session.client import Session
from tuitune.session.run_requests import Train

SIZE = (80, 24)


@pytest.fixture(autouse=True)
def libraries_imported(forker: Forker) -> None:
    """No app waits for that."""
    forker.warm_up()


@pytest.fixture
def runs_folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def recipe() -> Recipe:
    """Three steps on the demo model."""
    return Recipe.from_data(
        {
            "model": {"name": str(DEMO / "demo_model"), "load_in_4bit": False},
            "data": {"path": str(DEMO / "pirate.jsonl"), "max_length": 64},
            "train": {"max_steps": 3, "gradient_accumulation_steps": 1},
            "samples": {"prompts": ["hello"], "max_new_tokens": 8},
        }
    )


@pytest.fixture
def app(recipe: Recipe, runs_folder: Path) -> TuituneApp:
    """The app on a short recipe; it starts a real session."""
    return TuituneApp(recipe, runs_folder=runs_folder)


@pytest.fixture
def attached(trained: Run) -> TuituneApp:
    """The app on a run that has ended."""
    return TuituneApp(None, runs_folder=trained.folder.parent, attach=trained)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one step, whose session has ended; no test changes it."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = Recipe.load(DEMO / "demo.yaml", ["max_steps=1", "eval_share=0", 'samples.prompts=["Who are you?"]'])

    async def train() -> None:
        session = await Session.start()
        await session.call(Train(recipe.model_dump(mode="json"), str(folder), "pirate"))
        await session.close()

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_RUNTIME_DIR", str(folder))
        asyncio.run(train())
    return Run(folder / "pirate")


async def until(pilot: Pilot[int], holds: Callable[[], bool], *, seconds: float = 120.0, what: str = "") -> None:
    """Wait until `holds()`; fail with what the screen shows."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end or pilot.app._exception is not None:
            pytest.fail(f"not within {seconds} s: {what}\n{screen_text(pilot)}")
        await asyncio.sleep(0.05)
    await pilot.pause()


async def settled(pilot: Pilot[int]) -> None:
    """Wait until the screen has stopped changing: looked at five times, a tenth of a second apart, it is the same."""
    shown, same = "", 0
    while same < 4:
        await pilot.pause(0.1)
        now = screen_text(pilot)
        shown, same = now, same + 1 if now == shown else 0


def screen_text(pilot: Pilot[int]) -> str:
    """What the screen shows, as lines of text."""
    app = pilot.app
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in line).rstrip() for line in lines)


def words(pilot: Pilot[int]) -> str:
    """What the screen shows, without its line breaks."""
    return " ".join(screen_text(pilot).split())
