"""What the dashboard says in words and numbers: pure functions of a run's history."""

import time
from collections.abc import Sequence

from rich.cells import cell_len
from textual.content import Content

from screens.widgets.bars import bar
from screens.widgets.fit import cut, fit
from screens.widgets.metric_plot import method_of_history
from tuitune.language import N_, _, in_language
from tuitune.runs.cost import cost, live_cost, money
from tuitune.runs.events import Failed, Finished, Plan, Sample
from tuitune.runs.folder import Run
from tuitune.runs.history import History
from tuitune.runs.warning import RunWarning
from tuitune.text import one_line
from tuitune.units import count, duration, gib, size

PHASES = {
    "importing": N_("Import the libraries"),
    "data": N_("Read and tokenise the data"),
    "model": N_("Load the model"),
    "adapter": N_("Add the adapter"),
    "before": N_("Measure the model as it is"),
    "training": N_("Train"),
    "saving": N_("Save"),
    "after": N_("Measure it again"),
}
_ENDED = {
    "done": N_("✔ Done after {steps:,} steps in {duration}"),
    "stopped": N_("✔ Stopped after {steps:,} steps in {duration}"),
    "paused": N_("‖ Paused after {steps:,} steps in {duration}"),
}
_BAR_WIDTH = 10
_LEAST_NAME = 8
"""Cells that a run's name has on a line, however much stands beside it."""
NUMBERS_WIDTH = 28
"""Cells of the column beside the curve."""
_OTHER_LINES = 7
"""Beside those of several cards."""
_PACE_WIDTH = 44  # as much as there is beside the progress bar
_NEEDED_LEAST = (N_("rows"), N_("trained"), N_("grad norm"), N_("learning rate"))
# What cannot be counted shows how long it has taken, from here on.
_LONG_SECONDS = 5.0
_LITTLE_DISK_BYTES = 2 * 2**30  # a checkpoint with its optimizer state may need as much
MUTED = "$foreground 60%"


def headline(
    history: History,
    run: Run | None,
    *,
    is_training: bool,
    problem: str | None,
    stopping: str | None = None,
    warnings: Sequence[RunWarning] = (),
    width: int = 0,
) -> Content:
    """One line: which run, and how it stands; `stopping` says when it will stop, once it was asked to.

    In `width` cells, where that is not 0, its name is cut and what it has taken is left out as far as that is needed.
    """
    ended, phase = history.ended, history.phase
    style = ""
    if isinstance(ended, Finished):
        style = "$text-warning" if ended.status == "paused" else "$text-success"
        state: str = _(_ENDED[ended.status], steps=ended.step, duration=duration(history.seconds))
        if result := history.result():
            state = f"{state} · {_change(history, *result[1:])}"
    elif isinstance(ended, Failed) or problem:
        state, style = _("✘ Failed"), "$text-error"
    elif not is_training and history.started:
        state = _("✘ Interrupted at step {step:,}: its session is gone", step=history.step)
        style = "$text-error"
    elif stopping:
        state, style = f"■ {_(stopping)}", "$text-warning"
    elif phase is not None and phase.name == "training" and history.steps:
        state = _("▶ Training")
    elif phase is not None:
        state = f"▶ {in_language(phase.text)}"
    else:
        state = _("◌ Waiting for the session")
    spent: list[str] = []
    if is_training and history.started and ended is None:
        earlier = history.seconds - history.attempts[-1].seconds
        spent.append(f" · {_so_far(earlier + max(0.0, time.time() - history.started.at))}")
        if (live := live_cost(history)) is not None:
            spent.append(f" · {live}")
    elif not is_training and (paid := cost(history)) is not None:
        spent.append(f" · {money(paid.so_far, paid.currency)}")
    titles = [warning.title for warning in warnings if not warning.is_lasting] if is_training and not stopping else []
    more = f" (+{len(titles) - 1})" if len(titles) > 1 else ""
    warned = f" · ! {titles[0]}{more}" if titles else ""
    state = one_line(state, max_length=200)
    left = width - cell_len(f"  {state}{warned}")
    while width and spent and left - cell_len("".join(spent)) < _LEAST_NAME:
        del spent[0]
    name = one_line(run.name, max_length=40) if run else _("New run")
    if width:
        name = cut(name, max(_LEAST_NAME, left - cell_len("".join(spent))))
    return Content.assemble((name, "bold"), "  ", (state, style), "".join(spent), (warned, "$text-warning"))


def _change(history: History, first: float, last: float) -> str:
    """The loss, or the reward, before and now."""
    if history.learns_from_rewards:
        return _("reward {first:.3f} → {last:.3f}", first=first, last=last)
    return _("loss {first:.3f} → {last:.3f}", first=first, last=last)


def _so_far(seconds: float) -> str:
    return _("{duration} so far", duration=duration(seconds))


