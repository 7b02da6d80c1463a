"""The commands' way of doing what the screens do: follow a run, chat, export and report on plain output."""

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Awaitable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from tuitune.chat.reply import loading_text
from tuitune.commands.viewer import Viewer, own_command, plain_console, viewer_for
from tuitune.errors import TuituneError, UnusableInput
from tuitune.recipe import Recipe
from tuitune.runs.events import finite
from tuitune.runs.folder import Run
from tuitune.session.client import Session, SessionLost
from tuitune.streams import OutputLost
from tuitune.text import one_line, safe_text

DONE, FAILED, INTERRUPTED = 0, 1, 130


# --- a run ---------------------------------------------------------------------------------------------------------


def run_recipe(recipe: Recipe, runs_folder: Path, *, name: str | None, as_json: bool) -> int:
    """Train a recipe in a session of its own, show it as it goes, and end with a report."""
    return asyncio.run(_run_recipe(recipe, runs_folder, name, viewer_for(as_json)))


def follow_run(run: Run) -> int:
    """Show a run from its first event to its end; one that has ended is shown from its record."""
    return asyncio.run(_follow_run(run, viewer_for(as_json=False)))


async def _run_recipe(recipe: Recipe, runs_folder: Path, name: str | None, viewer: Viewer) -> int:
    session = await Session.start()
    session.on_silence = viewer.tell_silence
    interrupted = _stop_on_signals(session, viewer)
    try:
        viewer.status("Starting: importing the libraries")
        await _while_seen(session, viewer, _train(session, viewer, recipe, runs_folder, name))
    except TuituneError as error:
        viewer.close()
        if not interrupted.is_set():
            raise
        print(f"tuitune: {safe_text(error)}", file=sys.stderr)
        return INTERRUPTED
    finally:
        viewer.close()
        await session.close()
    viewer.report()
    return INTERRUPTED if interrupted.is_set() else DONE


async def _train(session: Session, viewer: Viewer, recipe: Recipe, runs_folder: Path, name: str | None) -> None:
    """Train, and give every event to the viewer. Raises TuituneError."""
    begun = asyncio.Event()

    def on_part(part: dict[str, Any]) -> None:
        if "run" in part:
            viewer.run = Run(Path(part["run"]))
            begun.set()

    raw = recipe.model_dump(mode="json")
    job = asyncio.create_task(session.call("train", on_part, recipe=raw, runs=str(runs_folder), name=name))
    job.add_done_callback(lambda _: begun.set())
    await begun.wait()
    if viewer.run is not None:
        with contextlib.suppress(SessionLost):  # which the job tells
            await session.follow(viewer.add)
    await job
    await _first(viewer.ended.wait(), session.lost.wait())


async def _follow_run(run: Run, viewer: Viewer) -> int:
    viewer.run = run
    try:
        session = await Session.attach(run)
    except TuituneError:
        for event in run.events():
            viewer.add(event)
        if viewer.problem is not None:
            raise viewer.problem from None
    else:
        session.on_silence = viewer.tell_silence
        try:
            await _while_seen(session, viewer, _follow(session, viewer))
        finally:
            viewer.close()
            await session.close()
    viewer.close()
    viewer.report()
    return DONE if run.status() in ("done", "stopped") else FAILED


async def _follow(session: Session, viewer: Viewer) -> None:
    """Give every event to the viewer until the run or its session has ended."""
    with contextlib.suppress(SessionLost):  # the report says how the run stands
        await session.follow(viewer.add)
    await _first(viewer.ended.wait(), session.lost.wait())


async def _while_seen(session: Session, viewer: Viewer, work: Coroutine[Any, Any, None]) -> None:
    """Do the work for as long as the viewer can show it. Raises TuituneError, also where a run goes on unseen."""
    if isinstance(viewer.problem, OutputLost):
        work.close()
        raise TuituneError(f"{viewer.problem} Nothing was started.") from None
    task = asyncio.create_task(work)
    await _first(task, viewer.left.wait())
    if not task.done():
        await session.close()  # first, as a command whose caller is cancelled is cancelled too
        await asyncio.gather(task, return_exceptions=True)
    elif viewer.problem is None:
        await task
    if viewer.problem is None:
        return
    if viewer.run is None or viewer.history.ended is not None or not isinstance(viewer.problem, OutputLost):
        raise viewer.problem
    back = own_command("attach", viewer.run.folder)
    raise TuituneError(f"{viewer.problem} Run {one_line(viewer.run.name)} goes on; come back to it with: {back}")


