"""What follows a run's end: who is told, by real servers; and a command that is named, checked and run."""

import asyncio
import http.server
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tuitune.endings import command, ending, notify, terminal
from tuitune.endings.ending import Ending
from tuitune.endings.outcome import Outcome
from tuitune.errors import TuituneError, UnusableInput
from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Failed, Finished, Notice, Price, Started, Step
from tuitune.runs.folder import Run, create_run
from tuitune.settings import Settings, settings_file

SECRET = "tk_very-secret"
OUTCOME = Outcome("pirate-1", "done", 60, 60, 3.1, 0.4, 141.0, 0.1, "$")


class Web:
    """A web server of its own: what it was sent, and how it answers."""

    def __init__(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        web = self
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                web.requests.append((self.command, self.path, dict(self.headers), body))
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(status: int = 200, headers: dict[str, str] | None = None) -> Iterator[Web]:
    web = Web(status, headers)
    try:
        yield web
    finally:
        web.close()


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as web:
        yield web


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    for name in ("WEBHOOK", "NTFY"):
        monkeypatch.delenv(f"TUITUNE_{name}", raising=False)
        monkeypatch.delenv(f"TUITUNE_{name}_TOKEN", raising=False)


# --- who is told ---------------------------------------------------------------------------------------------------


def test_a_webhook_is_sent_the_outcome_as_json(web: Web) -> None:
    notify.send_webhook(Settings(webhook=f"{web.address}/hook?key=1", webhook_token=SECRET), OUTCOME)
    ((method, path, headers, body),) = web.requests
    assert (method, path) == ("POST", "/hook?key=1")
    assert headers["Content-Type"] == "application/json" and headers["Authorization"] == f"Bearer {SECRET}"
    told = json.loads(body)
    assert (told["run"], told["state"], told["step"], told["loss_after"]) == ("pirate-1", "done", 60, 0.4)
    assert (told["seconds"], told["cost"], told["currency"]) == (141.0, 0.1, "$")
    assert told["text"] == "pirate-1 is done: 60 of 60 steps, loss 3.100 → 0.400, 2 min 21 s, $0.10"


def test_ntfy_is_sent_the_sentence(web: Web) -> None:
    notify.send_ntfy(Settings(ntfy=f"{web.address}/mine", ntfy_token=SECRET), OUTCOME)
    ((_, path, headers, body),) = web.requests
    assert path == "/mine" and headers["Authorization"] == f"Bearer {SECRET}" and headers["Title"] == "tuitune"
    assert body.decode() == str(OUTCOME)


def test_a_topic_is_one_of_ntfy_sh_or_an_address() -> None:
    assert notify.ntfy_address("my_topic-1") == "https://ntfy.sh/my_topic-1"
    assert notify.ntfy_address("https://ntfy.example.org/t") == "https://ntfy.example.org/t"


@pytest.mark.parametrize(
    "name", ["a\r\nX-Planted: 1", "\x1b]0;planted\x07", "räuber\N{RIGHT-TO-LEFT OVERRIDE}", "\udcff"]
)
def test_a_hostile_name_of_a_run_adds_no_header_and_no_control(web: Web, name: str, tmp_path: Path) -> None:
    history = Run(tmp_path).history()
    outcome = Outcome.of(Run(tmp_path / name), history)
    notify.send_ntfy(Settings(ntfy=f"{web.address}/t"), outcome)
    notify.send_webhook(Settings(webhook=web.address), outcome)
    for _, _, headers, body in web.requests:
        assert "X-Planted" not in headers
        assert not set(body) & {0x1B, 0x07, 0x0D}


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "ftp://host/x",
        "http:///path",
        "https://host:99999/",
        "https://host/a b",
        "https://host/\r\nX-Planted: 1",
        "https://hôst/",
        "//host/x",
        "javascript:1",
        "https://[::1",
    ],
)
def test_what_is_no_web_address_is_not_sent_to(address: str) -> None:
    with pytest.raises(UnusableInput, match="address cannot be used") as refused:
        notify.send_webhook(Settings(webhook=address), OUTCOME)
    assert address not in str(refused.value)
    with pytest.raises(UnusableInput, match="address cannot be used"):
        notify.send_ntfy(Settings(ntfy=address), OUTCOME)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UnusableInput, match="holds a user or password") as refused:
        notify.require_webhook(f"https://me:{SECRET}@host/")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_takes_no_token_elsewhere(web: Web, status: int) -> None:
    with serving(status, {"Location": f"{web.address}/elsewhere"}) as first:
        with pytest.raises(TuituneError, match=f"status {status}: redirects are not followed"):
            notify.send_webhook(Settings(webhook=f"{first.address}/{SECRET}", webhook_token=SECRET), OUTCOME)
        assert len(first.requests) == 1
    assert web.requests == []