def _step_of(history: History) -> str:
    return _("step {step:,} of {steps:,}", step=history.step, steps=history.total_steps)


def _time_left(history: History) -> str:
    """Empty where nobody knows."""
    left = history.seconds_left
    return "" if left is None else _("{duration} left", duration=duration(left))


def live_line(history: History, run: Run, *, is_training: bool, problem: str | None, width: int) -> Content:
    """The run in one line of `width` cells: step, loss and time left while it trains, else as the headline."""
    if not (is_training and history.steps):
        return headline(history, run, is_training=is_training, problem=problem, width=width)
    loss = _("loss {loss:.4f}", loss=history.steps[-1].loss)
    progress = "".join(f" · {part}" for part in (_step_of(history), loss, _time_left(history)) if part)
    name = cut(one_line(run.name), max(_LEAST_NAME, width - cell_len(progress)))
    return Content.assemble((name, "bold"), progress)


def pace(history: History, *, problem: str | None = None) -> Content:
    """Progress in words, to stand beside the bar; once the run has ended, what comes next."""
    if isinstance(history.ended, Failed) or (problem and history.ended is None):
        if history.checkpoints or (problem and history.attempts):
            return Content.styled(_("r: go on with it"), "bold $text-success")
        return Content.styled(_("Esc: back to the settings"), "bold")
    if not history.total_steps:
        return Content("")
    text = _step_of(history)
    if isinstance(history.ended, Finished) and history.ended.status == "paused":
        return Content.assemble(text, " · ", (_("r: go on with it"), "bold $text-success"))
    if isinstance(history.ended, Finished) and history.ended.adapter:
        return Content.assemble(text, " · ", (_("Enter: chat with it"), "bold $text-success"))
    epoch = _("epoch {epoch:.2f}", epoch=history.steps[-1].epoch) if history.steps else ""
    left = _time_left(history)
    whole, short = (" · ".join(filter(None, parts)) for parts in ([text, epoch, left], [text, left]))
    return Content(whole if cell_len(whole) <= _PACE_WIDTH else short)


def phases(history: History, height: int = 0) -> Content:
    """The way to the first step: what is done, what is going on, what comes; in `height` lines, where that is not 0."""
    current = history.phase.name if history.phase else "importing"
    names = list(PHASES)
    lines = []
    reached = 0
    for name in names[: names.index("saving")]:
        if names.index(name) < names.index(current):
            lines.append(Content.styled(f"✔ {_(PHASES[name])}", "$text-success"))
        elif name == current and history.phase:
            failed = isinstance(history.ended, Failed)
            glyph, style = ("✘", "bold $text-error") if failed else ("▶", "bold")
            lines.append(Content.styled(f"{glyph} {_(PHASES[name])}", style))
            lines.append(Content(f"  {one_line(in_language(history.phase.text), max_length=200)}"))
            done, total = history.phase.done, history.phase.total
            if done is not None and total:
                progress = _("{done} of {total}", done=count(done), total=count(total))
                lines.append(Content(f"  {bar(done / total, 20)} {progress}"))
            elif history.ended is None and (spent := time.time() - history.phase.at) >= _LONG_SECONDS:
                lines.append(Content.styled(f"  {_so_far(spent)}", MUTED))
            reached = len(lines)
        else:
            lines.append(Content.styled(f"· {_(PHASES[name])}", MUTED))
    end = max(height, reached)  # what comes gives way first, then what is done
    return Content("\n").join(lines[max(0, end - height) : end] if height else lines)


def numbers(history: History, height: int = 0) -> Content:
    """The column beside the curve: the last step, then the machine; in `height` lines, where that is not 0.

    No line is wider than NUMBERS_WIDTH, for all amounts below 10,000 GiB.
    """
    rows: list[tuple[str, str]] = []
    figures: list[str] = []
    """Titles of the method's own figures."""
    if history.steps:
        last = history.steps[-1]
        rows.append((N_("loss"), f"{last.loss:.4f}"))
        if history.evaluations:
            measured = history.evaluations[-1]
            rows.append((N_("held-out"), f"{measured.metrics.get('reward', measured.loss):.4f}"))
        for metric in method_of_history(history).metrics:
            if metric.name in last.metrics:
                rows.append((metric.title, format(last.metrics[metric.name], metric.format)))
                figures.append(metric.title)
        if last.learning_rate is not None:
            rows.append((N_("learning rate"), f"{last.learning_rate:.2e}"))
        if last.grad_norm is not None:
            rows.append((N_("grad norm"), f"{last.grad_norm:.3f}"))
        if last.tokens_per_second is not None:
            rows.append((N_("tokens/s"), f"{last.tokens_per_second:,.0f}"))
    if plan := history.plan:
        share = plan.trainable_parameters / max(1, plan.total_parameters)
        rows.append((N_("trained"), f"{count(plan.trainable_parameters)} ({share:.2%})"))
        rows.append((N_("rows"), f"{plan.rows:,}"))
    machine = _machine(history, height) if history.sample else []
    if history.sample and (not height or len(rows) + len(machine) < height):
        machine.insert(0, _device(history.sample, history.plan))
    too_many = len(rows) + len(machine) - (height or 99)
    needed_least = [*reversed(figures[2:]), *_NEEDED_LEAST]
    left_out = needed_least[: max(0, too_many)]
    lines = [Content.assemble((_padded(_(name), 14), MUTED), value) for name, value in rows if name not in left_out]
    return Content("\n").join([*lines, *machine][: height or None])


