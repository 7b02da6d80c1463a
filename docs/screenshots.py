"""Pictures for the README, taken from the real app while it fine-tunes the demo.

    python docs/screenshots.py

Starts a session, walks the six screens, and writes docs/<step>.svg. Takes about a minute.
"""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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


async def main() -> None:
    folder = Path(tempfile.gettempdir()) / "demo"  # nothing of the machine it is made on is in the pictures
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(Path(sample_data.__file__).parent, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    os.chdir(folder)
    os.environ.update(LOGNAME="me", SSH_CONNECTION="10.0.0.2 50000 gpu-server 22")
    app = TuituneApp(Recipe.load(folder / "demo.yaml"), runs_folder=folder / "runs")
    try:

        def take(name: str) -> None:
            (HERE / f"{name}.svg").write_text(app.export_screenshot(title="tuitune"), encoding="utf-8")

        async with app.run_test(size=SIZE) as pilot:
            await until(lambda: app.link.state == "ready")
            take("model")
            await pilot.press("enter")
            await asyncio.sleep(5)
            take("data")
            await pilot.press("enter")
            await asyncio.sleep(8)
            take("settings")
            await pilot.press("enter")
            await until(lambda: app.link.history.step >= 0.7 * max(1, app.link.history.total_steps))
            take("train")
            await until(lambda: app.link.history.ended is not None)
            await pilot.press("enter")
            await until(lambda: isinstance(app.screen, ChatScreen))
            await pilot.press("ctrl+b", "ctrl+b", *"What is the capital of France?", "enter")
            chat = app.screen
            assert isinstance(chat, ChatScreen)
            await until(lambda: bool(chat.turns) and len(chat.turns[0].replies) == 2)
            take("chat")
            await pilot.press("ctrl+n")
            await until(lambda: isinstance(app.screen, ExportScreen) and bool(app.screen.kinds))
            await pilot.press("enter")
            await until(lambda: isinstance(app.screen, ExportScreen) and bool(app.screen.query_one("#made").display))
            take("export")
    finally:
        os.chdir(HERE)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(main())
