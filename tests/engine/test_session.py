"""A session answers while it works, outlives its client only for a run, and leaves nothing behind."""

import asyncio
import gc
import json
import os
import signal
import socket
import stat
import tempfile
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tuitune.errors import TuituneError, UnusableInput
from tuitune.recipe import Recipe
from tuitune.runs.events import Checkpoint, Event, Failed, Finished, Notice, Phase, Reply, Step, to_json
from tuitune.runs.folder import Run, create_run
from tuitune.runs.history import History
from tuitune.session.client import Session, SessionLost
from tuitune.session.messages import (
    VERSION,
    Audit,
    Cancel,
    Chat,
    Columns,
    Estimate,
    Nothing,
    Request,
    Rows,
    Save,
    Status,
    Stop,
    Train,
)
from tuitune.session.protocol import decode, encode, runtime_folder
from tuitune.session.worker import Cancelled, Job, Result, Worker

pytestmark = pytest.mark.usefixtures("warm_sessions")


async def ended(pid: int) -> None:
    """Wait until a process is gone (it stays a zombie until its parent, this test, collects it)."""
    for _ in range(600):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the session process goes on")


async def start_run(session: Session, recipe: Recipe, runs: Path) -> tuple[Run, asyncio.Task[Any]]:
    """Begin training and return its run as soon as the folder exists."""
    folder: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    job = asyncio.create_task(
        session.call(Train(recipe.model_dump(mode="json"), str(runs)), lambda part: folder.set_result(part["run"]))
    )

    def refused(done: asyncio.Task[Any]) -> None:
        if not folder.done():
            folder.set_exception(done.exception() or AssertionError("the run ended without a folder"))

    job.add_done_callback(refused)
    return Run(Path(await folder)), job


async def begun(run: Run) -> None:
    """Wait until a run is in its first step."""
    for _ in range(1200):
        if any(isinstance(event, Phase) and event.name == "training" for event in run.events()):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the training has not begun")


async def seen(session: Session, kind: type[Event]) -> Event:
    """Follow the session's run until an event of this kind."""
    arrived: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
    await session.follow(
        lambda event: arrived.set_result(event) if isinstance(event, kind) and not arrived.done() else None
    )
    return await asyncio.wait_for(arrived, 120)


@pytest.mark.cold
async def test_it_answers_while_the_libraries_are_imported_and_ends_with_its_client() -> None:
    session = await Session.start()
    status = await asyncio.wait_for(session.call(Status()), 5)
    assert status["job"] in (None, "import") and status["run"] is None
    folder = Path(os.environ["XDG_RUNTIME_DIR"]) / "tuitune"
    (socket,) = folder.glob("*.sock")
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    await session.close()
    await ended(status["pid"])
    assert list(folder.iterdir()) == []


async def test_wrong_commands_and_arguments_are_sentences() -> None:
    @dataclass(frozen=True)
    class Dance(Request[Nothing]):
        command = "dance"

    session = await Session.start()
    with pytest.raises(TuituneError, match="knows no command dance"):
        await session.call(Dance())
    with pytest.raises(UnusableInput, match=r"data\.path is missing"):
        await session.call(Estimate({"model": {"name": "x"}, "data": {}}))
    wrongs: list[Request[Any]] = [Rows({}, "0", 1), Rows([], 0, 1), Cancel(job=2**70)]  # type: ignore[arg-type]
    for wrong in wrongs:
        with pytest.raises(UnusableInput, match=f"The command {wrong.command} was given wrong arguments"):
            await session.call(wrong)
    await session.close()


@pytest.mark.fault
async def test_a_line_that_is_no_message_ends_only_that_connection() -> None:
    session = await Session.start()
    (socket,) = (Path(os.environ["XDG_RUNTIME_DIR"]) / "tuitune").glob("*.sock")
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(encode({"version": VERSION}) + b"\xff\x00[[[[\n")
    assert await reader.read() == encode({"version": VERSION})
    writer.close()
    assert (await session.call(Status()))["pid"]
    await session.close()