def _padded(text: str, width: int) -> str:
    """The text, filled up to `width` cells where it has fewer."""
    return fit(text, max(width, cell_len(text)))


def _device(sample: Sample, plan: Plan | None) -> Content:
    """The card's name, or that there is none."""
    if not sample.gpu_total_bytes:
        return Content.styled(_("No GPU: the CPU trains"), "$text-warning")
    return Content.styled(_fitting(one_line(plan.device if plan else "GPU")), "bold")


def _machine(history: History, height: int) -> list[Content]:
    sample = history.sample
    assert sample is not None
    lines = []
    cards, hosts = history.cards, history.other_hosts
    if len(cards) > 1 or hosts:
        own = [_card(card) for card in cards if not card.host]
        others = [line for host, samples in hosts.items() for line in _host(host, samples)]
        has_room = not height or len(own) + len(others) + _OTHER_LINES <= height
        lines += [*own, *others] if has_room else [_cards(cards)] if cards else []
        if (slowest := history.slowest_card) is not None:
            host, card, share = slowest
            lines.append(Content.styled(f"  {_slowest(card, share)}", "$text-warning"))
            if host:
                lines.append(Content.styled(_fitting(f"  {_('on {host}', host=one_line(host))}"), "$text-warning"))
    elif sample.gpu_total_bytes:
        used = sample.gpu_used_bytes or 0
        lines.append(_memory("GPU", used, sample.gpu_total_bytes))
        of_run, peak = _gib(sample.gpu_process_bytes or 0), _gib(history.peak_gpu_bytes)
        lines.append(Content("  " + _("run {used}, peak {peak} GiB", used=of_run, peak=peak)))
        readings = [
            f"{sample.gpu_percent:.0f} %" if sample.gpu_percent is not None else "",
            f"{sample.gpu_celsius:.0f} °C" if sample.gpu_celsius is not None else "",
            f"{sample.gpu_watts:.0f} W" if sample.gpu_watts is not None else "",
        ]
        lines.append(Content("  " + "  ".join(reading for reading in readings if reading)))
    lines.append(_memory("RAM", sample.host_used_bytes, sample.host_total_bytes))
    of_run = _("run {used}", used=gib(sample.process_bytes))
    if sample.cpu_percent is not None:
        of_run = _("run {used}, CPU {load:.0f} %", used=gib(sample.process_bytes), load=sample.cpu_percent)
    lines.append(Content(f"  {of_run}"))
    if sample.disk_free_bytes is not None:
        lines.append(_disk(sample.disk_free_bytes))
    return lines


def _slowest(card: int, share: float) -> str:
    return _("slowest: GPU {card}, by {share:.0%}", card=card, share=share)


def _host(name: str, samples: Sequence[Sample]) -> list[Content]:
    """Another host: its name, then each of its cards in a line, or its own memory and load where it has none."""
    lines = [Content.styled(_fitting(one_line(name)), MUTED)]
    for sample in samples:
        if sample.gpu_total_bytes:
            lines.append(_card(sample))
        else:
            amount = f"RAM {_gib(sample.host_used_bytes)}/{sample.host_total_bytes / 2**30:.0f} GiB"
            lines.append(Content(f"{amount} CPU {sample.cpu_percent or 0:.0f}%"))
    return lines


def _fitting(text: str) -> str:
    return fit(text, NUMBERS_WIDTH).rstrip()


def _card(sample: Sample) -> Content:
    """One of several cards in a line: memory, load, temperature."""
    load = f"{sample.gpu_percent:3.0f}%" if sample.gpu_percent is not None else "   –"
    degrees = f"{sample.gpu_celsius:3.0f}°C" if sample.gpu_celsius is not None else ""
    share = (sample.gpu_used_bytes or 0) / (sample.gpu_total_bytes or 1)
    style = "$text-error" if share > 0.95 else "$text-warning" if share > 0.85 else ""
    memory = (f"{_gib(sample.gpu_used_bytes or 0):>4} GiB ", style)
    return Content.assemble((f"GPU {sample.gpu_index} ", MUTED), memory, f"{load} {degrees}")


