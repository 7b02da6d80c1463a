"""A time estimate rests on a speed that was measured: here, of this model, the first step not counted."""

import os
from pathlib import Path

import pytest

from tuitune.plan.advice import training_seconds
from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Notice, Plan, Sample, Step
from tuitune.runs.folder import all_runs, create_run
from tuitune.runs.glance import Speed, glance, measured_speed


def recipe(model: str, **train: float) -> Recipe:
    return Recipe.from_data({"model": {"name": model}, "data": {"path": "/data/pirate.jsonl"}, "train": train})


def plan(device: str = "NVIDIA H200") -> Plan:
    return Plan(
        backend="unsloth", device=device, rows=332, eval_rows=0, dropped_rows=0, tokens=104_000, trained_tokens=41_000,
        trainable_parameters=11_272_192, total_parameters=1_247_000_000, total_steps=60,
    )  # fmt: skip


def steps(*speeds: float | None) -> list[Event]:
    return [
        Step(attempt=1, step=number, total_steps=60, epoch=0.1, loss=1.0, tokens=2_000, tokens_per_second=speed)
        for number, speed in enumerate(speeds, start=1)
    ]


def run(runs_folder: Path, name: str, model: str, at: float, *events: Event) -> None:
    """A run folder whose record was last written at `at`."""
    writer = create_run(recipe(model), runs_folder, name)
    for event in events:
        writer.append(event)
    writer.close()
    os.utime(writer.run.events_file, (at, at))


def speed(runs_folder: Path) -> Speed | None:
    return measured_speed(runs_folder, "some/model", "NVIDIA H200", "unsloth")


def test_the_newest_run_of_the_model_gives_the_speed(tmp_path: Path) -> None:
    run(tmp_path, "older", "some/model", 1_000, plan(), *steps(90, 900, 900, 900))
    run(tmp_path, "newer", "some/model", 2_000, plan(), *steps(90, 1_390, 1_400, 1_500))
    run(tmp_path, "newest-of-another", "other/model", 3_000, plan(), *steps(90, 5_000, 5_000, 5_000))
    assert speed(tmp_path) == Speed("newer", 1_400)


def test_a_speed_of_another_card_or_of_too_few_steps_is_none(tmp_path: Path) -> None:
    run(tmp_path, "elsewhere", "some/model", 1_000, plan("NVIDIA L4"), *steps(90, 900, 900, 900))
    run(tmp_path, "barely-begun", "some/model", 2_000, plan(), *steps(90, 1_400))
    run(tmp_path, "never-measured", "some/model", 3_000, plan(), *steps(None, None, None, None))
    run(tmp_path, "failed-early", "some/model", 4_000)
    assert speed(tmp_path) is None
    assert speed(tmp_path / "no-such-folder") is None


def test_a_broken_run_is_passed_over(tmp_path: Path) -> None:
    run(tmp_path, "good", "some/model", 1_000, plan(), *steps(90, 1_400, 1_400, 1_400))
    run(tmp_path, "broken", "some/model", 2_000, plan(), *steps(90, 7, 7, 7))
    (tmp_path / "broken" / "recipe.yaml").write_text("model: [")
    assert speed(tmp_path) == Speed("good", 1_400)


def test_a_long_record_is_read_at_both_ends_only(tmp_path: Path) -> None:
    run(tmp_path, "long", "some/model", 1_000, plan(), *steps(*[100.0] * 2_000, *[1_400.0] * 2_000))
    assert (tmp_path / "long" / "events.jsonl").stat().st_size > 10 * 65_536
    assert speed(tmp_path) == Speed("long", 1_400)


def slow(*events: Event) -> list[Event]:
    """Each event followed by ten minutes of samples of the machine, one a second."""
    sample = Sample(
        process_bytes=8 * 2**30, host_used_bytes=2**37, host_total_bytes=2**40, disk_free_bytes=2**40, cpu_percent=12.5,
        gpu_index=0, gpu_used_bytes=2**36, gpu_total_bytes=2**37, gpu_process_bytes=2**36, gpu_percent=99.0,
        gpu_celsius=70.0, gpu_watts=600.0,
    )  # fmt: skip
    return [each for event in events for each in (event, *[sample] * 600)]


def test_slow_steps_are_found_behind_minutes_of_samples(tmp_path: Path) -> None:
    run(tmp_path, "slow", "some/model", 1_000, *slow(plan(), *steps(90, 1_390, 1_400, 1_500)))
    (slow_run,) = all_runs(tmp_path)
    seen = glance(slow_run)
    assert (seen.step, seen.total_steps) == (4, 60)
    assert set(seen.losses) == {1.0}
    assert speed(tmp_path) == Speed("slow", 1_400)


def test_a_run_in_its_first_slow_step_tells_how_many_there_will_be(tmp_path: Path) -> None:
    run(tmp_path, "first", "some/model", 1_000, *slow(plan()))
    (first,) = all_runs(tmp_path)
    assert (glance(first).step, glance(first).total_steps) == (0, 60)


@pytest.mark.parametrize("bytes_before", range(0, 400, 37))
def test_a_step_is_found_wherever_the_blocks_are_cut(tmp_path: Path, bytes_before: int) -> None:
    made = [plan(), Notice(text="x" * bytes_before), *steps(90), Notice(text="y" * 65_000), Notice(text="z" * 400)]
    run(tmp_path, "cut", "some/model", 1_000, *made)
    (cut,) = all_runs(tmp_path)
    assert (glance(cut).step, glance(cut).total_steps) == (1, 60)


def test_a_record_of_one_endless_line_is_looked_at_and_given_up(tmp_path: Path) -> None:
    run(tmp_path, "long-line", "some/model", 1_000, plan(), *steps(90), Notice(text="x" * 3 * 2**20))
    (long_line,) = all_runs(tmp_path)
    assert glance(long_line).step == 1
    with long_line.events_file.open("w") as file:
        file.write('{"event": "step", ' * 2**18)
    assert glance(long_line).step == 0


def test_a_record_that_is_no_file_hides_nothing_and_holds_nobody_up(tmp_path: Path) -> None:
    run(tmp_path, "pipe", "some/model", 1_000, plan())
    run(tmp_path, "good", "some/model", 1_000, plan(), *steps(90))
    (tmp_path / "pipe" / "events.jsonl").unlink()
    os.mkfifo(tmp_path / "pipe" / "events.jsonl")
    told = {each.run.name: (each.status, each.model, each.step) for each in map(glance, all_runs(tmp_path))}
    assert told == {"pipe": ("interrupted", "unreadable record", 0), "good": ("interrupted", "some/model", 1)}


@pytest.mark.parametrize(
    ("train", "seconds"),
    [
        ({"max_steps": -1, "num_train_epochs": 3.0}, 300.0),
        ({"max_steps": 10, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 5}, 10.0),
    ],
)
def test_the_time_is_the_tokens_that_are_seen_by_the_speed(train: dict[str, float], seconds: float) -> None:
    assert training_seconds(recipe("m", **train), rows=1_000, tokens=100_000, tokens_per_second=1_000) == seconds
