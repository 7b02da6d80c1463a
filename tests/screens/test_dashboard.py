"""What the dashboard says of the machine."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from screens.app import TuituneApp
from screens.dashboard import NUMBERS_WIDTH, headline, messages, numbers, pace
from screens.widgets.axes import LEFT, Axes
from tests.screens import histories
from tests.screens.conftest import SIZE, screen_text, settled
from tuitune.machine.hardware import sample
from tuitune.recipe import Recipe
from tuitune.runs.events import Checkpoint, Failed, Sample, Step
from tuitune.runs.folder import Run
from tuitune.runs.history import History
from tuitune.runs.monitor import warnings_of

MIB = 2**20


@pytest.mark.parametrize(
    ("free_bytes", "line"), [(412 * 1024 * MIB, "Disk 412.0 GiB free"), (300 * MIB, "Disk ! only 300.0 MiB free")]
)
def test_a_disk_that_fills_is_told_by_a_glyph(free_bytes: int, line: str) -> None:
    history = histories.of(
        iter([Sample(process_bytes=1, host_used_bytes=1, host_total_bytes=2, disk_free_bytes=free_bytes)])
    )
    assert numbers(history).plain.splitlines()[-1] == line


@pytest.mark.parametrize("gib", [0.5, 10, 99.97, 140, 1999])
def test_no_amount_wraps_and_the_disk_is_told_in_any_height(gib: float) -> None:
    history = histories.of(histories.training())
    used: dict[str, Any] = {
        name: int(gib * 2**30) for name in ("gpu_used_bytes", "gpu_process_bytes", "host_used_bytes", "process_bytes")
    }
    total: dict[str, Any] = dict.fromkeys(("gpu_total_bytes", "host_total_bytes"), 2000 * 2**30)
    assert history.sample is not None
    largest = dataclasses.replace(history.sample, **total, cpu_percent=6400.0, disk_free_bytes=1999 * 2**30)
    history.add(dataclasses.replace(largest, **used))
    for height in (9, 13):
        lines = numbers(history, height).plain.splitlines()
        assert len(lines) == height and max(map(len, lines)) <= 28, lines
        assert lines[0].startswith("loss") and lines[-1].startswith("Disk")


def test_the_disk_is_the_one_that_the_run_is_written_to(tmp_path: Path) -> None:
    assert "GiB free" in numbers(History.of([sample(folder=tmp_path / "not-made-yet")])).plain
    assert sample().disk_free_bytes is None
    assert "Disk" not in numbers(History.of([sample()])).plain


def test_a_run_that_failed_says_what_comes_next() -> None:
    """With something saved it goes on from there; else it is the settings that may help."""
    history = History.of([*histories.training(total=60), Failed(message="CUDA error")])
    history.checkpoints.clear()
    assert pace(history).plain == "Esc: back to the settings"
    history.add(Checkpoint(attempt=1, step=20, path="checkpoints/checkpoint-20"))
    assert pace(history).plain == "r: go on with it"


@pytest.mark.parametrize(
    ("total", "text"),
    [(60, "step 40 of 60 · epoch 0.98 · 40 s left"), (12_345, "step 40 of 12,345 · 6 h 50 min left")],
)
def test_the_time_left_is_told_in_any_case(total: int, text: str) -> None:
    """The epoch is left out where there is no room for both."""
    history = histories.of(histories.training(total=total))
    assert pace(history).plain == text


def test_what_is_wrong_stands_before_the_messages_and_its_worst_in_the_headline() -> None:
    history = histories.of(histories.overfitting())
    warnings = warnings_of(history)
    assert [warning.kind for warning in warnings] == ["overfitting", "shared"]
    lines = messages(history, warnings).plain.splitlines()
    assert lines[0].startswith("! The held-out loss has risen from 0.940 at step 20 to 1.130") and "→ stop" in lines[0]
    assert lines[1].startswith("! Other processes hold 6.0 GiB") and "Checkpoint of step 40" in lines[2]
    run = Run(Path("pirate-5"))
    training = headline(history, run, is_training=True, problem=None, warnings=warnings).plain
    assert training.endswith(" · ! overfitting since step 20 (+1)")
    assert "!" not in headline(history, run, is_training=False, problem=None, warnings=warnings).plain


def test_what_is_known_from_the_beginning_stands_among_the_messages_at_its_time() -> None:
    history = histories.of(histories.training())
    assert history.plan is not None
    history.plan = dataclasses.replace(history.plan, eval_rows=5)
    warnings = warnings_of(history)
    assert "Only 5 rows are held out" in messages(history, warnings).plain.splitlines()[-2]
    assert "held" not in headline(history, None, is_training=True, problem=None, warnings=warnings).plain


@pytest.mark.parametrize(
    "name", ["NVIDIA H200", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "日本製の非常に速い計算用カード"]
)
def test_the_card_is_named_and_nothing_of_it_wraps_from_60_to_141_gib(name: str) -> None:
    history = histories.of(histories.training())
    assert history.sample is not None and history.plan is not None
    history.plan = dataclasses.replace(history.plan, device=name)
    for gib in range(60, 142):
        held: dict[str, Any] = dict.fromkeys(("gpu_total_bytes", "gpu_used_bytes", "gpu_process_bytes"), gib * 2**30)
        history.add(dataclasses.replace(history.sample, **held, gpu_percent=100.0, gpu_celsius=100.0, gpu_watts=1000.0))
        lines = numbers(history).plain.splitlines()
        assert max(map(cell_len, lines)) <= NUMBERS_WIDTH, lines
        assert any(line.startswith(name[:9]) for line in lines)


@pytest.mark.parametrize("cards", [2, 4, 8])
def test_every_card_and_the_slowest_one_are_told_in_any_height(cards: int) -> None:
    history = histories.of(histories.training())
    assert history.sample is not None and history.plan is not None
    history.plan = dataclasses.replace(history.plan, cards=tuple(range(cards)), device=f"{cards} × NVIDIA H200")
    seconds = (0.2,) * (cards - 1) + (0.224,)
    for _ in range(6):
        step = history.steps[-1]
        history.add(dataclasses.replace(step, step=step.step + 1, card_seconds=seconds))
    history.samples.clear()
    for index in reversed(range(cards)):
        used = (34 + index) * 2**30
        history.add(dataclasses.replace(history.sample, gpu_index=index, gpu_used_bytes=used, gpu_percent=90.0 + index))
    for height in (9, 13):
        lines = numbers(history, height).plain.splitlines()
        assert len(lines) <= height and max(map(cell_len, lines)) <= NUMBERS_WIDTH, lines
        told = "GPU 1 35.0 GiB  91%" if cards + 7 <= height else f"{cards} GPUs ≤{33 + cards}.0 GiB ≥90%"
        assert any(line.startswith(told) for line in lines), lines
        assert f"  slowest: GPU {cards - 1}, by 12%" in lines
        assert lines[-1].startswith("Disk")


def test_cards_of_other_hosts_stand_under_their_names_and_go_with_them() -> None:
    history = histories.of(histories.training())
    own = history.sample
    assert own is not None and history.plan is not None
    history.plan = dataclasses.replace(history.plan, cards=(0, 0), hosts=("10.0.0.1", "10.0.0.2"))
    step = history.steps[-1]
    for number in range(1, 7):
        history.add(dataclasses.replace(step, step=step.step + number, card_seconds=(0.2, 0.224)))
    there: dict[str, Any] = {"host": "10.0.0.2", "gpu_used_bytes": 35 * 2**30, "gpu_percent": 91.0}
    history.add(dataclasses.replace(own, **there, gpu_celsius=71.0))
    no_card: dict[str, Any] = dict.fromkeys(("gpu_index", "gpu_total_bytes", "gpu_used_bytes"))
    history.add(dataclasses.replace(own, **no_card, host="a-host-of-a-very-long-name.example.org"))
    lines = numbers(history).plain.splitlines()
    assert max(map(cell_len, lines)) <= NUMBERS_WIDTH, lines
    first = lines.index("GPU 0 10.0 GiB  97%  61°C")
    assert lines[first + 1 : first + 3] == ["10.0.0.2", "GPU 0 35.0 GiB  91%  71°C"]
    assert lines[first + 3].startswith("a-host-of-a-very-long-") and lines[first + 4] == "RAM 21.0/64 GiB CPU 104%"
    assert lines[first + 5 : first + 7] == ["  slowest: GPU 0, by 12%", "  on 10.0.0.2"]
    assert history.sample == own, "memory and disk are those of the host that keeps the run"
    few = numbers(history, 11).plain.splitlines()
    assert len(few) <= 11 and any(line.startswith("2 GPUs ≤35.0 GiB ≥91% ≤71°C") for line in few), few

    history.add(dataclasses.replace(own, at=own.at + 60))
    assert "10.0.0.2" not in numbers(history).plain.replace("on 10.0.0.2", ""), "it has been silent for a minute"


def test_a_machine_without_a_gpu_says_so() -> None:
    history = histories.of(iter([Sample(process_bytes=1, host_used_bytes=1, host_total_bytes=2)]))
    assert "No GPU: the CPU trains" in numbers(history).plain


async def test_more_curves_stand_side_by_side_in_a_larger_terminal(recipe: Recipe, runs_folder: Path) -> None:
    run = histories.write(histories.training(), recipe, runs_folder, "one")
    app = TuituneApp(recipe, runs_folder=runs_folder, attach=run)
    titles = ("Loss", "Learning rate", "Gradient norm", "Tokens per second")
    async with app.run_test(size=SIZE) as pilot:
        for size, shown in (((80, 24), 1), ((120, 40), 2), ((200, 60), 4)):
            await pilot.resize_terminal(*size)
            await settled(pilot)
            text = screen_text(pilot)
            assert [f" {title} " in text.replace("\n", " ") for title in titles] == [
                place < shown for place in range(4)
            ]
            assert "held-out" in text and (shown == 1 or "NVIDIA RTX 4090" in text)


def test_values_close_together_have_labels_that_differ() -> None:
    """As the first losses of DPO."""
    axes = Axes((0.0, 1.0), (0.69302, 0.69331), columns=20, rows=13)
    labels = [label for row in range(13) if (label := axes.left_of(row).rstrip("┤│").strip())]
    assert len(labels) == len(set(labels)) == 4


@pytest.mark.parametrize("ends", [(0.0001, 0.0002), (0.4, 3.2), (0.0, 12.0), (1_200.0, 99_000.0), (2.0e6, 3.1e6)])
def test_labels_of_an_axis_have_one_width(ends: tuple[float, float]) -> None:
    axes = Axes((0.0, 1.0), ends, columns=20, rows=13)
    labels = [axes.left_of(row).rstrip("┤│").strip() for row in range(13)]
    written = [label for label in labels if label]
    assert len(written) == 4 and len({len(label.split(".")[-1]) for label in written if "." in label}) <= 1
    assert all(len(axes.left_of(row)) == LEFT + 1 for row in range(13))


@pytest.mark.parametrize(
    ("losses", "smoothed"), [([2, 2, 2], [2, 2, 2]), ([3, 1], [3, (0.9 * 0.1 * 3 + 0.1 * 1) / (0.9 * 0.1 + 0.1)])]
)
def test_the_smoothed_loss_begins_at_the_loss_itself(losses: list[float], smoothed: list[float]) -> None:
    from screens.widgets.metric_plot import Curves

    steps = [Step(attempt=1, step=step, total_steps=9, epoch=0.1, loss=loss) for step, loss in enumerate(losses, 1)]
    curves = Curves()
    curves.follow(History.of(steps))
    assert list(curves.smoothed[1]) == pytest.approx(smoothed)


def test_a_method_shows_and_draws_its_own_figures_and_says_what_surprises() -> None:
    from screens.widgets.metric_plot import Curves, metrics_of

    history = histories.of(histories.of_pairs())
    shown = numbers(history).plain
    assert "margin        0.600" in shown and "accuracy      0.875" in shown and "kl" not in shown.split()
    few = numbers(history, 12).plain
    assert "margin" in few and "accuracy" in few and "chosen" not in few, "the last figures give way first"
    assert "dpo: The loss begins at 0.693" in messages(history).plain
    assert [metric.title for metric in metrics_of(history)][:4] == ["Loss", "Margin", "Accuracy", "Chosen"]
    curves = Curves()
    curves.follow(history)
    steps, values = curves.of("rewards/margins")
    assert list(steps[:2]) == [1, 2] and values[-1] == pytest.approx(0.6)


def test_a_record_that_tells_of_no_method_or_a_later_one_is_drawn_as_one_of_replies() -> None:
    from screens.widgets.metric_plot import method_of_history

    history = histories.of(histories.training())
    assert method_of_history(history).name == "sft" and "margin" not in numbers(history).plain
    assert history.plan is not None
    history.plan = dataclasses.replace(history.plan, method="of a later version")
    assert method_of_history(history).name == "sft"
