"""Talking to a run that was trained earlier, through a real session: who is asked what, stopping, losing, keeping."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.visual import VisualType
from textual.widgets import Input, Static

from screens.app import TuituneApp
from screens.chat import ChatScreen, Turn, messages_for, transcript
from screens.draft import Draft
from tests.screens.conftest import SIZE, screen_text, settled, until
from tuitune.recipe import Recipe
from tuitune.runs.events import Finished
from tuitune.runs.folder import Run
from tuitune.session.messages import Status


async def chat_of(pilot: Pilot[int]) -> ChatScreen:
    app = pilot.app
    assert isinstance(app, TuituneApp)
    await app.show_step("chat")
    chat = app.screen
    assert isinstance(chat, ChatScreen)
    await settled(pilot)
    return chat


async def answered(pilot: Pilot[int], chat: ChatScreen, turns: int) -> None:
    await until(pilot, lambda: len(chat.turns) == turns and not chat.replying, what=f"{turns} turns")
    await settled(pilot)


def every_text_of(shown: Static, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `shown` will be given, including what is replaced before anyone could look."""
    texts: list[str] = []
    update = shown.update

    def noted(content: VisualType = "", **options: Any) -> None:
        texts.append(str(content))
        update(content, **options)

    monkeypatch.setattr(shown, "update", noted)
    return texts


def test_each_one_remembers_its_own_replies_alone() -> None:
    before = [Turn("one", {"adapter": "A1", "base": "B1"}), Turn("two", {"adapter": "A2"})]
    assert [each["content"] for each in messages_for(before, "three", "base", "be kind")] == [
        *("be kind", "one", "B1", "three")
    ]
    assert [each["content"] for each in messages_for(before, "three", "adapter", "")] == [
        *("one", "A1", "two", "A2", "three")
    ]


def test_a_transcript_holds_nothing_a_terminal_obeys() -> None:
    assert "\x1b" not in transcript([Turn("a\x1b[2J", {"adapter": "b\x1b]0;x\x07"})], "run", "s\x1b")


async def test_a_conversation_with_an_older_run(
    attached: TuituneApp, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # what is copied is written there too
    async with attached.run_test(size=SIZE) as pilot:
        chat = await chat_of(pilot)
        await until(pilot, lambda: "Who are you?" in screen_text(pilot), seconds=10, what="the run's sample prompt")

        speed = chat.query_one("#speed", Static)
        told = every_text_of(speed, monkeypatch)
        await pilot.press("ctrl+b", "ctrl+b", *"What is the capital of France?", "enter")
        await answered(pilot, chat, 1)
        assert any("█" in each and "Loading the model's weights, " in each and " of 47" in each for each in told), told
        assert set(chat.turns[0].replies) == {"adapter", "base"}
        assert "Paris" in chat.turns[0].replies["base"]
        assert "base model" in screen_text(pilot)

        await pilot.press(*"and", "ctrl+z", "ctrl+y")
        assert attached.clipboard == "\n\n".join(chat.turns[0].replies.values())
        await pilot.press("ctrl+s")
        await settled(pilot)
        (saved,) = (trained.folder / "chats").glob("*.md")
        assert "**You**\n\nWhat is the capital of France?" in saved.read_text() and "**Base**" in saved.read_text()

        await pilot.press("ctrl+o")
        await settled(pilot)
        assert "0 takes the likeliest token" in screen_text(pilot)
        await pilot.press("home", "shift+end", *"hot")
        await until(pilot, lambda: "temperature is 'hot'" in screen_text(pilot), seconds=5)
        await pilot.press("home", "shift+end", "0")
        chat.query_one("#max_new_tokens Input", Input).value = "2"
        await settled(pilot)
        await pilot.press("escape", "ctrl+l")
        await pilot.press("ctrl+b", *"What is the capital of France?", "enter")
        await answered(pilot, chat, 1)
        assert "2 tokens" in screen_text(pilot) and "cut at max_new_tokens" in screen_text(pilot)


async def test_a_new_run_begins_a_new_conversation(attached: TuituneApp, recipe: Recipe) -> None:
    async with attached.run_test(size=SIZE) as pilot:
        chat = await chat_of(pilot)
        await pilot.press(*"hi", "enter")
        await answered(pilot, chat, 1)
        await attached.show_step("lora")
        attached.link.draft = Draft(recipe)
        attached.link.runs_folder = attached.link.runs_folder.parent / "new"
        await attached.start_run()
        await attached.show_step("train")
        await until(pilot, lambda: isinstance(attached.link.history.ended, Finished), what="the end of the run")
        assert (await chat_of(pilot)).turns == []


async def test_escape_stops_a_reply_and_the_next_one_is_answered(attached: TuituneApp) -> None:
    async with attached.run_test(size=SIZE) as pilot:
        chat = await chat_of(pilot)
        pid = (await attached.link.call(Status()))["pid"]
        os.kill(pid, signal.SIGSTOP)  # so that it cannot have answered before it is stopped
        try:
            await pilot.press(*"Hi", "enter")
            await until(pilot, lambda: "Waiting for the first word" in screen_text(pilot), what="the reply is awaited")
            await pilot.press("escape")
            await until(pilot, lambda: not chat.replying, what="the reply is given up")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert chat.is_current and "Stopped." in screen_text(pilot)
        await pilot.press("ctrl+l", *"Hi", "enter")
        await answered(pilot, chat, 1)
        assert chat.turns[0].replies["adapter"]


async def test_a_session_killed_during_a_reply_is_said_and_replaced(attached: TuituneApp) -> None:
    async with attached.run_test(size=SIZE) as pilot:
        chat = await chat_of(pilot)
        pid = (await attached.link.call(Status()))["pid"]
        os.kill(pid, signal.SIGSTOP)  # so that it cannot have answered before it is killed
        await pilot.press(*"Hi", "enter")
        await until(pilot, lambda: "Waiting for the first word" in screen_text(pilot), seconds=10)
        await pilot.resize_terminal(120, 40)
        os.kill(pid, signal.SIGKILL)
        await until(pilot, lambda: "killed by signal 9" in screen_text(pilot), seconds=10, what="what happened")
        assert not chat.turns and not chat.replying
        assert "Hi" in chat.query_one("#prompt").text, "what was asked can be asked again"  # type: ignore[attr-defined]
        await pilot.press("enter")
        await answered(pilot, chat, 1)
        assert "killed by signal 9" not in str(chat.query_one("#problem", Static).render())


async def test_ctrl_c_ends_nothing(attached: TuituneApp) -> None:
    async with attached.run_test(size=SIZE) as pilot:
        chat = await chat_of(pilot)
        await pilot.press(*"Hi", "ctrl+c")
        await settled(pilot)
        assert attached.is_running and chat.is_current
