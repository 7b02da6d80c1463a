"""What is said of a run that goes wrong, on records of real runs; and that nothing is said of a healthy one."""

import random
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import DEMO
from tests.engine.recorded_runs import recorded
from tuitune.commands.run import follow_run
from tuitune.commands.status import DONE
from tuitune.recipe import Recipe
from tuitune.runs.events import Checkpoint, Evaluation, Event, Finished, Plan, Sample, Step
from tuitune.runs.folder import create_run
from tuitune.runs.history import History
from tuitune.runs.machine_warnings import CHECKPOINTS_AT_ONCE
from tuitune.runs.monitor import Facts, Monitor, warnings_of
from tuitune.runs.training_warnings import rising_loss
from tuitune.runs.warning import RunWarning
from tuitune.train.checkpoints import KEPT_CHECKPOINTS

GIB = 2**30
AT = 1_900_000_000.0


NO_FACTS = Facts()


def told(events: Iterable[Event], facts: Facts = NO_FACTS) -> dict[str, tuple[int, RunWarning]]:
    """The last warning of each title's kind while the events come, and after which step it was first said."""
    history = History()
    said: dict[str, tuple[int, RunWarning]] = {}
    for event in events:
        history.add(event)
        for warning in warnings_of(history, facts):
            first, _ = said.get(warning.kind, (history.step, warning))
            said[warning.kind] = (first, warning)
    return said


def changed(name: str, **fields: object) -> list[Event]:
    """A record with some fields of its plan set."""
    return [replace(event, **fields) if isinstance(event, Plan) else event for event in recorded(name)]  # type: ignore[arg-type]


# --- the training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["healthy", "healthy_single_rows"])
def test_nothing_is_said_of_a_healthy_run(name: str) -> None:
    assert told(recorded(name)) == {}


@pytest.mark.parametrize("spread", [0.05, 0.3, 0.6])
def test_nothing_is_said_of_losses_and_gradients_that_only_differ_by_chance(spread: float) -> None:
    """Made up: 20 runs whose losses fall by a half, each step's loss and gradient lognormal around that."""
    for seed in range(20):
        chance = random.Random(seed)
        total = 160
        events = [
            Step(
                at=AT + step,
                attempt=1,
                step=step,
                total_steps=total,
                epoch=step / 100,
                loss=(0.6 + 0.6 * 0.97**step) * chance.lognormvariate(0, spread),
                grad_norm=0.5 * chance.lognormvariate(0, spread),
                learning_rate=2e-4,
                tokens=(tokens := chance.randrange(200, 4_000)),
                tokens_per_second=tokens / (0.2 + tokens / 2_000 * chance.lognormvariate(0, 0.1)),
            )
            for step in range(1, total + 1)
        ]
        assert told(events) == {}, seed


def test_a_loss_that_stands_still_is_told_with_the_learning_rate() -> None:
    first, warning = told(recorded("standing_still"))["loss"]
    assert first == 40
    assert "does not fall" in warning.title and "1.0e-09 is too low" in warning.text
    assert "raise train.learning_rate" in warning.remedy


def test_without_held_out_rows_a_loss_that_stands_still_is_told_only_where_rows_differ_little() -> None:
    def without_evaluations(spread: float) -> list[Event]:
        chance = random.Random(1)
        steps = [event for event in recorded("standing_still") if isinstance(event, Step)]
        return [replace(step, loss=4.0 + chance.gauss(0, spread), at=AT + step.step) for step in steps]

    assert set(told(without_evaluations(0.05))) == {"loss"}
    assert told(without_evaluations(1.0)) == {}


def test_a_learning_rate_that_destroys_the_model_is_told() -> None:
    first, warning = told(recorded("rate_too_high"))["loss"]
    assert 10 < first <= 30
    assert warning.title == "the loss rises" and warning.step < 12
    assert "lower train.learning_rate" in warning.remedy