async def test_an_app_of_another_version_is_told_so() -> None:
    session = await Session.start()
    (socket,) = (Path(os.environ["XDG_RUNTIME_DIR"]) / "tuitune").glob("*.sock")
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(encode({"id": 1, "command": "status"}))  # as versions did that told none
    greeting, answer, *rest = (await reader.read()).splitlines()
    assert decode(greeting) == {"version": VERSION} and decode(answer)["id"] == 1 and not rest
    assert "another version of tuitune: leave, and start" in decode(answer)["error"]
    writer.close()
    assert (await session.call(Status()))["pid"]
    await session.close()


async def test_a_session_of_another_version_is_told_so(tmp_path: Path, demo_recipe: Recipe) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(encode({"id": None, "error": "There is no command.", "exit_code": 1}))

    run = create_run(demo_recipe, tmp_path)
    server = await asyncio.start_unix_server(answer, tmp_path / "socket")
    run.announce(tmp_path / "socket")
    session = await Session.attach(run.run)
    with pytest.raises(SessionLost, match=r"of another version of tuitune; .* a run that is going goes on"):
        await session.call(Status())
    await session.close()
    server.close()
    run.close()


@pytest.mark.fault
async def test_a_killed_session_is_told_in_one_sentence() -> None:
    session = await Session.start()
    status = await session.call(Status())
    waiting = asyncio.create_task(session.call(Rows({"model": {"name": "m"}, "data": {"path": "d"}}, 0, 1)))
    await asyncio.sleep(0)
    os.kill(status["pid"], signal.SIGKILL)
    with pytest.raises(SessionLost, match=r"was killed by signal 9 \(often: memory ran out\); its log is "):
        await waiting
    with pytest.raises(SessionLost):
        await session.call(Status())
    await session.close()


@pytest.mark.fault
async def test_what_a_killed_session_left_is_cleared_away() -> None:
    session = await Session.start()
    os.kill((await session.call(Status()))["pid"], signal.SIGKILL)
    await session.lost.wait()
    await session.close()
    folder = Path(os.environ["XDG_RUNTIME_DIR"]) / "tuitune"
    (left,) = folder.glob("*.sock")
    os.utime(left, (0, 0))
    (folder / "old.log").touch()
    os.utime(folder / "old.log", (0, 0))
    following = await Session.start()
    assert not left.exists() and not (folder / "old.log").exists()
    assert left.with_suffix(".log").exists()  # for a day: who was told of it may look
    assert (await following.call(Status()))["pid"]
    await following.close()


@pytest.mark.parametrize("base", ["file", "relative", "missing"])
def test_a_runtime_folder_that_cannot_be_one_is_not_used(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "relative").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", base if base == "relative" else str(tmp_path / base))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = runtime_folder()
    assert folder == tmp_path / f"tuitune-{os.getuid()}" and stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.fault
async def test_who_does_not_read_the_answers_is_not_read_either() -> None:
    session = await Session.start()
    (path,) = (Path(os.environ["XDG_RUNTIME_DIR"]) / "tuitune").glob("*.sock")
    request = json.dumps({"id": "x" * 2**20, "command": "status"}).encode() + b"\n"  # as long as its answer

    def flood() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.settimeout(5)
            client.sendall(encode({"version": VERSION}))
            for _ in range(400):
                client.sendall(request)

    with pytest.raises(TimeoutError):
        await asyncio.to_thread(flood)
    assert await session.call(Status())
    await session.close()


@pytest.mark.fault
async def test_a_client_has_a_bounded_number_of_commands_waiting(demo_recipe: Recipe) -> None:
    session = await Session.start()
    raw = demo_recipe.model_dump(mode="json")
    calls = [session.call(Columns(raw)) for _ in range(65)]  # the first waits for the libraries' import
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(answer) for answer in answers if isinstance(answer, Exception)] == [
        "64 commands of this client wait already: let some end first."
    ]
    await session.close()