async def _first(*ends: Awaitable[Any]) -> None:
    """Wait until one of them has ended."""
    tasks = [asyncio.ensure_future(end) for end in ends]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def _stop_on_signals(session: Session, viewer: Viewer) -> asyncio.Event:
    """Ctrl+C asks the session to stop, a second one to stop now. Returns what is set once a stop was asked for.

    A third one leaves, as does the first where the session does not answer. SIGTERM only ever asks to stop: who sends
    it (systemd, Slurm) may send it to the session and twice.
    """
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()
    asked: dict[str, asyncio.Task[Any]] = {}

    def ask(command: str) -> None:
        viewer.status("Stopping now" if command == "now" else "Stopping after this step; Ctrl+C once more stops now")
        interrupted.set()
        asked[command] = asyncio.create_task(session.stop(now=command == "now"))
        asked[command].add_done_callback(lambda done: done.exception() if not done.cancelled() else None)
        if session.silent_s:
            leave()

    def leave() -> None:
        run, pid = viewer.run, session.pid
        what = f"Run {one_line(run.name)}" if run else "The run"
        back = f"`{own_command('attach', run.folder)}` shows it, " if run else ""
        viewer.leave(
            TuituneError(f"{what} was asked to stop and has not ended yet: {back}`kill -9 {pid}` ends its session.")
        )

    def interrupt() -> None:
        leave() if "now" in asked else ask("now" if interrupted.is_set() else "stop")

    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, lambda: ask("stop"))
    return interrupted


# --- chat ----------------------------------------------------------------------------------------------------------


def chat(run: Run, *, prompt: str | None, adapter: bool, as_json: bool) -> int:
    """One reply to `prompt`, or to standard input where that is no terminal; else a conversation."""
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
    if prompt is None and as_json:
        raise UnusableInput("--json answers one prompt: give it with --prompt TEXT or on standard input.")
    if prompt is not None and not prompt.strip():
        raise UnusableInput("The prompt is empty: give some text with --prompt TEXT or on standard input.")
    if prompt is None:
        return _converse(run, adapter)
    return asyncio.run(_one_reply(run, prompt, adapter, as_json))


async def _one_reply(run: Run, prompt: str, adapter: bool, as_json: bool) -> int:
    session = await Session.start()
    try:
        answer = await _reply(session, run, [{"role": "user", "content": prompt}], adapter, quietly=as_json)
    finally:
        await session.close()
    print(json.dumps({"prompt": prompt, "adapter": adapter, **answer}) if as_json else "", flush=True)
    return DONE


def _converse(run: Run, adapter: bool) -> int:
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
                        answer = loop.run(_reply(session, run, [*messages, said], adapter))
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


async def _reply(
    session: Session, run: Run, messages: list[dict[str, str]], adapter: bool, *, quietly: bool = False
) -> dict[str, Any]:
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

        return await session.call("chat", show, run=str(run.folder), messages=messages, adapter=adapter)


