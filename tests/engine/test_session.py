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
from pathlib import Path
from typing import Any

import pytest

from tests.engine.sessions import ended, seen, start_run
from tuitune.errors import TuituneError, UnusableInput
from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Failed, Finished, Notice, Step, to_json
from tuitune.runs.folder import Run, create_run
from tuitune.runs.history import History
from tuitune.session.client import Session, SessionLost
from tuitune.session.preparing_requests import Audit, Columns, Estimate, Rows
from tuitune.session.protocol import decode, encode, forget_dead_sessions, new_socket_path, runtime_folder
from tuitune.session.request import VERSION, Nothing, Request, request
from tuitune.session.result_requests import Chat
from tuitune.session.run_requests import Cancel, Status, Stop, Train
from tuitune.session.worker import Cancelled, Job, Result, Worker


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
    @request
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


@pytest.mark.cold
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
    row = {"prompt": "Count.", "completion": " ".join(str(number) for number in range(120_000))}
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


def test_a_suspended_session_with_all_places_before_it_taken_holds_up_no_new_one() -> None:
    path = new_socket_path()
    with socket.socket(socket.AF_UNIX) as suspended, socket.socket(socket.AF_UNIX) as waiting:
        suspended.bind(str(path))
        suspended.listen(0)
        waiting.connect(str(path))
        os.utime(path, (0, 0))
        looking = threading.Thread(target=forget_dead_sessions, daemon=True)
        looking.start()
        looking.join(20)
        assert not looking.is_alive() and path.exists()
