"""The run folder has one writer, survives what is cut short, and replays to the same history."""

import dataclasses
import errno
import fcntl
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuitune.errors import TuituneError, UnusableInput
from tuitune.recipe import Recipe
from tuitune.runs.events import (
    Evaluation,
    Event,
    Failed,
    Finished,
    Notice,
    Plan,
    Reply,
    Sample,
    Started,
    Step,
    from_json,
    is_damaged,
    to_json,
)
from tuitune.runs.folder import Run, RunWriter, all_runs, create_run, find_run
from tuitune.runs.history import History
from tuitune.session.sweep import sweep

RECIPE = Recipe.from_data({"model": {"name": "some/model"}, "data": {"path": "/data/my chats.jsonl"}})


def steps(*losses: float, attempt: int = 1, first: int = 1) -> list[Event]:
    return [
        Step(attempt=attempt, step=first + number, total_steps=10, epoch=0.1, loss=loss, at=100.0 + number)
        for number, loss in enumerate(losses)
    ]


def test_an_event_is_one_line_that_reads_back_equal() -> None:
    for event in (*steps(2.5), Notice(text="line\nbreak \x1b[31m"), Started(run="a", attempt=1, pid=5)):
        assert "\n" not in to_json(event)
        assert from_json(to_json(event)) == event


def test_unknown_events_and_cut_lines_are_left_out() -> None:
    assert from_json('{"event": "from_the_future", "at": 1}') is None
    assert from_json('{"event": "step", "loss": 1.') is None
    assert from_json('{"event": "notice", "at": 1, "text": "x", "new_field": 1}') == Notice(at=1, text="x")
    assert from_json("[" * 100_000) is None


def test_a_plan_names_the_adapted_layers_or_is_from_before_it_could() -> None:
    """So that records of both kinds open."""
    plan = Plan(
        backend="transformers", device="CPU", rows=9, eval_rows=0, dropped_rows=0, tokens=90, trained_tokens=40,
        trainable_parameters=16, total_parameters=160, total_steps=3, target_modules=("q_proj", "conv.out_proj"),
    )  # fmt: skip
    line = to_json(plan)
    assert from_json(line) == plan
    without = line.replace(', "target_modules": ["q_proj", "conv.out_proj"]', "")
    assert without != line and from_json(without) == dataclasses.replace(plan, target_modules=())
    assert from_json(line.replace('"q_proj"', "7")) is None


def test_a_loss_that_is_not_a_number_is_written_as_null_and_read_back_as_one() -> None:
    line = to_json(Evaluation(attempt=1, step=2, loss=math.nan))
    assert '"loss": null' in line
    event = from_json(line)
    assert isinstance(event, Evaluation) and math.isnan(event.loss)


@pytest.mark.parametrize(
    "fields",
    [
        '"step": "2"',
        '"step": 2.5',
        '"step": true',
        '"step": null',
        '"step": 1e30',
        f'"step": {10**30}',
        '"loss": "2.5"',
        '"loss": [2.5]',
        f'"loss": {10**400}',
        '"epoch": null',
        '"epoch": NaN',
        '"grad_norm": {}',
        '"at": null',
        '"at": 1e300',
        '"at": -1',
    ],
)
def test_an_event_of_which_a_field_is_of_another_type_is_left_out(fields: str) -> None:
    whole = to_json(steps(2.5)[0])
    assert from_json(whole) is not None
    assert from_json(f"{whole[:-1]}, {fields}}}") is None


def test_a_damaged_line_is_told_and_hides_nothing_else(tmp_path: Path) -> None:
    """One digit of a loss is another: the line still reads as JSON, and its checksum tells."""
    writer = create_run(RECIPE, tmp_path)
    written = steps(3.0, 2.5, 2.0, 1.5)
    for event in written:
        writer.append(event)
    writer.close()
    lines = writer.run.events_file.read_bytes().splitlines(keepends=True)
    assert not any(is_damaged(line) for line in lines) and [from_json(line) for line in lines] == written
    lines[1] = lines[1].replace(b'"loss": 2.5', b'"loss": 7.5')
    lines[2] = lines[2][:40] + b"\n"
    writer.run.events_file.write_bytes(b"".join(lines) + b'{"event": "st')  # and the last one is being written
    first, notice, last = writer.run.events()
    assert (first, last) == (written[0], written[3])
    assert isinstance(notice, Notice) and "damaged from line 2 on" in notice.text


def test_a_record_without_checksums_is_read_as_before(tmp_path: Path) -> None:
    writer = create_run(RECIPE, tmp_path)
    writer.close()
    written = steps(3.0, 2.5)
    writer.run.events_file.write_text("".join(f"{to_json(event)}\n" for event in written))
    assert list(writer.run.events()) == written


