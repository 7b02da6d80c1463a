"""Links, pipes and devices in place of what tuitune writes are refused: a run folder may come from elsewhere."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from tuitune.endings.command import run_command
from tuitune.endings.outcome import Outcome
from tuitune.errors import TuituneError
from tuitune.export import exports_of
from tuitune.paths import own_folder
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run, RunWriter, create_run
from tuitune.session.client import Session
from tuitune.session.jobs import _log_to
from tuitune.session.protocol import runtime_folder
from tuitune.train import checkpoints

RECIPE = Recipe.from_data({"model": {"name": "m"}, "data": {"path": "/d"}})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    writer = create_run(RECIPE, tmp_path / "runs", "theirs")
    writer.close()
    return writer.run


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file of the user's that a link points to."""
    file = tmp_path / "mine"
    file.write_text("mine\n")
    return file


@pytest.mark.parametrize("name", [".lock", "events.jsonl"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "device"])
def test_nothing_is_recorded_through_them(run: Run, mine: Path, name: str, kind: str) -> None:
    file = run.folder / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to({"link": mine, "dangling link": mine.with_name("new"), "device": Path("/dev/null")}[kind])
    with pytest.raises(OSError, match=r"symbolic links|not a file|No such device or address"):
        RunWriter(run)
    assert mine.read_text() == "mine\n" and not mine.with_name("new").exists()
    file.unlink()
    RunWriter(run).close()  # nothing was left held


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_nothing_is_logged_through_them(run: Run, mine: Path, kind: str) -> None:
    os.mkfifo(run.log_file) if kind == "pipe" else run.log_file.symlink_to(mine)
    before = os.fstat(1).st_ino, os.fstat(2).st_ino
    _log_to(run.log_file)
    assert (os.fstat(1).st_ino, os.fstat(2).st_ino) == before and mine.read_text() == "mine\n"


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_the_command_for_the_end_prints_through_none_of_them(run: Run, mine: Path, kind: str) -> None:
    os.mkfifo(run.log_file) if kind == "pipe" else run.log_file.symlink_to(mine)
    outcome = Outcome.of(run, run.history())
    assert asyncio.run(run_command(["sh", "-c", "echo printed"], run, outcome)) == 0
    assert mine.read_text() == "mine\n"


def test_nothing_is_saved_through_them(run: Run, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "documents").mkdir(parents=True)
    run.checkpoints.mkdir()
    checkpoints.staged_checkpoints(run).symlink_to(elsewhere)
    (run.folder / ".adapter.partial").symlink_to(elsewhere)
    assert not checkpoints.staged_adapter(run).is_symlink()
    checkpoints.tidy(run)
    assert not checkpoints.staged_checkpoints(run).is_symlink()
    assert [path.name for path in elsewhere.iterdir()] == ["documents"], "what a link leads to is not ours to tidy"


def test_no_small_file_is_waited_for_that_is_a_pipe(run: Run) -> None:
    (run.exports / "adapter").mkdir(parents=True)
    for file in (run.folder / "environment.json", run.exports / "adapter" / "tuitune_export.json"):
        file.unlink(missing_ok=True)
        os.mkfifo(file)
    assert run.libraries() == {} and exports_of(run) == []


def test_small_files_take_the_place_of_links(run: Run, mine: Path) -> None:
    for file in (run.resolved_file, run.socket_file):
        file.unlink(missing_ok=True)
        file.symlink_to(mine)
    writer = RunWriter(run)
    run.keep_resolved(RECIPE)
    writer.announce(Path("/socket"))
    assert mine.read_text() == "mine\n" and not run.resolved_file.is_symlink() and not run.socket_file.is_symlink()
    writer.close()


def test_sockets_lie_in_no_folder_that_a_link_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").mkdir(mode=0o755)
    (tmp_path / "runtime" / "tuitune").symlink_to(tmp_path / "theirs")
    with pytest.raises(TuituneError, match="belongs to someone else: remove it"):
        runtime_folder()
    assert stat.S_IMODE((tmp_path / "theirs").stat().st_mode) == 0o755
    with pytest.raises(TuituneError, match="belongs to someone else"):
        own_folder(tmp_path / "runtime" / "tuitune")


async def test_no_socket_is_spoken_to_that_a_link_leads_to(run: Run, tmp_path: Path) -> None:
    spoken: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        spoken.append(await reader.readline())

    server = await asyncio.start_unix_server(listen, tmp_path / "theirs.sock")
    (tmp_path / "link.sock").symlink_to(tmp_path / "theirs.sock")
    writer = RunWriter(run)
    writer.announce(tmp_path / "link.sock")
    with pytest.raises(TuituneError, match="has no live session"):
        await Session.attach(run)
    writer.announce(tmp_path / "theirs.sock")
    session = await Session.attach(run)
    await asyncio.sleep(0.1)
    assert len(spoken) == 1
    await session.close()
    server.close()
    writer.close()