def _cards(cards: Sequence[Sample]) -> Content:
    """Many cards in a line: the most memory, the least load, the highest temperature of any."""
    most = max(card.gpu_used_bytes or 0 for card in cards)
    load = min((card.gpu_percent for card in cards if card.gpu_percent is not None), default=0.0)
    degrees = max((card.gpu_celsius for card in cards if card.gpu_celsius is not None), default=0.0)
    worst = f" ≤{_gib(most)} GiB ≥{load:.0f}% ≤{degrees:.0f}°C"
    return Content.assemble((_("{cards} GPUs", cards=len(cards)), MUTED), worst)


def _disk(free_bytes: int) -> Content:
    if free_bytes < _LITTLE_DISK_BYTES:
        little = _("only {room} free", room=size(free_bytes))
        return Content.assemble((_("Disk"), MUTED), (f" ! {little}", "$text-warning"))
    return Content.assemble((_("Disk"), MUTED), " ", _("{room} free", room=gib(free_bytes)))


def _gib(amount: float) -> str:
    """Bytes in GiB, without the unit, in at most four characters below 10,000."""
    return f"{amount / 2**30:.1f}" if amount < 99.95 * 2**30 else f"{amount / 2**30:.0f}"


def _memory(name: str, used: int, total: int) -> Content:
    share = used / max(1, total)
    style = "$error" if share > 0.95 else "$warning" if share > 0.85 else "$success"
    amount = f" {_gib(used)}/{total / 2**30:.0f} GiB"
    return Content.assemble((f"{name} ", MUTED), (bar(share, _BAR_WIDTH), style), amount)


def messages(history: History, warnings: Sequence[RunWarning] = ()) -> Content:
    """What is wrong with the run, the most serious first; then notices and checkpoints, the newest first."""
    warned = [_warned(warning) for warning in warnings if not warning.is_lasting]
    lines = [(warning.at, _warned(warning)) for warning in warnings if warning.is_lasting]
    lines += [
        (notice.at, Content.styled(f"! {one_line(in_language(notice.text), max_length=400)}", "$text-warning"))
        for notice in history.notices
    ]
    lines += [
        (checkpoint.at, Content(_("✔ Checkpoint of step {step:,} saved", step=checkpoint.step)))
        for checkpoint in history.checkpoints
    ]
    lines.sort(key=lambda line: line[0], reverse=True)
    dated = [Content.assemble((time.strftime("%H:%M:%S ", time.localtime(at)), MUTED), line) for at, line in lines]
    shown = [*warned, *_advice(history), *dated]
    return Content("\n").join(shown[:200]) if shown else Content.styled(_("Nothing to report."), MUTED)


def _advice(history: History) -> list[Content]:
    """What the loss and the figures of another method than imitation say, where beginners err."""
    method = method_of_history(history)
    if not history.steps or not method.metrics:
        return []
    return [Content.styled(f"{method.name}: {_(method.loss_says)}", MUTED)]


def _warned(warning: RunWarning) -> Content:
    return Content.assemble((f"! {warning.text}", "$text-warning"), " ", _("→ {remedy}.", remedy=warning.remedy))


def samples(history: History, step: int | None = None) -> Content:
    """Each sample prompt with its replies before training and after `step` steps; None for the newest.

    Before them, where the model learns from answers of its own, the best and the worst one that the step learnt from.
    """
    lines = _completions(history, step)
    name = _("after") if step is None else _("at {step:,}", step=step)
    for prompt, before, after in history.replies_before_and_after(step):
        lines.append(Content.styled(one_line(prompt, max_length=300), "bold"))
        if before is not None:
            lines.append(Content.assemble((f"  {_padded(_('before'), 8)}", MUTED), one_line(before, max_length=500)))
        if after is not None:
            lines.append(Content.assemble((f"  {_padded(name, 8)}", "$text-success"), one_line(after, max_length=500)))
    return Content("\n").join(lines) if lines else Content.styled(_("No sample prompt is answered yet."), MUTED)


def _completions(history: History, step: int | None) -> list[Content]:
    if not history.completions:
        return []
    shown_step = next(reversed(history.completions)) if step is None else step
    lines = []
    ranks = (
        ("best", N_("best of step {step:,}: {reward:g}"), "$text-success"),
        ("worst", N_("worst of step {step:,}: {reward:g}"), "$text-warning"),
    )
    for rank, title, style in ranks:
        completion = history.completions.get(shown_step, {}).get(rank)
        if completion is None:
            continue
        values = ", ".join(f"{one_line(name, max_length=30)} {value:g}" for name, value in completion.values.items())
        head = (_(title, step=shown_step, reward=completion.reward), f"bold {style}")
        lines.append(Content.assemble(head, (f"  ({values})  {one_line(completion.prompt, max_length=200)}", MUTED)))
        lines.append(Content(f"  {one_line(completion.reply, max_length=600)}"))
    return lines
