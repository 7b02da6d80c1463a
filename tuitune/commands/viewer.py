"""Shows a run on plain output: each event as it comes, and at its end what came of it."""

import asyncio
import math
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from tuitune.commands.output import complain
from tuitune.endings import terminal
from tuitune.endings.ending import COUNTDOWN_SECONDS
from tuitune.endings.outcome import Outcome
from tuitune.language import N_, _
from tuitune.runs.cost import cost, live_cost
from tuitune.runs.events import Evaluation, Event, Failed, Finished, Notice, Phase, Plan, Started, Step, to_json
from tuitune.runs.folder import Run
from tuitune.runs.history import History
from tuitune.runs.monitor import Monitor, warnings_of
from tuitune.runs.warning import RunWarning
from tuitune.session.run_requests import EndingStatus
from tuitune.settings import Settings, settings_file
from tuitune.text import one_line, safe_text
from tuitune.units import duration

_LOOKS_A_RUN = 500
_STEPS_OF_PEACE = 50
"""A warning that comes again sooner is the same one."""


def plain_console() -> Console:
    """A rich console that takes no text for markup, and breaks no line."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


class Viewer:
    """Shows a run's events as they come; a subclass chooses the form."""

    def __init__(self, attempts_before: int = 0) -> None:
        """`attempts_before`: how many attempts of the run are only taken in, and not shown."""
        self._attempts_before = attempts_before
        self._attempt = 0
        self.run: Run | None = None
        self.history = History()
        self.ended = asyncio.Event()
        self.left = asyncio.Event()
        """Set once nothing more is to be shown, because of `problem`."""
        self.problem: Exception | None = None
        self._silent = False
        self._told_ending = False

    def add(self, event: Event) -> None:
        """Take in the run's next event, and show it."""
        self.history.add(event)
        if isinstance(event, Started):
            self._attempt = event.attempt
        if self._attempt <= self._attempts_before > 0:
            return
        self._show(lambda: self.show(event))
        if isinstance(event, Finished | Failed):
            self.ended.set()

    def status(self, text: str) -> None:
        """Say what goes on where no event does."""
        self._show(lambda: self.show_status(text))

    def _show(self, show: Callable[[], None]) -> None:
        if self.problem is not None:
            return
        try:
            show()
        except Exception as error:  # the reader of a pipe has gone, a disk is full: no matter for the run
            self.leave(error)

    def leave(self, problem: Exception) -> None:
        """Show nothing more, because of `problem`."""
        self.problem = problem
        self.left.set()

    def tell_silence(self, silent_s: int) -> None:
        """Say that the session has not answered for so long, or with 0 that it answers again."""
        text = (
            _("The session has not answered for {time}; Ctrl+C leaves it", time=duration(silent_s))
            if silent_s
            else _("The session answers again")
        )
        self._show(lambda: self.show_silence(text, bool(silent_s)))

    def tell_ending(self, ending: EndingStatus) -> None:
        """Say which command is about to be run; by default once, on standard error."""
        if not self._told_ending:
            complain(f"{_ending_text(ending)}{_('.')}")
        self._told_ending = True

    def call_user(self) -> None:
        """Have a terminal ring and notify that the run has ended."""
        if self.run is None or self.history.ended is None or not sys.stderr.isatty():
            return
        if Settings.load(settings_file()).notifications:
            text = f"{self.run.name} {_(Outcome.of(self.run, self.history).state)}"
            print(terminal.BELL + terminal.notification(text), end="", file=sys.stderr, flush=True)

    def show_silence(self, text: str, silent: bool) -> None:
        """By default on standard error, when it begins and when it ends."""
        if silent != self._silent:
            complain(f"{text}{_('.')}")
        self._silent = silent

    def show(self, event: Event) -> None:
        raise NotImplementedError

    def show_status(self, text: str) -> None: ...

    def close(self) -> None: ...

    def report(self) -> None: ...


def viewer_for(as_json: bool, attempts_before: int = 0) -> Viewer:
    """A viewer that writes events as JSON lines, or lines and progress for people."""
    return _JsonViewer(attempts_before) if as_json else _TextViewer(attempts_before)


class _JsonViewer(Viewer):
    def show(self, event: Event) -> None:
        print(to_json(event), flush=True)