def refused_by(address: str) -> str:
    """The sentence of a webhook that could not be told."""
    with pytest.raises(TuituneError) as error:
        notify.send_webhook(Settings(webhook=f"{address}/{SECRET}", webhook_token=SECRET), OUTCOME)
    assert SECRET not in str(error.value) and "Traceback" not in str(error.value)
    return str(error.value)


def test_a_server_that_refuses_or_is_not_there_is_a_sentence_without_the_secret() -> None:
    with serving(500) as broken:
        assert "127.0.0.1 answered with status 500" in refused_by(broken.address)
        address = broken.address
    assert "Connection refused" in refused_by(address)


def test_a_server_that_talks_nonsense_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(65536)
            connection.sendall(b"\x1b]0;planted\x07 not HTTP at all\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        assert "did not answer as a web server does" in refused_by(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "SECONDS_TO_ANSWER", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        refused_by(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - began < 5


def test_a_token_that_no_header_holds_is_refused(web: Web) -> None:
    with pytest.raises(TuituneError, match="token has characters"):
        notify.send_webhook(Settings(webhook=web.address, webhook_token="a\r\nX-Planted: 1"), OUTCOME)
    assert web.requests == []


# --- the user's settings -------------------------------------------------------------------------------------------


def test_secrets_are_kept_for_this_user_alone_and_shown_nowhere(tmp_path: Path) -> None:
    kept = Settings(file=settings_file(), webhook=f"https://host/{SECRET}", ntfy_token=SECRET, price="€2")
    kept.save()
    assert stat.S_IMODE(settings_file().stat().st_mode) == 0o600
    assert Settings.load(settings_file()) == kept and SECRET not in repr(kept)


def test_the_environment_comes_before_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUITUNE_NTFY", "from-environment")
    settings = Settings(ntfy="from-file", webhook="https://host/").with_environment()
    assert (settings.ntfy, settings.webhook) == ("from-environment", "https://host/")


@pytest.mark.parametrize("text", ["", "[]", '{"price": 3, "ntfy": ["x"], "folded": "yes", "unknown": 1}', "{" * 9_999])
def test_settings_that_are_wrong_are_left_out(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text)
    assert Settings.load(tmp_path / "settings.json") == Settings()


# --- the terminal --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "begins"),
    [
        ({"TERM": "xterm-kitty"}, "\x1b]99;"),
        ({"TERM": "foot"}, "\x1b]777;"),
        ({"TERM": "xterm-ghostty"}, "\x1b]9;"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "\x1b]9;"),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/x,1,0"}, "\x1bPtmux;\x1b\x1b]9;"),
        ({}, "\x1b]9;"),
    ],
)
def test_a_terminal_is_notified_in_its_own_way_and_obeys_nothing_of_the_text(
    environment: dict[str, str], begins: str
) -> None:
    sequence = terminal.notification("a\x1b]0;b\x07\n\x9c;c", environment)
    assert sequence.startswith(begins)
    harmless = terminal.notification("ab", environment)
    for control in ("\x1b", "\x07", "\x9c", "\n"):
        assert sequence.count(control) == harmless.count(control)


