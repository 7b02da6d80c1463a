"""Talking: who is asked what, stopping, settings, and what is kept of it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from screens.app import TuituneApp
from screens.chat import ChatScreen, Turn, messages_for, transcript
from tests.screens import histories
from tests.screens.conftest import SIZE, screen_text, settled, until
from tuitune.recipe import Recipe
from tuitune.run import Run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What reaches the session; it answers with its own name."""
    calls: list[dict[str, Any]] = []

    async def call(self: TuituneApp, command: str, on_part: Any = None, **arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        reply = "adapter!" if arguments["adapter"] else "base."
        on_part({"text": reply})
        return {"reply": reply, "tokens": 2, "seconds": 0.1, "ended": True}

    monkeypatch.setattr(TuituneApp, "_start", lambda self: self._set_state("ready"))
    monkeypatch.setattr(TuituneApp, "call", call)
    return calls


@pytest.fixture
def talking(recipe: Recipe, tmp_path: Path) -> TuituneApp:
    app = TuituneApp(recipe, runs_folder=tmp_path)
    app.history = histories.of(histories.finished())
    run = Run(tmp_path / "pirate-1")
    run.adapter.mkdir(parents=True)
    app.run_shown = run
    return app


def test_each_one_remembers_its_own_replies() -> None:
    before = [Turn("one", {"adapter": "A1", "base": "B1"}), Turn("two", {"adapter": "A2"})]
    assert [each["content"] for each in messages_for(before, "three", "base", "be kind")] == [
        *("be kind", "one", "B1", "two", "A2", "three")
    ]
    assert messages_for(before, "three", "adapter", "")[1] == {"role": "assistant", "content": "A1"}


async def test_side_by_side_neither_sees_the_others_reply(talking: TuituneApp, asked: list[dict[str, Any]]) -> None:
    async with talking.run_test(size=SIZE) as pilot:
        await talking.show_step("chat")
        await pilot.press("ctrl+b", "ctrl+b", *"Hi", "enter")
        chat = talking.screen
        assert isinstance(chat, ChatScreen)
        await until(pilot, lambda: bool(chat.turns) and len(chat.turns[0].replies) == 2, seconds=10)
        assert [each["adapter"] for each in asked] == [True, False]
        assert [each["messages"] for each in asked] == [[{"role": "user", "content": "Hi"}]] * 2
        await settled(pilot)
        assert "adapter!" in screen_text(pilot) and "base." in screen_text(pilot)


async def test_sampling_settings_reach_the_session_and_wrong_ones_are_marked(
    talking: TuituneApp, asked: list[dict[str, Any]]
) -> None:
    async with talking.run_test(size=(100, 40)) as pilot:
        await talking.show_step("chat")
        await pilot.press("ctrl+o")
        await settled(pilot)
        await pilot.press("home", "shift+end", *"0.7")
        await pilot.press("escape")
        await pilot.press(*"Hi", "enter")
        await until(pilot, lambda: bool(asked), seconds=10)
        assert asked[0]["sampling"] == {"temperature": 0.7}
        await pilot.press("ctrl+o")
        await settled(pilot)
        await pilot.press("home", "shift+end", *"hot")
        await until(pilot, lambda: "temperature is 'hot'" in screen_text(pilot), seconds=5)


async def test_the_transcript_is_saved_with_the_run(talking: TuituneApp, asked: list[dict[str, Any]]) -> None:
    async with talking.run_test(size=SIZE) as pilot:
        await talking.show_step("chat")
        await pilot.press(*"Hi", "enter")
        chat = talking.screen
        assert isinstance(chat, ChatScreen)
        await until(pilot, lambda: bool(chat.turns) and not chat.replying, seconds=10)
        await pilot.press("ctrl+s")
        await settled(pilot)
    assert talking.run_shown is not None
    (saved,) = (talking.run_shown.folder / "chats").glob("*.md")
    assert "**You**\n\nHi" in saved.read_text() and "**Adapter**\n\nadapter!" in saved.read_text()


def test_a_transcript_holds_nothing_a_terminal_obeys() -> None:
    assert "\x1b" not in transcript([Turn("a\x1b[2J", {"adapter": "b\x1b]0;x\x07"})], "run", "s\x1b")


async def test_escape_stops_a_reply_and_keeps_what_was_said(
    talking: TuituneApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call(self: TuituneApp, command: str, on_part: Any = None, **arguments: Any) -> dict[str, Any]:
        on_part({"text": "Half a "})
        await asyncio.sleep(60)
        return {}

    monkeypatch.setattr(TuituneApp, "_start", lambda self: self._set_state("ready"))
    monkeypatch.setattr(TuituneApp, "call", call)
    async with talking.run_test(size=SIZE) as pilot:
        await talking.show_step("chat")
        await pilot.press(*"Hi", "enter")
        chat = talking.screen
        assert isinstance(chat, ChatScreen)
        await until(pilot, lambda: "Half a" in screen_text(pilot), seconds=10)
        await pilot.press("escape")
        await until(pilot, lambda: not chat.replying, seconds=10)
        assert chat.is_current
        assert chat.turns == [Turn("Hi", {"adapter": "Half a "})]