@pytest.mark.fault
async def test_a_session_that_ends_in_the_middle_of_tokenising_leaves_no_rows(
    tmp_path: Path, demo_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    row = {"prompt": "Count.", "completion": " ".join(str(number) for number in range(500))}
    (tmp_path / "many.jsonl").write_text((json.dumps(row) + "\n") * 50_000)
    raw = demo_recipe.model_dump(mode="json")
    raw["data"] |= {"path": str(tmp_path / "many.jsonl"), "max_length": 4096}
    session = await Session.start()
    pid = (await session.call(Status()))["pid"]
    audit = asyncio.create_task(session.call(Audit(raw)))
    tokenised = tmp_path / "cache" / "tuitune" / "tokenised"
    for _ in range(1200):
        if any(tokenised.glob(".making-*")):
            break
        await asyncio.sleep(0.05)
    assert any(tokenised.glob(".making-*")) and not audit.done()
    await session.close()
    await asyncio.gather(audit, return_exceptions=True)
    await ended(pid)
    assert list(tokenised.iterdir()) == []


@pytest.mark.fault
async def test_a_run_outlives_its_client_and_is_found_again(tmp_path: Path, demo_recipe: Recipe) -> None:
    first = await Session.start()
    run, job = await start_run(first, demo_recipe, tmp_path / "runs")
    pid = (await first.call(Status()))["pid"]
    job.cancel()
    await first.close()

    second = await Session.attach(run)
    events: list[Event] = []
    over = asyncio.Event()

    def add(event: Event) -> None:
        events.append(event)
        if isinstance(event, Finished | Failed):
            over.set()

    await second.follow(add)
    await asyncio.wait_for(over.wait(), 120)
    await second.close()
    await ended(pid)

    assert events == list(run.events())
    history = History.of(events)
    assert isinstance(history.ended, Finished) and history.ended.status == "done"
    assert [step.step for step in history.steps] == [1, 2, 3]
    assert {reply.step for reply in history.replies} == {0, 3}
    assert (run.adapter / "adapter_model.safetensors").is_file()
    assert (run.checkpoints / "checkpoint-3" / "manifest.json").is_file()
    assert not run.is_live() and not run.socket_file.exists()


async def test_an_event_of_any_length_reaches_who_follows(tmp_path: Path, demo_recipe: Recipe) -> None:
    session = await Session.start()
    run, job = await start_run(session, demo_recipe, tmp_path / "runs")
    with run.events_file.open("a") as file:
        file.write(to_json(Notice(text="x" * 3 * 2**20)) + "\n")
    await seen(session, Finished)
    await job
    await session.close()


async def test_an_event_or_a_request_beyond_what_a_line_may_hold_ends_no_connection(
    tmp_path: Path, demo_recipe: Recipe
) -> None:
    session = await Session.start()
    run, job = await start_run(session, demo_recipe, tmp_path / "runs")
    with run.events_file.open("a") as file:
        file.write(to_json(Notice(text="x" * 33 * 2**20)) + "\nno JSON\n")
    notices: list[str] = []
    over = asyncio.Event()

    def add(event: Event) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)
        if isinstance(event, Finished):
            over.set()

    await session.follow(add)
    await asyncio.wait_for(over.wait(), 120)
    assert await job == {"status": "done"}
    assert "An event of 33 MiB is too long to be shown; it is in events.jsonl." in notices
    with pytest.raises(UnusableInput, match="larger than 32 MiB: give a shorter text"):
        await session.call(Chat(str(run.folder), [{"role": "user", "content": "x" * 33 * 2**20}]))
    assert await session.call(Status())
    await session.close()


async def test_an_answer_beyond_what_a_line_may_hold_is_an_error_of_its_command(
    tmp_path: Path, demo_recipe: Recipe
) -> None:
    row = {"prompt": "Count.", "completion": " ".join(str(number) for number in range(200_000))}
    (tmp_path / "long.jsonl").write_text(json.dumps(row) + "\n")
    raw = demo_recipe.model_dump(mode="json")
    raw["data"] |= {"path": str(tmp_path / "long.jsonl"), "max_length": 2_000_000}
    session = await Session.start()
    with pytest.raises(TuituneError, match="MiB and may have 32: ask for fewer rows"):
        await session.call(Rows(raw, 0, 1))
    assert await session.call(Status())
    await session.close()