def test_words_and_readings_that_an_event_may_not_hold_are_left_out() -> None:
    assert from_json('{"event": "finished", "status": "live", "step": 1, "seconds": 2.0, "adapter": null}') is None
    assert from_json('{"event": "finished", "status": "done", "step": 1, "seconds": null, "adapter": null}') is None
    reading = from_json(
        '{"event": "sample", "process_bytes": 1, "host_used_bytes": 1, "host_total_bytes": 2, '
        '"gpu_watts": Infinity, "gpu_celsius": 60}'
    )
    assert isinstance(reading, Sample) and (reading.gpu_watts, reading.gpu_celsius) == (None, 60.0)


def test_runs_are_numbered_by_their_data(tmp_path: Path) -> None:
    writers = [create_run(RECIPE, tmp_path) for _ in range(2)]
    assert [writer.run.name for writer in writers] == ["my-chats-1", "my-chats-2"]
    assert writers[0].run.recipe() == RECIPE
    assert oct(writers[0].run.folder.stat().st_mode)[-3:] == "700"
    with pytest.raises(UnusableInput, match="exists"):
        create_run(RECIPE, tmp_path, "my-chats-1")
    with pytest.raises(UnusableInput, match="cannot be a folder name"):
        create_run(RECIPE, tmp_path, "../escape")


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    writer = create_run(RECIPE, tmp_path)
    assert writer.run.status() == "live"
    with pytest.raises(TuituneError, match="in use by another session"):
        RunWriter(writer.run)
    writer.announce(tmp_path / "socket")
    with pytest.raises(
        TuituneError, match=rf"in use by process {os.getpid()} on \S+ since 20\d\d-\d\d-\d\d \d\d:\d\d: "
    ):
        RunWriter(writer.run)
    writer.close()
    assert writer.run.status() == "interrupted"
    RunWriter(writer.run).close()