# --- the command ---------------------------------------------------------------------------------------------------


def test_a_command_is_split_as_a_shell_does() -> None:
    assert command.words_of("sh -c 'echo \"a b\" && true'") == ["sh", "-c", 'echo "a b" && true']
    assert command.words_of("  ") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sh -c 'echo", "close its quotation marks"),
        ("no-such-command-here --x", "There is no command no-such-command-here"),
        ("true && poweroff", "run without a shell"),
        ("true; poweroff", "run without a shell"),
        ("cat x > y", "run without a shell"),
        ("true a\0b", "NUL"),
        ("''", "There is no command"),
    ],
)
def test_a_command_that_could_not_be_run_is_refused_when_it_is_named(text: str, said: str) -> None:
    with pytest.raises(UnusableInput, match=said):
        command.words_of(text)


def run_that(recipe: Recipe, runs: Path, name: str, *events: Event) -> Run:
    writer = create_run(recipe, runs, name)
    for event in (Started(run=name, attempt=1, pid=os.getpid()), *events):
        writer.append(event)
    writer.close()
    return writer.run


def done(recipe: Recipe, runs: Path, name: str = "r", status: str = "done") -> Run:
    finished = Finished(status=status, step=1, seconds=1.0, adapter=None)  # type: ignore[arg-type]
    return run_that(recipe, runs, name, Price(per_hour=2.0, currency="$"), finished)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "COUNTDOWN_SECONDS", 0.6)


async def follow(run: Run, words: list[str], meanwhile: Callable[[Ending], None] = lambda ending: None) -> list[str]:
    """Let everything follow the run's end; the notices that are then on record."""
    following = Ending(run, words, run.folder / "socket", lambda: None)
    task = asyncio.create_task(following.follow())
    await asyncio.sleep(0.3)
    meanwhile(following)
    await asyncio.wait_for(task, 30)
    assert not run.is_live()
    return [event.text for event in run.events() if isinstance(event, Notice)]