def test_overfitting_is_told_from_the_step_it_began_at() -> None:
    events = recorded("wrong_replies")
    history = History.of(events)
    best = min(history.evaluations, key=lambda evaluation: evaluation.loss)
    first, warning = told(events)["overfitting"]
    assert 0 < best.step < first < history.total_steps
    assert warning.step == best.step and f"at step {best.step} to" in warning.text
    assert f"checkpoint of step {best.step}" in warning.remedy
    assert [standing.kind for standing in warnings_of(history)] == ["overfitting"], "also once it has ended"


def test_a_held_out_loss_that_only_rises_names_no_checkpoint() -> None:
    """Made up: the same run, whose held-out loss was lowest before the first step."""
    only_rising = [
        replace(event, loss=0.5 + event.step / 100) if isinstance(event, Evaluation) else event
        for event in recorded("wrong_replies")
    ]
    _, warning = told(only_rising)["overfitting"]
    assert warning.step == 0 and warning.remedy.startswith("stop: the model was better before; train fewer steps")


def test_a_held_out_loss_that_rises_with_the_training_loss_is_not_called_overfitting() -> None:
    rising = [
        replace(event, loss=5.0 + event.step / 50) if isinstance(event, Step) else event
        for event in recorded("wrong_replies")
    ]
    assert "overfitting" not in told(rising)


def test_a_held_out_loss_that_is_no_number_breaks_nothing() -> None:
    events = recorded("wrong_replies")
    numbers = [replace(event, loss=float("nan")) if isinstance(event, Evaluation) else event for event in events]
    assert "overfitting" not in told(numbers)


def test_odd_rows_are_told_as_a_jump_that_comes_back() -> None:
    events = recorded("odd_rows")
    losses = {event.step: event.loss for event in events if isinstance(event, Step)}
    _, warning = told(events)["spike"]
    assert losses[warning.step] == max(loss for step, loss in losses.items() if step > 30)
    assert "has come back" in warning.text and "tuitune audit" in warning.remedy


def test_a_jump_that_stays_is_told_as_one() -> None:
    """Made up: the healthy run, whose loss is 4 from step 60 on."""
    broken = [
        replace(event, loss=event.loss + 4) if isinstance(event, Step) and event.step >= 60 else event
        for event in recorded("healthy")
    ]
    warnings = told(broken)
    first, warning = warnings["spike"]
    assert first == 60 and "has not come back" in warning.text
    assert warnings["loss"][1].title == "the loss rises"


@pytest.mark.parametrize(
    ("norms", "titles"), [((0.0,) * 5, {"no gradient"}), ((90.0, 120.0), {"gradients out of range"}), ((90.0,), set())]
)
def test_gradients_out_of_the_runs_own_range_are_told(norms: tuple[float, ...], titles: set[str]) -> None:
    """Made up: the healthy run, with other gradient norms at its end; a single long one is clipped."""
    steps = [event for event in recorded("healthy") if isinstance(event, Step)]
    last = [replace(step, grad_norm=norm) for step, norm in zip(steps[-len(norms) :], norms, strict=True)]
    assert {warning.title for _, warning in told([*steps[: -len(norms)], *last]).values()} == titles


@pytest.mark.parametrize(("rows", "is_told"), [(0, False), (1, True), (15, True), (16, False)])
def test_few_held_out_rows_are_told(rows: int, is_told: bool) -> None:
    warnings = told(changed("healthy", eval_rows=rows))
    assert (set(warnings) == {"held-out rows"}) == is_told
    if is_told:
        assert warnings["held-out rows"][1].is_lasting


# --- the machine ----------------------------------------------------------------------------------------------------


def test_a_processor_that_others_use_is_told_by_the_steps() -> None:
    first, warning = told(recorded("shared_processor"))["pace"]
    assert first > 90, "the other programs begin after step 90"
    assert "times as long as at first" in warning.text and "nvidia-smi" not in warning.remedy