class _TextViewer(Viewer):
    """Rich progress on a terminal; on anything else a line a phase and about twenty for the steps."""

    def __init__(self, attempts_before: int = 0) -> None:
        super().__init__(attempts_before)
        self.console = plain_console()
        self._phase = ""
        self._next_line = 0
        self._monitor = Monitor()
        self._next_look = 0
        self._warned: dict[str, int] = {}
        """After how many steps each kind of warning was last in force."""
        self._progress: Progress | None = None
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            self._progress = Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True)
            self._task = self._progress.add_task("", total=None)
            self._progress.start()

    def show_status(self, text: str) -> None:
        if self._progress:
            self._progress.update(self._task, description=text, total=None)
        else:
            self.console.print(Text(text))

    def show_silence(self, text: str, silent: bool) -> None:
        self.show_status(text) if self._progress else super().show_silence(text, silent)

    def tell_ending(self, ending: EndingStatus) -> None:
        self.show_status(_ending_text(ending)) if self._progress else super().tell_ending(ending)

    def show(self, event: Event) -> None:
        match event:
            case Started():
                self.console.print(Text(_started_text(event)))
            case Phase():
                if self._progress:
                    text, total = safe_text(event.text), event.total
                    self._progress.update(self._task, description=text, completed=event.done or 0, total=total)
                elif event.text != self._phase:
                    self.console.print(Text(safe_text(event.text)))
                self._phase = event.text
            case Plan():
                self.console.print(Text(plan_text(event)))
            case Step():
                self._step(event)
            case Evaluation():
                if "reward" in event.metrics:
                    reward = event.metrics["reward"]
                    text = _("held-out reward {reward:.3f} at step {step}", reward=reward, step=event.step)
                elif math.isfinite(event.loss):
                    text = _("held-out loss {loss:.3f} at step {step}", loss=event.loss, step=event.step)
                else:
                    text = _("held-out loss is not a number at step {step}", step=event.step)
                self.console.print(Text(text))
            case Notice():
                self.console.print(Text(f"! {safe_text(event.text)}"))
            case _:
                pass
        if isinstance(event, Step) and event.step >= self._next_look:
            self._next_look = event.step + max(1, event.total_steps // _LOOKS_A_RUN)
            self._warn()
        elif isinstance(event, Started):
            self._next_look = 0
            self._warned.clear()

    def _warn(self) -> None:
        """Say what has begun to be wrong with the run, each kind of warning once as long as it lasts."""
        for warning in self._monitor.warnings(self.run, self.history):
            last = self._warned.get(warning.kind, -math.inf)
            self._warned[warning.kind] = self.history.step
            if self.history.step - last > _STEPS_OF_PEACE:
                self.console.print(Text(warning_text(warning)))

    def _step(self, event: Step) -> None:
        reward = event.metrics.get("reward")
        pieces: list[str] = [
            _("step {step}/{total}", step=event.step, total=event.total_steps),
            _("loss {loss:.3f}", loss=event.loss) if reward is None else _("reward {reward:.3f}", reward=reward),
        ]
        if event.tokens_per_second:
            pieces.append(_("{tokens:,.0f} tokens/s", tokens=event.tokens_per_second))
        if (seconds_left := self.history.seconds_left) is not None:
            pieces.append(_("{time} left", time=duration(seconds_left)))
        if (cost_so_far := live_cost(self.history)) is not None:
            pieces.append(str(cost_so_far))
        line = "  ".join(pieces)
        if self._progress:
            self._progress.update(self._task, description=line, completed=event.step, total=event.total_steps)
        elif event.step >= self._next_line or event.step == event.total_steps:
            self._next_line = event.step + max(1, event.total_steps // 20)
            self.console.print(Text(line))

    def close(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None

    def report(self) -> None:
        if self.run is not None:
            print_report(self.run, self.history, self.console)


def warning_text(warning: RunWarning) -> str:
    """One line: what is wrong, and what to do."""
    return f"! {warning.text} → {warning.remedy}{_('.')}"


def plan_text(plan: Plan) -> str:
    """One line on what will be trained."""
    share = plan.trainable_parameters / max(1, plan.total_parameters)
    rows = (
        _("{rows} rows ({held_out} more held out)", rows=plan.rows, held_out=plan.eval_rows)
        if plan.eval_rows
        else _("{rows} rows", rows=plan.rows)
    )
    return _(
        "{rows}, {trained_tokens:,} of {tokens:,} tokens trained; {trainable:,} of {parameters:,} parameters "
        "({share:.2%}); {steps} steps on {device} with {backend}",
        rows=rows,
        trained_tokens=plan.trained_tokens,
        tokens=plan.tokens,
        trainable=plan.trainable_parameters,
        parameters=plan.total_parameters,
        share=share,
        steps=plan.total_steps,
        device=one_line(plan.device),
        backend=one_line(plan.backend),
    )


def print_report(run: Run, history: History, console: Console | None = None) -> None:
    """What came out of a run: loss and replies before and after, and where everything is."""
    console = console or plain_console()
    status = run.status(history)
    lines = ["", _("Run {run}: {status}", run=one_line(run.name), status=_(_STATUS_TEXT[status]))]
    if isinstance(history.ended, Failed):
        lines.append(f"  {safe_text(history.ended.message)}")
    if (result := history.result()) is not None:
        title, first, last = result
        losses = _(
            "{title} {first:.3f} → {last:.3f} over {steps} steps",
            title=_(title),
            first=first,
            last=last,
            steps=history.step,
        )
        lines.append(f"  {losses}")
    if isinstance(history.ended, Finished):
        lines.append(f"  {_('took {time}', time=duration(history.seconds))}")
    lines += [f"  {warning_text(warning)}" for warning in warnings_of(history) if status != "live"]
    if (run_cost := cost(history)) is not None:
        attempts = len(history.attempts)
        cost_line = (
            _("cost {cost} over {attempts} attempts", cost=str(run_cost), attempts=attempts)
            if attempts > 1
            else _("cost {cost}", cost=str(run_cost))
        )
        lines.append(f"  {cost_line}")
    for prompt, before, after in history.replies_before_and_after():
        replies = [(_("prompt"), one_line(prompt, max_length=300))]
        replies += [(_("before"), one_line(before, max_length=600))] if before is not None else []
        replies += [(_("after"), one_line(after, max_length=600))] if after is not None else []
        width = max(cell_len(title) for title in (_("prompt"), _("before"), _("after")))
        lines += ["", *(f"  {set_cell_size(title, width)}  {text}" for title, text in replies)]
    folder = run.folder
    ways = ["", _("everything is in {folder}", folder=one_line(folder))]
    if status in ("interrupted", "stopped", "paused", "failed"):
        ways.append(_("go on with it: {command}", command=own_command("resume", folder)))
    if run.adapter.is_dir():
        ways.append(_("adapter {folder}", folder=one_line(run.adapter)))
        ways.append(_("talk to it: {command}", command=own_command("chat", folder)))
        ways.append(_("take it home: {command}", command=own_command("export", folder, "--to", "gguf:q8_0")))
    lines += [f"  {way}".rstrip() for way in ways]
    console.print(Text("\n".join(lines)))


def _ending_text(ending: EndingStatus) -> str:
    """What the command for the end does, and how to be rid of it."""
    command = safe_text(ending["command"])
    if ending["state"] == "running":
        return _("{command} is running; Ctrl+C leaves it", command=command)
    seconds = ending["seconds"] if ending["seconds"] is not None else COUNTDOWN_SECONDS
    return _("{command} is run in {seconds} s; Ctrl+C cancels it", command=command, seconds=math.ceil(seconds))


def _started_text(event: Started) -> str:
    run = one_line(event.run)
    if event.attempt > 1:
        return _("run {run}, attempt {attempt}", run=run, attempt=event.attempt)
    return _("run {run}", run=run)


def own_command(*arguments: object) -> str:
    """A tuitune command to paste into this machine's shell, with the program's path where it is not on PATH."""
    program = "tuitune" if shutil.which("tuitune") else str(Path(sys.executable).with_name("tuitune"))
    return safe_text(shlex.join([program, *map(str, arguments)]).replace("\n", " "))


_RESULTS = (N_("training loss"), N_("training reward"), N_("held-out loss"), N_("held-out reward"))
"""What `History.result` may be of."""
_STATUS_TEXT = {
    "live": N_("training"),
    "done": N_("done"),
    "stopped": N_("stopped when asked to"),
    "paused": N_("paused"),
    "failed": N_("failed"),
    "interrupted": N_("its session ended before the run did"),
}
