"""A time estimate rests on a speed that was measured: here, of this model, the first step not counted."""

from pathlib import Path

import pytest

from tests.engine.records import plan, recipe, run, slow, steps
from tuitune.plan.advice import training_seconds
from tuitune.runs.events import Notice
from tuitune.runs.speed import Speed, measured_speed


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


def test_slow_steps_are_found_behind_minutes_of_samples(tmp_path: Path) -> None:
    run(tmp_path, "slow", "some/model", 1_000, *slow(plan(), *steps(90, 1_390, 1_400, 1_500)))
    assert speed(tmp_path) == Speed("slow", 1_400)


@pytest.mark.parametrize("bytes_before", range(0, 400, 37))
def test_a_step_is_found_wherever_the_blocks_are_cut(tmp_path: Path, bytes_before: int) -> None:
    before, behind = Notice(text="x" * bytes_before), [Notice(text="y" * 65_000), Notice(text="z" * 400)]
    run(tmp_path, "cut", "some/model", 1_000, plan(), before, *steps(90, 1_400, 1_400, 1_400), *behind)
    assert speed(tmp_path) == Speed("cut", 1_400)


def test_a_record_of_one_endless_line_is_looked_at_and_given_up(tmp_path: Path) -> None:
    run(
        tmp_path,
        "long-line",
        "some/model",
        1_000,
        plan(),
        *steps(90, 1_400, 1_400, 1_400),
        Notice(text="x" * 3 * 2**20),
    )
    assert speed(tmp_path) == Speed("long-line", 1_400)
    with (tmp_path / "long-line" / "events.jsonl").open("w") as file:
        file.write('{"event": "step", ' * 2**18)
    assert speed(tmp_path) is None


@pytest.mark.parametrize(
    ("train", "seconds"),
    [
        ({"max_steps": -1, "num_train_epochs": 3.0}, 300.0),
        ({"max_steps": 10, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 5}, 10.0),
    ],
)
def test_the_time_is_the_tokens_that_are_seen_by_the_speed(train: dict[str, float], seconds: float) -> None:
    assert training_seconds(recipe("m", **train), rows=1_000, tokens=100_000, tokens_per_second=1_000) == seconds