def test_longer_rows_are_not_told_as_slower_steps() -> None:
    """Made up: rows grow longer over the run, and a token takes as long as ever."""
    steps = [
        Step(
            at=AT + step,
            attempt=1,
            step=step,
            total_steps=400,
            epoch=0.1,
            loss=1.0 - step / 800,
            tokens=(tokens := 500 + 10 * step + 400 * (step % 3)),
            tokens_per_second=tokens / (0.5 + tokens / 1_000),
        )
        for step in range(1, 401)
    ]
    assert told(steps) == {}


def card(**fields: object) -> list[Event]:
    """Made up: the healthy run, with 30 samples of an H200 before its end."""
    *events, last = [event for event in recorded("healthy") if not isinstance(event, Finished)]
    sample = Sample(
        at=last.at,
        process_bytes=GIB,
        host_used_bytes=GIB,
        host_total_bytes=64 * GIB,
        disk_free_bytes=100 * GIB,
        gpu_total_bytes=140 * GIB,
        gpu_used_bytes=100 * GIB,
        gpu_celsius=91.0,
    )
    return [*events, *[replace(sample, at=last.at + second, **fields) for second in range(30)]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("causes", "clock", "title"),
    [
        ((), None, None),
        (("heat",), 0.7, "GPU slowed by heat"),
        (("heat",), None, "GPU slowed by heat"),
        (("power limit",), 0.75, None),  # as a card at full load does
        (("power limit",), 0.4, "GPU slowed by power limit"),
        (("power limit",), None, None),
        (("power limit", "power brake"), 0.5, "GPU slowed by power brake"),
        (("something new",), 0.5, None),
    ],
)
def test_a_card_that_is_held_down_is_told(causes: tuple[str, ...], clock: float | None, title: str | None) -> None:
    warnings = told(card(gpu_slowed_by=causes, gpu_clock_share=clock))
    assert ([warning.title for _, warning in warnings.values()]) == ([title] if title else [])


def test_a_card_that_was_slowed_for_a_moment_is_not_told() -> None:
    events = card()
    heat = [
        replace(event, gpu_slowed_by=("heat",)) if isinstance(event, Sample) and number % 3 == 0 else event
        for number, event in enumerate(events)
    ]
    assert told(heat) == {}


@pytest.mark.parametrize(("held", "is_told"), [(None, False), (0, False), (6 * GIB, False), (8 * GIB, True)])
def test_a_card_that_others_use_is_told(held: int | None, is_told: bool) -> None:
    warnings = told(card(gpu_others_bytes=held))
    assert (set(warnings) == {"shared"}) == is_told
    if is_told:
        assert "hold 8.0 GiB of the GPU's 140.0 GiB" in warnings["shared"][1].text


def on_disk(free_bytes: int, *, checkpoints: int, step: int = 20) -> list[Event]:
    """The plan and first steps of the healthy run (389,120 trained parameters, 80 steps), and how full the disk is."""
    events = [event for event in recorded("healthy") if isinstance(event, Plan) or getattr(event, "step", 99) <= step]
    saved = [Checkpoint(at=AT, attempt=1, step=number, path="") for number in range(checkpoints)]
    sample = Sample(process_bytes=1, host_used_bytes=1, host_total_bytes=2, disk_free_bytes=free_bytes)
    return [*[event for event in events if not isinstance(event, Checkpoint)], *saved, sample]


MIB = 2**20


@pytest.mark.parametrize(
    ("free_bytes", "checkpoints", "facts", "is_told"),
    [
        (5 * MIB, 0, Facts(), True),  # 4.5 MiB for one by the plan, 1.5 for the adapter
        (7 * MIB, 0, Facts(), False),
        (7 * MIB, 0, Facts(save_steps=10), True),  # 6 to come, of which 4 at once
        (20 * MIB, 0, Facts(save_steps=10), False),
        (20 * MIB, 0, Facts(save_steps=10, checkpoint_bytes=10 * MIB), True),
        (20 * MIB, 3, Facts(save_steps=10, checkpoint_bytes=10 * MIB), False),  # from now on each takes another's place
    ],
)
def test_a_disk_that_fills_before_the_end_is_told(
    free_bytes: int, checkpoints: int, facts: Facts, is_told: bool
) -> None:
    warnings = told(on_disk(free_bytes, checkpoints=checkpoints), facts)
    assert (set(warnings) == {"disk"}) == is_told


