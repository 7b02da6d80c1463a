"""The time that is left, told with everything that stops the steps, whatever the machine's clock does."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.engine.recorded_runs import recorded
from tuitune.runs.events import Checkpoint, Evaluation, Event, Finished, Phase, Plan, Reply, Started, Step
from tuitune.runs.history import History
from tuitune.runs.pace import SHARE_OF_TIME

AT = 1_900_000_000.0
STEP_S, EVALUATION_S, REPLY_S, CHECKPOINT_S = 2.0, 10.0, 3.0, 1.0


def timed(
    total: int = 100, eval_steps: int = 10, save_steps: int = 25, first: int = 1, attempt: int = 1
) -> Iterator[tuple[float, Event]]:
    """Made up: the events of a run with the seconds since it began; at each evaluation it replies to two prompts.

    A step takes 2 s, the first of an attempt 30.
    """
    now = 0.0

    def told(event: Event, seconds: float) -> tuple[float, Event]:
        nonlocal now
        now += seconds
        return now, replace(event, at=AT + now, **({"elapsed_s": now} if isinstance(event, Step) else {}))

    yield told(Started(run="run", attempt=attempt, pid=1), 0)
    plan = {"backend": "", "device": "", "dropped_rows": 0, "tokens": 1, "trained_tokens": 1}
    counts = {"trainable_parameters": 1, "total_parameters": 1, "total_steps": total}
    yield told(Plan(rows=100, eval_rows=20, **plan, **counts), 5)  # type: ignore[arg-type]

    def measured(step: int) -> Iterator[tuple[float, Event]]:
        yield told(Evaluation(attempt=attempt, step=step, loss=1.0), EVALUATION_S)
        for prompt in ("one", "two"):
            yield told(Reply(step=step, prompt=prompt, reply=""), REPLY_S)

    if first == 1:
        yield told(Phase(name="before", text=""), 0)
        yield from measured(0)
    yield told(Phase(name="training", text=""), 0)
    for step in range(first, total + 1):
        seconds = STEP_S if step > first else 30.0
        fields = {"epoch": 0.0, "loss": 1.0, "tokens": 100, "tokens_per_second": 100 / seconds}
        yield told(Step(attempt=attempt, step=step, total_steps=total, **fields), seconds)  # type: ignore[arg-type]
        if step % eval_steps == 0 and step < total:
            yield from measured(step)
        if step % save_steps == 0 or step == total:
            yield told(Checkpoint(attempt=attempt, step=step, path=""), CHECKPOINT_S)
    yield told(Phase(name="after", text=""), 0)
    yield from measured(total)
    yield told(Finished(status="done", step=total, seconds=now, adapter="adapter"), 0)


def errors(events: list[tuple[float, Event]], since: int) -> list[float]:
    """After each step from `since` on: by which share of the time that was left it was told wrong."""
    history, end, wrong = History(), events[-1][0], []
    for now, event in events:
        history.add(event)
        if isinstance(event, Step) and event.step >= since:
            assert history.seconds_left is not None
            wrong.append(abs(history.seconds_left - (end - now)) / (end - now))
    return wrong


@pytest.mark.parametrize(("eval_steps", "save_steps"), [(10, 25), (7, 7), (33, 10)])
def test_evaluations_replies_and_checkpoints_to_come_are_in_the_time_left(eval_steps: int, save_steps: int) -> None:
    assert max(errors(list(timed(100, eval_steps, save_steps)), since=34)) < 0.02


def test_what_is_measured_for_the_first_time_late_or_never_is_told_by_its_share_of_the_time() -> None:
    for eval_steps in (160, 10_000):  # in 5% of the time, or not at all
        assert max(errors(list(timed(1_000, eval_steps)), since=34)) < SHARE_OF_TIME


def test_the_first_step_of_an_attempt_says_nothing_of_the_others() -> None:
    assert max(errors(list(timed(first=41, attempt=2)), since=75)) < 0.02


def test_a_machine_that_was_busy_for_some_steps_says_little_of_the_others() -> None:
    """Three of the first thirty steps took five times as long: told of a third of the way on, by at most a tenth."""
    delay, events = 0.0, []
    for now, event in timed():
        if isinstance(event, Step) and event.step in (21, 25, 29):
            delay += 4 * STEP_S
        moved = replace(event, at=event.at + delay)
        if isinstance(moved, Step) and moved.elapsed_s is not None:
            moved = replace(moved, elapsed_s=moved.elapsed_s + delay)
        events.append((now + delay, moved))
    assert max(errors(events, since=34)) < 0.1


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
def test_a_clock_that_is_set_changes_nothing_but_how_stops_are_divided(jump_s: float) -> None:
    """Set back or forward in the middle of the evaluation after step 20."""
    jumped = [
        (now, replace(event, at=event.at + jump_s) if now > 20 * STEP_S + 100 else event) for now, event in timed()
    ]
    assert max(errors(jumped, since=34)) < 0.05


def test_records_without_elapsed_seconds_are_told_by_the_events_own_times() -> None:
    older = [(now, replace(event, elapsed_s=None) if isinstance(event, Step) else event) for now, event in timed()]
    assert max(errors(older, since=34)) < 0.05


def test_steps_done_again_after_memory_ran_out_are_no_slow_step() -> None:
    history = History()
    events = [event for _, event in timed()]
    steps = [event for event in events if isinstance(event, Step)]
    for step in [*steps[:40], *(replace(step, elapsed_s=(step.elapsed_s or 0) + 500) for step in steps[30:40])]:
        history.add(step)
    assert history.pace.seconds_a_step is not None and history.pace.seconds_a_step < 5


def test_a_run_that_is_given_more_steps_has_more_time_left() -> None:
    history = History.of(event for _, event in timed() if getattr(event, "step", 0) <= 50 and event.kind != "finished")
    before = history.seconds_left
    last = history.steps[-1]
    elapsed = (last.elapsed_s or 0) + STEP_S
    history.add(replace(last, at=last.at + STEP_S, step=51, total_steps=200, elapsed_s=elapsed))
    assert before is not None and history.seconds_left is not None
    assert history.seconds_left == pytest.approx(3 * before, rel=0.1)


def test_nothing_is_told_before_two_steps_or_after_the_end() -> None:
    history = History()
    for _, event in timed(total=4):
        assert (history.seconds_left is None) == (history.step < 2 or history.ended is not None)
        history.add(event)
    assert history.ended is not None and history.seconds_left is None


def test_a_real_run_is_told_within_a_tenth_between_a_third_and_two_thirds() -> None:
    """As recorded, with an evaluation every 8 steps, on a machine that did nothing else meanwhile."""
    events = recorded("wrong_replies")
    history, end = History(), events[-1].at
    for event in events:
        history.add(event)
        if isinstance(event, Step) and 27 <= event.step <= 54:
            left = end - event.at
            assert history.seconds_left == pytest.approx(left, rel=0.1), event.step
