"""A conversation on plain output."""

import asyncio
import contextlib
import json
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from tuitune.chat.reply import loading_text
from tuitune.commands.status import DONE
from tuitune.errors import TuituneError, UnusableInput
from tuitune.runs.folder import Run
from tuitune.session.client import Session, SessionLost
from tuitune.session.messages import Answer, Chat
from tuitune.text import one_line, safe_text


def chat(run: Run, *, prompt: str | None, adapter: bool, checkpoint: str | None, as_json: bool) -> int:
    """One reply to `prompt`, or to standard input where that is no terminal; else a conversation."""
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
    if prompt is None and as_json:
        raise UnusableInput("--json answers one prompt: give it with --prompt TEXT or on standard input.")
    if prompt is not None and not prompt.strip():
        raise UnusableInput("The prompt is empty: give some text with --prompt TEXT or on standard input.")
    if prompt is None:
        return _converse(run, adapter, checkpoint)
    return asyncio.run(_one_reply(run, prompt, adapter, checkpoint, as_json))


async def _one_reply(run: Run, prompt: str, adapter: bool, checkpoint: str | None, as_json: bool) -> int:
    session = await Session.start()
    try:
        request = Chat(str(run.folder), [{"role": "user", "content": prompt}], adapter, checkpoint=checkpoint)
        answer = await _reply(session, request, quietly=as_json)
    finally:
        await session.close()
    print(json.dumps({"prompt": prompt, "adapter": adapter, **answer}) if as_json else "", flush=True)
    return DONE


def _converse(run: Run, adapter: bool, checkpoint: str | None) -> int:
    """Ask and answer in turn; the event loop rests while the user types, so that Ctrl+C is theirs at once."""
    print(f"Chat with {one_line(run.name)}.", end=" ")
    print("/base and /adapter switch who answers, /clear forgets; Ctrl+C stops, Ctrl+D leaves.")
    messages: list[dict[str, str]] = []
    with asyncio.Runner() as loop:
        session = loop.run(Session.start())
        try:
            while (line := _ask("adapter" if adapter else "base")) is not None:
                text = line.strip()
                if text in ("/base", "/adapter"):
                    adapter = text == "/adapter"
                elif text == "/clear":
                    messages.clear()
                elif text.startswith("/") and " " not in text:
                    print(f"There is no {safe_text(text)}: /base, /adapter, /clear, or Ctrl+D to leave.")
                elif text:
                    said = {"role": "user", "content": text}
                    try:
                        request = Chat(str(run.folder), [*messages, said], adapter, checkpoint=checkpoint)
                        answer = loop.run(_reply(session, request))
                    except KeyboardInterrupt:
                        print("\nStopped; this turn is forgotten.")
                    except SessionLost:
                        raise
                    except TuituneError as error:
                        print(f"! {safe_text(error)}")
                    else:
                        messages += [said, {"role": "assistant", "content": answer["reply"]}]
                        print()
        finally:
            loop.run(session.close())
    return DONE


async def _reply(session: Session, request: Chat, *, quietly: bool = False) -> Answer:
    """Print a reply as it comes; what it waits for is told on a terminal's standard error until its first word."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    with console.status(Text("Waiting for the model")) as waiting:

        def show(part: dict[str, Any]) -> None:
            if "loading" in part:
                waiting.update(Text(loading_text(**part)))
            elif "notice" in part:
                console.print(Text(f"! {safe_text(part['notice'])}"))
            elif not quietly:
                waiting.stop()
                print(safe_text(part.get("text", "")), end="", flush=True)

        return await session.call(request, show)


def _ask(who: str) -> str | None:
    """What the user says; a paste of several lines is one message, where Python has readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() uses it from here on)
    try:
        return input(f"{who}> ")
    except (EOFError, KeyboardInterrupt):
        print()
        return None