def test_as_many_checkpoints_are_expected_as_are_kept() -> None:
    assert CHECKPOINTS_AT_ONCE == KEPT_CHECKPOINTS + 2, "the best, and one that is being written"


def test_what_a_checkpoint_takes_is_read_from_the_runs_folder(tmp_path: Path) -> None:
    recipe = Recipe.load(DEMO / "demo.yaml", ["save_steps=10"])
    writer = create_run(recipe, tmp_path, "run")
    assert Facts.of(writer.run) == Facts(save_steps=10)
    folder = writer.run.checkpoints / "checkpoint-10"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(bytes(12 * MIB))
    assert Facts.of(writer.run) == Facts(save_steps=10, checkpoint_bytes=12 * MIB)
    history = History.of(on_disk(20 * MIB, checkpoints=1))
    assert [warning.kind for warning in Monitor().warnings(writer.run, history)] == ["disk"]
    writer.run.recipe_file.write_text("model: 7")
    assert Facts.of(writer.run) == Facts(checkpoint_bytes=12 * MIB)
    writer.close()


def test_what_was_wrong_with_the_machine_is_not_told_once_the_run_has_ended() -> None:
    end = Finished(status="done", step=80, seconds=1.0, adapter="adapter")
    history = History.of([*card(gpu_slowed_by=("heat",)), end])
    assert warnings_of(history) == []


def test_the_worst_comes_first_and_a_long_run_is_judged_in_milliseconds() -> None:
    steps = [event for event in recorded("healthy") if isinstance(event, Step)]
    history = History()
    for number in range(1, 50_001):
        history.add(replace(steps[number % 40 + 40], step=number, total_steps=50_000, at=AT + number))
    for number in range(50_001, 50_101):
        history.add(replace(steps[-1], step=number, total_steps=50_101, at=AT + number, loss=9.0))
    began = time.perf_counter()
    warnings = [warnings_of(history) for _ in range(5)]
    assert (time.perf_counter() - began) / 5 < 0.1
    assert warnings[0][0].kind == "loss"
    assert rising_loss(history) == warnings[0][0]


# --- on plain output ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "begins_with"), [("wrong_replies", "! The held-out loss has risen"), ("healthy", None)]
)
def test_a_warning_is_one_line_as_it_begins_and_stands_in_the_report(
    name: str, begins_with: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = create_run(Recipe.load(DEMO / "demo.yaml"), tmp_path, "run")
    for event in recorded(name):
        writer.append(event)
    writer.close()
    assert follow_run(writer.run) == DONE
    during, _, report = capsys.readouterr().out.partition("Run run: done")
    for text in (during, report):
        warned = [line.strip() for line in text.splitlines() if line.lstrip().startswith("!")]
        assert len(warned) == (1 if begins_with else 0)
        assert all(line.startswith(begins_with or "") and " → stop, and take" in line for line in warned)


def test_a_run_of_rewards_is_warned_of_answers_alike_and_cut_and_not_of_its_loss() -> None:
    plan = Plan(
        backend="transformers", device="CPU", rows=8, eval_rows=2, dropped_rows=0, tokens=80, trained_tokens=0,
        trainable_parameters=1, total_parameters=2, total_steps=60, method="grpo",
    )  # fmt: skip
    assert warnings_of(History.of([plan])) == []

    def titles(reward: float, alike: float, cut: float) -> list[str]:
        metrics = {"reward": reward, "frac_reward_zero_std": alike, "completions/clipped_ratio": cut}
        steps = [
            Step(attempt=1, step=step, total_steps=60, epoch=0.1, loss=0.0, grad_norm=0.0, metrics=metrics)
            for step in range(1, 51)
        ]
        return [warning.title for warning in warnings_of(History.of([plan, *steps]))]

    assert titles(0.4, 0.2, 0.1) == []
    assert titles(0.0, 1.0, 0.95) == ["rewards do not differ", "answers do not end"]
