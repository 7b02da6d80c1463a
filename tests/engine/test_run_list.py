"""A list of runs tells the truth about each, quickly: what is kept beside a record belongs to it, or is not used."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from tests.engine.records import plan, run, slow, steps
from tuitune.runs import summary
from tuitune.runs.events import Evaluation, Event, Failed, Finished, Notice, Price, Started, Step
from tuitune.runs.folder import Run, RunWriter
from tuitune.runs.summary import cost_text, held_out_text, summaries, summarize

DONE = Finished(status="done", step=3, seconds=141.0, adapter="adapter")


def trained(runs_folder: Path, name: str = "mine", *more: Event) -> Run:
    """A run of three steps that was measured before and after."""
    before, after = Evaluation(attempt=1, step=0, loss=3.1), Evaluation(attempt=1, step=3, loss=0.9)
    started = Started(run=name, attempt=1, pid=1)
    return run(runs_folder, name, "some/model", 1_000, started, plan(), before, *steps(1, 2, 3), after, DONE, *more)


def step(number: int, loss: float, attempt: int = 1, at: float = 0.0) -> Step:
    return Step(at=at, attempt=attempt, step=number, total_steps=9, epoch=0.1, loss=loss)


def nobody_reads_records(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Run) -> Any:
        raise AssertionError(f"the record of {self.name} was read")

    monkeypatch.setattr(Run, "open_events", refuse)


def test_a_run_in_short(tmp_path: Path) -> None:
    trained(tmp_path)
    (told,) = summaries(tmp_path)
    assert (told.name, told.status, told.model, told.method) == ("mine", "done", "some/model", "SFT QLoRA")
    assert (told.data, told.step, told.total_steps) == (("/data/pirate.jsonl",), 3, 60)
    assert (told.held_out, told.losses, told.seconds) == ((3.1, 0.9), (1.0, 1.0, 1.0), 141.0)
    assert told.changed_at == 1_000


def test_the_record_is_not_read_again_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = trained(tmp_path)
    first = summarize(kept)
    with monkeypatch.context() as patched:
        nobody_reads_records(patched)
        assert summarize(kept) == first
    writer = RunWriter(kept)
    writer.append(Started(run="mine", attempt=2, pid=1))
    assert summarize(kept).status == "live"
    writer.append(Failed(message="the disk is full"))
    writer.close()
    assert summarize(kept).status == "failed"
    with monkeypatch.context() as patched:
        nobody_reads_records(patched)
        assert summarize(kept).status == "failed"
    kept.recipe_file.write_text(kept.recipe_file.read_text().replace("some/model", "other/model"))
    assert summarize(kept).model == "other/model"


def test_a_live_run_is_not_kept_and_an_interrupted_one_can_become_live(tmp_path: Path) -> None:
    going = run(tmp_path, "going", "m", 1_000, Started(run="going", attempt=1, pid=1), *steps(1))
    writer = RunWriter(going)
    assert summarize(going).status == "live" and not going.summary_file.exists()
    writer.close()
    assert summarize(going).status == "interrupted" and going.summary_file.exists()
    writer = RunWriter(going)  # a session has taken it, and has not written yet
    assert summarize(going).status == "live"
    writer.close()


HOSTILE = {
    "no JSON": b"\xff\xfe{",
    "another version": {"version": 99},
    "a list": [1, 2],
    "deeply nested": b"[" * 60_000,
    "empty": b"",
    "a status that is a number": {"status": 7},
    "a status of a gigabyte's kind": {"status": ["live"] * 100},
    "losses that are text": {"losses": ["\x1b]52;c;ZXZpbA==\x07"]},
    "a loss of infinity": {"losses": [math.inf]},
    "steps beyond 64 bits": {"step": 2**70},
    "a field too few": {"seconds": None},
    "more than 64 KiB": {"problem": "x" * 70_000},
}


@pytest.mark.parametrize("damage", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_damaged_or_hostile_is_read_anew(damage: Any, tmp_path: Path) -> None:
    kept = trained(tmp_path)
    expected = summarize(kept)
    whole = json.loads(kept.summary_file.read_text())
    if isinstance(damage, bytes):
        kept.summary_file.write_bytes(damage)
    elif isinstance(damage, dict) and "version" not in damage:
        whole["summary"] |= damage
        kept.summary_file.write_text(json.dumps(whole))
    else:
        kept.summary_file.write_text(json.dumps({**whole, **damage} if isinstance(damage, dict) else damage))
    assert summarize(kept) == expected
    assert json.loads(kept.summary_file.read_text())["version"] == 1, "it is whole again"


@pytest.mark.parametrize("name", ["summary.json", "note.txt"])
def test_a_pipe_or_a_link_in_its_place_holds_nobody_up(name: str, tmp_path: Path) -> None:
    kept = trained(tmp_path)
    expected = summarize(kept)
    (kept.folder / name).unlink(missing_ok=True)
    os.mkfifo(kept.folder / name)
    assert summarize(kept) == expected
    (kept.folder / name).unlink()
    (tmp_path / "secret").write_text("a secret")
    (kept.folder / name).symlink_to(tmp_path / "secret")
    assert summarize(kept) == expected
    assert (tmp_path / "secret").read_text() == "a secret"


def test_a_run_that_nothing_can_be_written_to_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = trained(tmp_path)

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(summary, "write_atomic", no_space)
    assert summarize(full).status == "done" and not full.summary_file.exists()


def test_a_resumed_run_counts_the_steps_that_stand_and_all_its_time(tmp_path: Path) -> None:
    first = [Started(at=100, run="r", attempt=1, pid=1), *(step(n, 9.0 - n, at=100 + 10 * n) for n in range(1, 6))]
    second = [Started(at=900, run="r", attempt=2, pid=2), *(step(n, 0.5, 2, 900 + n) for n in range(4, 8))]
    torn = run(tmp_path, "r", "m", 1_000, *first, *second)
    with torn.events_file.open("a") as file:
        file.write('{"event": "step", "at": 1')
    told = summarize(torn)
    assert (told.status, told.step, told.losses) == ("interrupted", 7, (8.0, 7.0, 6.0, 0.5, 0.5, 0.5, 0.5))
    assert told.seconds == 50 + 7


def test_a_record_of_hours_is_told_by_a_few_of_its_losses(tmp_path: Path) -> None:
    run(tmp_path, "slow", "m", 1_000, *slow(plan(), *steps(*[1.0] * 4)))
    (told,) = summaries(tmp_path)
    assert (told.step, told.total_steps, set(told.losses)) == (4, 60, {1.0})
    run(tmp_path, "long", "m", 2_000, *(step(n, n) for n in range(1, 3_001)))
    long = summaries(tmp_path)[0]
    assert long.step == 3_000 and len(long.losses) == 21 and list(long.losses) == sorted(long.losses)
    assert (long.losses[0], long.losses[-1]) == (1.0, 3_000.0)


def test_a_run_in_its_first_slow_step_tells_how_many_there_will_be(tmp_path: Path) -> None:
    run(tmp_path, "first", "m", 1_000, *slow(plan()))
    (told,) = summaries(tmp_path)
    assert (told.step, told.total_steps) == (0, 60)


def test_a_record_of_one_endless_line_is_looked_at_and_given_up(tmp_path: Path) -> None:
    endless = run(tmp_path, "endless", "m", 1_000, plan(), *steps(90), Notice(text="x" * 3 * 2**20))
    assert summarize(endless).step == 1
    endless.events_file.write_text('{"event": "step", ' * 2**18)
    assert summarize(endless).step == 0


def test_a_record_that_is_no_file_hides_nothing_and_holds_nobody_up(tmp_path: Path) -> None:
    pipe = run(tmp_path, "pipe", "some/model", 1_000, plan())
    run(tmp_path, "good", "some/model", 1_000, plan(), *steps(90))
    pipe.events_file.unlink()
    os.mkfifo(pipe.events_file)
    told = {summary.name: (summary.status, summary.problem[:25], summary.step) for summary in summaries(tmp_path)}
    assert told == {"pipe": ("unreadable", "The record cannot be read", 0), "good": ("interrupted", "", 1)}


def test_a_recipe_that_cannot_be_read_hides_no_run(tmp_path: Path) -> None:
    broken = trained(tmp_path)
    broken.recipe_file.write_text("model: [")
    assert (summarize(broken).model, summarize(broken).status) == ("unreadable recipe", "done")
    broken.recipe_file.unlink()
    assert (summarize(broken).model, summarize(broken).status) == ("unreadable recipe", "done")


def test_a_held_out_loss_that_is_not_a_number_is_said_so(tmp_path: Path) -> None:
    told = summarize(trained(tmp_path, "nan", Evaluation(attempt=1, step=4, loss=math.nan)))
    assert told.held_out == (3.1, None) and held_out_text(told) == "3.100 → nan"
    assert summarize(Run(tmp_path / "nan")) == told, "also from what was kept"


def test_a_word_of_a_newer_tuitune_is_shown_as_it_is(tmp_path: Path) -> None:
    kept = trained(tmp_path)
    summarize(kept)
    whole = json.loads(kept.summary_file.read_text())
    whole["summary"]["status"] = "paused"
    kept.summary_file.write_text(json.dumps(whole))
    assert summarize(kept).status == "paused"


def test_runs_are_found_by_words_in_any_case(tmp_path: Path) -> None:
    told = summarize(trained(tmp_path))
    assert told.matches([]) and told.matches(["PIRATE", "done"]) and told.matches(["qlora", "some/"])
    assert not told.matches(["done", "gsm8k"])


def test_a_run_costs_the_time_of_its_attempts_at_their_price(tmp_path: Path) -> None:
    def at(seconds: float, event: Event) -> Event:
        return dataclasses.replace(event, at=1e9 + seconds)

    run(
        tmp_path, "paid", "some/model", 1_000,
        at(0, Started(run="paid", attempt=1, pid=1)), at(1, Price(per_hour=36.0, currency="€")), at(10, step(1, 1.0)),
        at(7_000, Started(run="paid", attempt=2, pid=2)),
        at(7_090, Finished(status="done", step=1, seconds=90, adapter="adapter")),
    )  # fmt: skip
    trained(tmp_path)
    told = {summary.name: summary for summary in summaries(tmp_path)}
    assert told["paid"].cost == pytest.approx(1.0) and cost_text(told["paid"]) == "€1.00"
    assert (told["mine"].cost, cost_text(told["mine"])) == (None, "")
    assert summarize(Run(tmp_path / "paid")) == told["paid"]