@pytest.mark.fault
async def test_a_run_whose_folder_is_moved_goes_on_to_be_seen_and_saved(tmp_path: Path, demo_recipe: Recipe) -> None:
    train = {**demo_recipe.train.model_dump(), "max_steps": 5000}
    recipe = Recipe.from_data({**demo_recipe.model_dump(), "train": train})
    session = await Session.start()
    run, job = await start_run(session, recipe, tmp_path / "runs")
    events: asyncio.Queue[Event] = asyncio.Queue()
    await session.follow(events.put_nowait)

    async def until(kind: type[Event], text: str = "") -> Event:
        while not isinstance(event := await asyncio.wait_for(events.get(), 120), kind) or text not in str(event):
            pass
        return event

    await until(Step)
    run.folder.rename(tmp_path / "runs" / "moved")
    assert "is in a new folder of that name" in str(await until(Notice, "moved or removed"))
    assert await session.call(Stop()) == {"stopping": "after this step"}
    await until(Finished)
    assert await asyncio.wait_for(job, 60)
    assert (run.adapter / "adapter_model.safetensors").is_file() and run.recipe() == recipe
    assert Run(tmp_path / "runs" / "moved").status() == "stopped"
    await session.close()


async def test_stop_saves_a_checkpoint_and_the_adapter_then_the_model_still_chats(
    tmp_path: Path, demo_recipe: Recipe
) -> None:
    long = Recipe.from_data(
        {**demo_recipe.model_dump(), "train": {**demo_recipe.train.model_dump(), "max_steps": 5000}}
    )
    session = await Session.start()
    run, job = await start_run(session, long, tmp_path / "runs")
    await seen(session, Step)
    assert await session.call(Stop()) == {"stopping": "after this step"}
    assert await asyncio.wait_for(job, 60) == {"status": "stopped"}
    step = run.history().step
    assert (run.checkpoints / f"checkpoint-{step}").is_dir()
    assert (run.adapter / "adapter_model.safetensors").is_file()

    pieces: list[str] = []
    answer = await session.call(
        Chat(str(run.folder), [{"role": "user", "content": "Hello!"}], sampling={"max_new_tokens": 16}),
        lambda part: pieces.append(part["text"]),
    )
    assert "".join(pieces).strip() == answer["reply"] != ""
    with pytest.raises(UnusableInput, match="temperature is -1"):
        await session.call(Chat(str(run.folder), [], sampling={"temperature": -1}))
    await session.close()


async def test_stop_is_asked_by_two_and_still_saves_everything(tmp_path: Path, demo_recipe: Recipe) -> None:
    train = {**demo_recipe.train.model_dump(), "max_steps": 5000, "gradient_accumulation_steps": 32}
    session = await Session.start()
    run, job = await start_run(
        session, Recipe.from_data({**demo_recipe.model_dump(), "train": train}), tmp_path / "runs"
    )
    await seen(session, Step)
    viewer = await Session.attach(run)
    pid = (await session.call(Status()))["pid"]
    for asking in (session, viewer):  # within one step
        assert await asking.call(Stop()) == {"stopping": "after this step"}
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGTERM)
    assert await asyncio.wait_for(job, 300) == {"status": "stopped"}
    step = run.history().step
    assert (run.checkpoints / f"checkpoint-{step}" / "manifest.json").is_file()
    assert (run.adapter / "adapter_model.safetensors").is_file()
    await viewer.close()
    await session.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="what a file descriptor points to is told on Linux")