@pytest.mark.fault
def test_a_killed_writer_leaves_a_record_that_reads(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tuitune.runs.folder import create_run; "
        "from tuitune.recipe import Recipe; from tuitune.runs.events import Notice; "
        "recipe = Recipe.from_data({'model': {'name': 'm'}, 'data': {'path': 'd'}}); "
        "w = create_run(recipe, Path(sys.argv[1]), 'killed'); "
        "w.append(Notice(text='before')); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    run = find_run("killed", tmp_path)
    assert run.status() == "live"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with run.events_file.open("a") as file:
        file.write('{"event": "notice", "te')
    assert run.status() == "interrupted"
    assert [event.text for event in run.events() if isinstance(event, Notice)] == ["before"]


@pytest.mark.fault
def test_a_kill_while_a_run_is_made_takes_no_name(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from tuitune.runs.folder import create_run\n"
        "from tuitune.recipe import Recipe\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"  # as the recipe gets its name
        "recipe = Recipe.from_data({'model': {'name': 'm'}, 'data': {'path': 'd'}})\n"
        "create_run(recipe, Path(sys.argv[1]), 'mine')"
    )
    runs = tmp_path / "runs"
    killed = subprocess.run([sys.executable, "-c", code, str(runs)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert all_runs(runs) == []
    create_run(RECIPE, runs, "mine").close()
    assert [run.name for run in all_runs(runs)] == ["mine"]
    sweep(runs)
    assert len(list(runs.iterdir())) == 2, "it could be another session's that has just begun"
    (left,) = runs.glob(".tuitune-new-*")
    os.utime(left, (0, 0))
    sweep(runs)
    assert [path.name for path in runs.iterdir()] == ["mine"]


def test_a_run_without_its_recipe_is_listed_while_its_name_is_taken(tmp_path: Path) -> None:
    create_run(RECIPE, tmp_path, "half").close()
    (tmp_path / "half" / "recipe.yaml").unlink()
    assert [run.name for run in all_runs(tmp_path)] == ["half"]
    with pytest.raises(UnusableInput, match="A run named half exists"):
        create_run(RECIPE, tmp_path, "half")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UnusableInput, match="A file or folder named mine exists"):
        create_run(RECIPE, tmp_path, "mine")


def test_two_readers_do_not_make_a_dead_run_look_live(tmp_path: Path) -> None:
    writer = create_run(RECIPE, tmp_path)
    writer.close()
    with writer.run.without_session() as unlocked:
        assert unlocked and writer.run.status() == "interrupted"
    handle = os.open(writer.run.folder / ".lock", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    assert not writer.run.is_live()
    os.close(handle)


def test_a_run_is_given_back_though_its_folder_takes_no_change(tmp_path: Path) -> None:
    writer = create_run(RECIPE, tmp_path)
    writer.run.socket_file.mkdir()  # what no unlink can remove
    writer.close()
    assert not writer.run.is_live()


def test_a_run_is_found_by_name_or_folder(tmp_path: Path) -> None:
    writer = create_run(RECIPE, tmp_path, "one")
    writer.append(Finished(status="done", step=1, seconds=1.0, adapter="adapter"))
    writer.close()
    assert find_run("one", tmp_path) == find_run(str(tmp_path / "one"), Path("/nowhere"))
    assert [run.status() for run in all_runs(tmp_path)] == ["done"]
    with pytest.raises(UnusableInput, match=r"There is no run two .*newest runs: one"):
        find_run("two", tmp_path)
    assert all_runs(tmp_path / "missing") == []
    for nowhere in ("~nobody-of-this-name/run", "x" * 300):
        with pytest.raises(UnusableInput, match="There is no run"):
            find_run(nowhere, tmp_path)


def test_a_folder_of_another_user_hides_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_run(RECIPE, tmp_path, "mine").close()
    create_run(RECIPE, tmp_path, "theirs").close()
    look = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:  # as root runs the tests too, whom no mode keeps out
        if "theirs" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return look(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert [run.name for run in all_runs(tmp_path)] == ["mine"]
    with pytest.raises(UnusableInput, match="There is no run theirs"):
        find_run("theirs", tmp_path)


def test_a_resumed_attempt_replaces_the_steps_it_ran_again() -> None:
    history = History.of([*steps(5, 4, 3), *steps(3.5, 2, attempt=2, first=3)])
    assert [(step.step, step.loss) for step in history.steps] == [(1, 5), (2, 4), (3, 3.5), (4, 2)]


def test_a_history_tells_before_and_after() -> None:
    history = History.of(
        [
            Evaluation(attempt=1, step=0, loss=3.0),
            Reply(step=0, prompt="Hi", reply="Hello."),
            *steps(3, 2, 1),
            Evaluation(attempt=1, step=3, loss=1.0),
            Reply(step=3, prompt="Hi", reply="Ahoy!"),
        ]
    )
    assert history.loss_before_and_after() == (3.0, 1.0)
    assert history.replies_before_and_after() == [("Hi", "Hello.", "Ahoy!")]
    assert history.seconds_left == pytest.approx(7.0)
    history.add(Failed(message="x"))
    assert history.seconds_left is None


@pytest.mark.fault
def test_a_clock_that_is_set_changes_no_time_left() -> None:
    done = [
        Step(attempt=1, step=step, total_steps=10, epoch=0.1, loss=1.0, at=at, elapsed_s=float(step))
        for step, at in ((1, 100.0), (2, 101.0), (3, 90_000.0))
    ]
    assert History.of(done).seconds_left == pytest.approx(7.0)
    resumed = Step(attempt=2, step=4, total_steps=10, epoch=0.1, loss=1.0, at=200_000.0, elapsed_s=2.0)
    following = Step(attempt=2, step=5, total_steps=10, epoch=0.1, loss=1.0, at=200_004.0, elapsed_s=6.0)
    assert History.of([*done, resumed, following]).seconds_left == pytest.approx(20.0)


@pytest.mark.fault
def test_a_pipe_in_place_of_the_sockets_name_holds_nobody_up(tmp_path: Path) -> None:
    writer = create_run(RECIPE, tmp_path, "one")
    os.mkfifo(writer.run.socket_file)
    assert writer.run.is_live() and writer.run.session_socket() is None
    writer.close()


def test_a_folder_without_a_lock_is_not_live(tmp_path: Path) -> None:
    assert not Run(tmp_path).is_live()


@pytest.mark.fault
def test_the_next_session_removes_what_killed_ones_left(tmp_path: Path) -> None:
    def leave(run: Run) -> list[Path]:
        left = [
            run.checkpoints / ".partial" / "checkpoint-3",
            run.checkpoints / ".tuitune-removing-checkpoint-1",
            run.folder / ".adapter.partial",
            run.exports / ".tuitune-making-abc",
        ]
        for folder in left:
            folder.mkdir(parents=True)
            (folder / "weights").write_text("half")
        (run.folder / ".tuitune-previous-adapter").mkdir()
        return left

    dead, live = create_run(RECIPE, tmp_path, "dead"), create_run(RECIPE, tmp_path, "live")
    dead.close()
    left, kept = leave(dead.run), leave(live.run)
    (dead.run.checkpoints / "checkpoint-2").mkdir()
    sweep(tmp_path)
    assert not any(path.exists() for path in left)
    assert dead.run.adapter.is_dir(), "the former adapter is back"
    assert [path.name for path in dead.run.checkpoints.iterdir()] == ["checkpoint-2"]
    assert [path.exists() for path in kept] == [True, True, True, False], "no export holds the exports folder"
    live.close()
