"""Pictures for the README, taken from the real app while it fine-tunes the demo.

    python docs/screenshots.py

Starts a session, walks the six screens, and writes docs/<step>.svg and docs/walk.svg, which shows the walk. Takes a
minute or two.
"""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from animation import Frame, animated
from textual.pilot import Pilot

import sample_data
from screens.app import TuituneApp
from screens.chat import ChatScreen
from screens.export import ExportScreen
from tuitune.recipe import Recipe

HERE = Path(__file__).parent.resolve()
SIZE = (112, 32)
SECONDS = 300.0


async def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError("the app did not get on")
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)


class Camera:
    """Takes single pictures, and frames of the walk."""

    def __init__(self, app: TuituneApp) -> None:
        self._app = app
        self.frames: list[Frame] = []

    def take(self, name: str) -> None:
        (HERE / f"{name}.svg").write_text(self._picture(), encoding="utf-8")

    def film(self, seconds: float) -> None:
        """Add what is shown now to the walk."""
        self.frames.append(Frame(self._picture(), seconds))

    def _picture(self) -> str:
        return self._app.export_screenshot(title="tuitune")


async def walk(app: TuituneApp, camera: Camera, pilot: Pilot[int]) -> None:
    """From the choice of the model to the exports."""
    await until(lambda: app.link.state == "ready")
    camera.take("model")
    camera.film(2)
    await pilot.press("enter")
    await until(lambda: "tokens trained" in str(app.screen.query_one("#row").border_title))
    camera.take("data")
    camera.film(3)
    await pilot.press("enter")
    await asyncio.sleep(8)
    camera.take("settings")
    camera.film(2.5)
    await pilot.press("enter")
    await until(lambda: app.link.history.step > 0)
    taken = False
    while app.link.history.ended is None:
        camera.film(0.6)
        progress = app.link.history.step / max(1, app.link.history.total_steps)
        if progress >= 0.7 and not taken:
            camera.take("train")
            taken = True
        await until(lambda before=progress: _has_moved(app, before))  # type: ignore[misc]
    await asyncio.sleep(1)
    camera.film(2.5)
    await pilot.press("enter")
    await until(lambda: isinstance(app.screen, ChatScreen))
    camera.film(1.5)
    question = "What is the capital of France?"
    for at in range(0, len(question), 6):
        await pilot.press(*question[at : at + 6])
        camera.film(0.25)
    chat = app.screen
    assert isinstance(chat, ChatScreen)
    await pilot.press("enter")
    await until(lambda: "Paris" in _shown(app))
    await asyncio.sleep(2)
    camera.film(3)
    camera.take("chat")
    await pilot.press("ctrl+n")
    await until(lambda: isinstance(app.screen, ExportScreen) and bool(app.screen.kinds))
    camera.film(2)
    await pilot.press("enter")
    await until(lambda: isinstance(app.screen, ExportScreen) and bool(app.screen.query_one("#made").display))
    camera.take("export")
    camera.film(4)


def _has_moved(app: TuituneApp, before: float) -> bool:
    """Whether an eighth more of the run is done than `before`, or it has ended."""
    history = app.link.history
    return history.ended is not None or history.step / max(1, history.total_steps) >= before + 1 / 8


def _shown(app: TuituneApp) -> str:
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


async def main() -> None:
    folder = Path(tempfile.gettempdir()) / "demo"  # nothing of the machine it is made on is in the pictures
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(Path(sample_data.__file__).parent, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    os.chdir(folder)
    os.environ.update(LOGNAME="me", SSH_CONNECTION="10.0.0.2 50000 gpu-server 22")
    app = TuituneApp(Recipe.load(folder / "demo.yaml"), runs_folder=folder / "runs")
    camera = Camera(app)
    try:
        async with app.run_test(size=SIZE) as pilot:
            await walk(app, camera, pilot)
    finally:
        os.chdir(HERE)
        shutil.rmtree(folder, ignore_errors=True)
    (HERE / "walk.svg").write_text(animated(camera.frames), encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