async def test_a_run_has_its_log_to_itself(tmp_path: Path, demo_recipe: Recipe) -> None:
    session = await Session.start()
    output = f"/proc/{(await session.call(Status()))['pid']}/fd/1"
    before = os.readlink(output)
    run, job = await start_run(session, demo_recipe, tmp_path / "runs")
    assert os.readlink(output) == str(run.log_file)
    await job
    assert os.readlink(output) == before
    await session.close()


async def test_now_ends_the_run_without_a_checkpoint(tmp_path: Path, demo_recipe: Recipe) -> None:
    train = {**demo_recipe.train.model_dump(), "max_steps": 5000, "gradient_accumulation_steps": 512}
    session = await Session.start()
    run, job = await start_run(
        session, Recipe.from_data({**demo_recipe.model_dump(), "train": train}), tmp_path / "runs"
    )
    await seen(session, Reply)
    await session.call(Stop())
    assert await session.call(Stop(now=True)) == {"stopping": "now"}
    assert await asyncio.wait_for(job, 60) == {"status": "stopped"}
    assert run.history().step == 0 and not run.adapter.exists()
    with pytest.raises(UnusableInput, match="has no adapter"):  # though a half-trained one is in memory
        await session.call(Chat(str(run.folder), [{"role": "user", "content": "Hello!"}]))
    await session.close()


async def test_a_run_that_waits_takes_no_stop_and_no_save_from_the_one_that_goes(
    tmp_path: Path, demo_recipe: Recipe
) -> None:
    train = {**demo_recipe.train.model_dump(), "max_steps": 5000}
    long = Recipe.from_data({**demo_recipe.model_dump(), "train": train})
    session = await Session.start()
    run, job = await start_run(session, long, tmp_path / "runs")
    first: dict[str, asyncio.Event] = {Step.kind: asyncio.Event(), Checkpoint.kind: asyncio.Event()}

    def add(event: Event) -> None:
        if event.kind in first:
            first[event.kind].set()

    await session.follow(add)
    await asyncio.wait_for(first[Step.kind].wait(), 120)
    raw = demo_recipe.model_dump(mode="json")
    waiting = asyncio.create_task(session.call(Train(raw, str(tmp_path / "runs"), "second")))
    await session.call(Status())  # so that the session has the second one
    assert await session.call(Stop("second")) == {"stopping": None}
    await session.call(Save(run.name))
    await asyncio.wait_for(first[Checkpoint.kind].wait(), 60)
    assert await session.call(Stop(run.name)) == {"stopping": "after this step"}
    assert await asyncio.wait_for(job, 60) == {"status": "stopped"}
    assert run.history().step < 5000
    assert await asyncio.wait_for(waiting, 120) == {"status": "done"}
    assert await session.call(Stop()) == {"stopping": None}
    await session.close()


async def test_what_fails_in_a_caller_of_a_command_is_its_own(tmp_path: Path, demo_recipe: Recipe) -> None:
    session = await Session.start()

    def fails(part: dict[str, Any]) -> None:
        raise KeyError(part)

    with pytest.raises(KeyError):
        await session.call(Train(demo_recipe.model_dump(mode="json"), str(tmp_path / "runs")), fails)
    await session.call(Stop())
    await session.close()


async def test_what_fails_in_a_follower_ends_neither_its_events_nor_its_commands(
    tmp_path: Path, demo_recipe: Recipe
) -> None:
    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context["exception"]))
    session = await Session.start()
    run, job = await start_run(session, demo_recipe, tmp_path / "runs")
    events: list[Event] = []
    over = asyncio.Event()

    def fails(event: Event) -> None:
        events.append(event)
        if isinstance(event, Finished):
            over.set()
        raise KeyError(event.kind)

    await session.follow(fails)
    assert await asyncio.wait_for(job, 120) == {"status": "done"}
    assert await session.call(Status())
    await asyncio.wait_for(over.wait(), 10)
    assert events == list(run.events()) and len(problems) == len(events)
    await session.close()