async def test_the_command_is_run_after_the_countdown(demo_recipe: Recipe, tmp_path: Path, quick: None) -> None:
    run = done(demo_recipe, tmp_path / "runs")
    script = f"echo out; echo $TUITUNE_STATE $TUITUNE_RUN > {tmp_path}/ran # {SECRET}"
    seen: list[float | None] = []
    notices = await follow(run, ["sh", "-c", script], lambda ending: seen.append(ending.seconds_left))
    assert (tmp_path / "ran").read_text() == f"done {run.folder}\n"
    assert seen[0] is not None and 0 < seen[0] <= 0.6
    assert run.log_file.read_text() == "out\n"
    assert len(notices) == 2 and "(sh) has ended" in notices[1]
    assert run.status() == "done"
    held = [path for path in run.folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert held == []


async def test_a_cancelled_command_is_not_run(demo_recipe: Recipe, tmp_path: Path, quick: None) -> None:
    run = done(demo_recipe, tmp_path / "runs")

    def cancel(ending: Ending) -> None:
        assert ending.cancel("it was cancelled") and not ending.cancel("twice")

    notices = await follow(run, ["touch", str(tmp_path / "ran")], cancel)
    assert not (tmp_path / "ran").exists()
    assert notices[-1] == "The command for the end (touch) is not run: it was cancelled."


async def test_a_run_that_begins_takes_the_folder_at_once(demo_recipe: Recipe, tmp_path: Path, quick: None) -> None:
    run = done(demo_recipe, tmp_path / "runs")
    held: list[bool] = []

    def begin(ending: Ending) -> None:
        held.append(run.is_live())
        ending.give_way()
        held.append(run.is_live())

    notices = await follow(run, ["touch", str(tmp_path / "ran")], begin)
    assert held == [True, False] and not (tmp_path / "ran").exists()
    assert "another run begins" in notices[-1]


async def test_it_is_not_run_while_another_run_trains(demo_recipe: Recipe, tmp_path: Path, quick: None) -> None:
    run = done(demo_recipe, tmp_path / "runs")
    other = create_run(demo_recipe, tmp_path / "runs", "other")
    notices = await follow(run, ["touch", str(tmp_path / "ran")])
    other.close()
    assert not (tmp_path / "ran").exists() and "run other is training" in notices[-1]


async def test_it_is_not_run_after_a_stop_and_is_after_a_failure(
    demo_recipe: Recipe, tmp_path: Path, quick: None
) -> None:
    notices = await follow(done(demo_recipe, tmp_path / "runs", "s", "stopped"), ["touch", str(tmp_path / "ran")])
    assert not (tmp_path / "ran").exists() and "the run was stopped" in notices[-1]
    notices = await follow(done(demo_recipe, tmp_path / "runs", "p", "paused"), ["touch", str(tmp_path / "ran")])
    assert not (tmp_path / "ran").exists() and "the run is paused" in notices[-1]
    await follow(run_that(demo_recipe, tmp_path / "runs", "f", Failed(message="no")), ["touch", str(tmp_path / "ran")])
    assert (tmp_path / "ran").exists()


async def test_a_command_that_fails_or_is_gone_is_told(demo_recipe: Recipe, tmp_path: Path, quick: None) -> None:
    run = done(demo_recipe, tmp_path / "runs")
    assert "(false) failed with status 1" in (await follow(run, ["false"]))[-1]
    assert "(gone) could not be run (No such file" in (await follow(run, ["/nowhere/gone"]))[-1]
    assert run.status() == "done"


async def test_everybody_is_told_and_a_failure_is_a_notice(demo_recipe: Recipe, tmp_path: Path, web: Web) -> None:
    run = run_that(demo_recipe, tmp_path / "runs", "r", Failed(message=f"it read {SECRET}"))
    Settings(file=settings_file(), webhook=f"{web.address}/{SECRET}", ntfy=f"file:///{SECRET}").save()
    notices = await follow(run, [])
    ((_, _, _, body),) = web.requests
    assert json.loads(body)["state"] == "failed" and SECRET.encode() not in body
    assert len(notices) == 1 and "ntfy topic's address cannot be used" in notices[0]
    assert not any(SECRET in notice for notice in notices) and run.status() == "failed"


async def test_a_run_whose_folder_is_gone_harms_nothing(demo_recipe: Recipe, tmp_path: Path) -> None:
    run = done(demo_recipe, tmp_path / "runs")
    following = Ending(Run(tmp_path / "elsewhere"), ["true"], tmp_path / "socket", lambda: None)
    following.cancel("it was cancelled")
    await asyncio.wait_for(following.follow(), 30)
    assert run.status() == "done"


def test_the_outcome_counts_all_attempts(demo_recipe: Recipe, tmp_path: Path) -> None:
    def attempt(number: int, at: float) -> list[Event]:
        step = Step(at=at + 1800, attempt=number, step=number, total_steps=2, epoch=0.5, loss=1.0 / number)
        return [
            Started(at=at, run="r", attempt=number, pid=1),
            Price(at=at, per_hour=2.0, currency="€"),
            step,
            Finished(at=at + 3600, status="done", step=number, seconds=1.0, adapter=None),
        ]

    writer = create_run(demo_recipe, tmp_path / "runs", "r")
    for event in [*attempt(1, 0.0), *attempt(2, 90_000.0)]:
        writer.append(event)
    writer.close()
    outcome = Outcome.of(writer.run, writer.run.history())
    assert (outcome.seconds, outcome.cost, outcome.currency) == (7200.0, 4.0, "€")
    assert "2 h 00 min, €4.00" in str(outcome)