def _ask(who: str) -> str | None:
    """What the user says; a paste of several lines is one message, where Python has readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() uses it from here on)
    try:
        return input(f"{who}> ")
    except (EOFError, KeyboardInterrupt):
        print()
        return None


# --- export --------------------------------------------------------------------------------------------------------


def export_run(run: Run, kinds: list[str], out: Path | None, *, allow_download: bool, as_json: bool) -> int:
    """Export a run in every kind asked for and say where each lies; FAILED where one could not be made."""
    from tuitune.export import llama_cpp, require_known

    needed = any(kind.gguf for kind in require_known(kinds)) and llama_cpp.find() is None
    if needed and not allow_download and sys.stdin.isatty() and not as_json:
        allow_download = input(f"{llama_cpp.download_question()} [y/N] ").strip().lower() in ("y", "yes")
    return asyncio.run(_export(run, kinds, out, allow_download, as_json))


async def _export(run: Run, kinds: list[str], out: Path | None, allow_download: bool, as_json: bool) -> int:
    session = await Session.start()
    seen: set[tuple[str, str]] = set()
    exports: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []

    def show(part: dict[str, Any]) -> None:
        if "exported" in part:
            exports.append(part["exported"])
            if not as_json:
                _print_exported(part["exported"])
        elif "failed" in part:
            failed.append(part["failed"])
            print(f"tuitune: {part['failed']['kind']}: {safe_text(part['failed']['error'])}", file=sys.stderr)
        elif not as_json and (key := (str(part.get("kind")), str(part.get("text")))) not in seen:
            seen.add(key)
            print(safe_text(": ".join(key)), flush=True)

    try:
        await session.call(
            "export",
            show,
            run=str(run.folder),
            kinds=kinds,
            out=str(out) if out else None,
            allow_download=allow_download,
        )
    finally:
        if as_json and (exports or failed):  # what was finished before the rest was stopped or lost, too
            print(json.dumps({"exports": exports, "failed": failed}), flush=True)
        await session.close()
    return FAILED if failed else DONE


def _print_exported(export: dict[str, Any]) -> None:
    lines = [f"\n{export['kind']}: {safe_text(export['path'])} ({export['bytes'] / 10**6:,.1f} MB)"]
    lines += [f"  ! {safe_text(notice)}" for notice in export["notices"]]
    lines += [f"  {safe_text(each['what'])}:\n    {safe_text(each['line'])}" for each in export["commands"]]
    print("\n".join(lines), end="\n\n", flush=True)


# --- listings ------------------------------------------------------------------------------------------------------


def print_runs(runs: Iterable[Run], folder: Path, *, as_json: bool) -> None:
    """Every run with its status, steps and loss; as JSON one line a run."""
    found = False
    for run in runs:
        found = True
        try:
            history = run.history()
        except UnusableInput as error:  # one that cannot be read hides no other
            if as_json:
                print(json.dumps({"run": run.name, "folder": str(run.folder), "status": "unreadable"}))
            else:
                print(f"{one_line(run.name):<32} {'unreadable':<12} {one_line(error)}")
            continue
        status = run.status(history)
        losses = history.loss_before_and_after()
        if as_json:
            loss = {"loss_before": finite(losses[0]), "loss_after": finite(losses[1])} if losses else {}
            steps = {"step": history.step, "total_steps": history.total_steps}
            print(json.dumps({"run": run.name, "folder": str(run.folder), "status": status, **steps, **loss}))
        else:
            loss_text = f"  loss {losses[0]:.3f} → {losses[1]:.3f}" if losses else ""
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(history.last_at)) if history.last_at else ""
            steps_text = f"{history.step}/{history.total_steps} steps"
            print(f"{one_line(run.name):<32} {status:<12} {steps_text:<14} {when}{loss_text}")
    if not found and not as_json:
        print(f"There is no run in {safe_text(folder)} yet: start one with `tuitune` or `tuitune run RECIPE`.")


def print_masks(rows: Iterable[dict[str, Any]]) -> None:
    """Rows with their trained tokens underlined and between ⟦ ⟧, so that no colour is needed to tell them."""
    console = plain_console()
    for row in rows:
        if "error" in row:
            console.print(Text(f"row {row['row']}: {safe_text(row['error'])}\n"))
            continue
        console.print(Text(f"row {row['row']}: {row['trained_tokens']} of {row['total_tokens']} tokens trained"))
        text, trained = Text(), False
        for token in [*row["tokens"], {"text": "", "trained": False}]:
            if token["trained"] != trained:
                text.append("⟦" if token["trained"] else "⟧", style="bold green")
                trained = token["trained"]
            text.append(safe_text(token["text"]), style="underline green" if trained else "dim")
        console.print(text, end="\n\n")


def print_findings(findings: Iterable[Any]) -> None:
    """What `doctor` found, with the remedy where there is one."""
    for each in findings:
        print(f"{each.status:<5} {safe_text(each.name)}: {safe_text(each.text)}")
        if each.remedy:
            print(f"      → {safe_text(each.remedy)}")