@pytest.mark.cold
async def test_a_stop_is_heeded_before_the_run_has_begun(tmp_path: Path, demo_recipe: Recipe) -> None:
    session = await Session.start()
    job = asyncio.create_task(session.call(Train(demo_recipe.model_dump(mode="json"), str(tmp_path / "runs"))))
    await asyncio.sleep(0)  # the libraries are still being imported
    assert await session.call(Stop()) == {"stopping": "after this step"}
    assert await asyncio.wait_for(job, 60) == {"status": "stopped"}
    await session.close()


@pytest.mark.fault
async def test_a_step_that_outlasts_the_signal_to_end_is_given_up(
    tmp_path: Path, demo_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of thousands of passes; the checkpoint before it stays, and what goes on from it is said."""
    monkeypatch.setenv("TUITUNE_GRACE", "0.5")
    train = demo_recipe.train.model_copy(update={"gradient_accumulation_steps": 5000, "num_train_epochs": 100.0})
    session = await Session.start()
    run, job = await start_run(session, demo_recipe.model_copy(update={"train": train}), tmp_path / "runs")
    pid = (await session.call(Status()))["pid"]
    await begun(run)
    os.kill(pid, signal.SIGTERM)
    await asyncio.wait([job], timeout=60)
    await ended(pid)
    assert run.status() == "stopped" and not run.adapter.exists() and job.done()
    (notice,) = [event.text for event in run.events() if isinstance(event, Notice) and "signal" in event.text]
    assert notice.endswith(
        "within 0.5 s of the signal to end, and is given up: `tuitune resume` goes on from the start."
    )


@pytest.mark.cold
@pytest.mark.fault
async def test_a_terminated_session_begins_no_run_and_ends(tmp_path: Path, demo_recipe: Recipe) -> None:
    session = await Session.start()
    job = asyncio.create_task(session.call(Train(demo_recipe.model_dump(mode="json"), str(tmp_path / "runs"))))
    pid = (await session.call(Status()))["pid"]
    os.kill(pid, signal.SIGTERM)
    with pytest.raises(TuituneError):
        await asyncio.wait_for(job, 60)
    await session.close()
    await ended(pid)
    assert not (tmp_path / "runs").exists()


WAITS_FOR_CLIENTS = """
import asyncio, asyncio.base_events
async def wait_closed(self):
    while self._active_count:
        await asyncio.sleep(0.05)
asyncio.base_events.Server.wait_closed = wait_closed
"""


@pytest.mark.fault
async def test_a_terminated_session_ends_though_clients_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(WAITS_FOR_CLIENTS)  # as Python does since 3.12.1
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    session = await Session.start()
    pid = (await session.call(Status()))["pid"]
    os.kill(pid, signal.SIGTERM)
    await asyncio.wait_for(session.lost.wait(), 20)
    await ended(pid)
    await session.close()


def test_an_error_lets_go_of_what_its_job_held_before_the_next_job() -> None:
    class Model:
        pass

    models: list[weakref.ref[Model]] = []
    held: list[Model | None] = []
    over = threading.Event()

    def fail(job: Job) -> Result:
        model = Model()
        models.append(weakref.ref(model))
        raise Cancelled

    def look(job: Job) -> Result:
        gc.collect()
        held.append(models[0]())
        return {}

    worker = Worker()
    worker.start()
    worker.submit(Job("chat", fail, on_part=lambda part: None, on_end=lambda end: None))
    worker.submit(Job("train", look, on_part=lambda part: None, on_end=lambda end: over.set()))
    assert over.wait(5) and held == [None]


async def test_what_cannot_be_trained_is_refused_before_a_run_folder_is_made(
    tmp_path: Path, demo_recipe: Recipe
) -> None:
    session = await Session.start()
    for section, change, says in (
        ("data", {"path": str(tmp_path / "none.jsonl")}, "none.jsonl"),
        ("model", {"name": str(tmp_path)}, str(tmp_path)),
    ):
        raw = demo_recipe.model_dump(mode="json")
        raw[section] |= change
        with pytest.raises(UnusableInput, match=says):
            await session.call(Train(raw, str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()
    await session.close()
