"""Every screen's main states as pictures, drawn from fixed events and answers."""

import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.content import Content
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from screens.app import ScreenName, TuituneApp
from screens.chat import ChatScreen, Turn
from screens.export import ExportScreen
from screens.home import HomeScreen
from screens.model import ModelScreen, _choices
from screens.settings import Settings
from screens.widgets.tokens import tokens_content
from tests.screens import histories
from tests.screens.conftest import settled
from tuitune.glance import Glance
from tuitune.hardware import Gpu
from tuitune.history import History
from tuitune.recipe import Recipe
from tuitune.run import Run

GIB = 2**30
SIZES = [(80, 24), (120, 40)]
CARD = Gpu(0, "NVIDIA RTX 4090", "GPU-0", 24 * GIB, GIB, "580.95", (8, 9))

Prepare = Callable[[Pilot[int]], Awaitable[None]]
each_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


@pytest.fixture(autouse=True)
def same_everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def still(runs_folder: Path, monkeypatch: pytest.MonkeyPatch) -> TuituneApp:
    """The app without a session: what it shows is given to it."""
    monkeypatch.setattr(TuituneApp, "_start", lambda self: self._set_state("ready"))
    recipe = Recipe.from_data(
        {"model": {"name": "unsloth/Llama-3.2-1B-Instruct"}, "data": {"path": "/data/pirate.jsonl", "max_length": 1024}}
    )
    monkeypatch.setattr(Input.cursor_blink, "_default", False)
    monkeypatch.setattr(TextArea.cursor_blink, "_default", False)
    return TuituneApp(recipe, runs_folder=runs_folder, settings=Settings(reduced_motion=True))


def showing(step: ScreenName, history: History | None = None) -> Prepare:
    """Go to a step, with a run of this history."""

    async def prepare(pilot: Pilot[int]) -> None:
        app = pilot.app
        assert isinstance(app, TuituneApp)
        if history is not None:
            app.history, app._live = history, True
            app.run_shown = Run(Path("/runs/pirate-1"))
        await app.switch_screen(app._screen(step))
        await settled(pilot)

    return prepare


@each_size
@pytest.mark.parametrize("state", ["loading", "training", "finished", "failed"])
def test_dashboard(state: str, size: tuple[int, int], still: TuituneApp, snap_compare: Any) -> None:
    history = histories.of(getattr(histories, state)())
    assert snap_compare(still, terminal_size=size, run_before=showing("train", history))


def test_dashboard_curves(still: TuituneApp, snap_compare: Any) -> None:
    async def next_curve_and_replies(pilot: Pilot[int]) -> None:
        await showing("train", histories.of(histories.finished()))(pilot)
        await pilot.press("m", "m", "l")
        await settled(pilot)

    assert snap_compare(still, terminal_size=(80, 24), run_before=next_curve_and_replies)


@each_size
def test_model(size: tuple[int, int], still: TuituneApp, snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelScreen, "_list_models", lambda self: None)
    monkeypatch.setattr("tuitune.catalogue.cached_models", lambda: ["unsloth/Qwen3-4B-Instruct-2507"])
    monkeypatch.setattr("tuitune.catalogue.model_folders", lambda *places: [Path("/models/my-llama")])

    async def listed(pilot: Pilot[int]) -> None:
        await showing("model")(pilot)
        screen = pilot.app.screen
        assert isinstance(screen, ModelScreen)
        choices = list(_choices(still.draft.recipe(), CARD))
        screen.post_message(ModelScreen.Listed(choices, CARD.name, CARD.free_bytes))
        await settled(pilot)

    assert snap_compare(still, terminal_size=size, run_before=listed)


@each_size
def test_home(size: tuple[int, int], still: TuituneApp, snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HomeScreen, "_look", lambda self: None)
    monkeypatch.setattr(HomeScreen, "_examine", lambda self: None)
    monkeypatch.setattr("time.time", lambda: histories.AT)
    losses = tuple(3 * 0.9**step for step in range(20))
    runs = [
        Glance(Run(Path("/runs/pirate-2")), "live", "m", 20, 60, losses[:8], histories.AT - 60),
        Glance(Run(Path("/runs/pirate-1")), "done", "m", 60, 60, losses, histories.AT - 7200),
        Glance(Run(Path("/runs/gsm8k-1")), "interrupted", "m", 0, 0, (), histories.AT - 200_000),
    ]

    async def looked(pilot: Pilot[int]) -> None:
        await showing("home")(pilot)
        machine = Content("GPU 0  NVIDIA RTX 4090 · 23.0 GiB of 24.0 GiB free · driver 580.95")
        pilot.app.screen.post_message(HomeScreen.Looked([], machine, runs))
        pilot.app.screen.post_message(HomeScreen.Examined([Content("! Disk: 12 GiB free. Make room.")]))
        await settled(pilot)

    assert snap_compare(still, terminal_size=size, run_before=looked)


@each_size
def test_audit(size: tuple[int, int], still: TuituneApp, snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    token = {"id": 1, "text": "Ahoy", "trained": True}
    answers: dict[str, dict[str, Any]] = {
        "summary": {
            "rows": 352,
            "format": "messages",
            "reason": "each row has messages",
            "kind": "JSON Lines",
            "sources": [{"name": "pirate.jsonl", "rows": 352, "rows_estimated": False, "weight": 1.0, "share": 1.0}],
        },
        "rows": {"rows": [{"row": 0, "tokens": [token], "trained_tokens": 1, "total_tokens": 1}]},
        "audit": {
            **{"rows": 352, "used": 350, "tokens": 104_000, "trained_tokens": 41_000, "trained_share": 0.39},
            "truncated": 19,
            "token_percentiles": {"50": 251, "95": 1_090},
            "length_histogram": [
                *([171, 88], [342, 131], [512, 60], [683, 31], [854, 15], [1024, 8], [1195, 16], [6040, 3])
            ],
            "lengths": [],
            "notices": [],
            "dropped": {"the reply is empty": {"count": 2, "examples": [17, 203], "elsewhere": {}}},
            "findings": [{"text": "the same as an earlier row", "count": 5, "examples": [4, 80], "elsewhere": {}}],
        },
    }

    async def call(self: TuituneApp, command: str, on_part: Any = None, **arguments: Any) -> dict[str, Any]:
        return answers[command]

    monkeypatch.setattr(TuituneApp, "call", call)

    async def audited(pilot: Pilot[int]) -> None:
        await showing("data")(pilot)
        await pilot.press("ctrl+t")
        await settled(pilot)

    assert snap_compare(still, terminal_size=size, run_before=audited)


@each_size
def test_settings(size: tuple[int, int], still: TuituneApp, snap_compare: Any) -> None:
    assert snap_compare(still, terminal_size=size, run_before=showing("lora"))


@each_size
def test_chat(size: tuple[int, int], still: TuituneApp, snap_compare: Any) -> None:
    async def talked(pilot: Pilot[int]) -> None:
        await showing("chat", histories.of(histories.finished()))(pilot)
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        await pilot.press("ctrl+b", "ctrl+b")
        turn = Turn("What is the capital of France?")
        views = await screen.begin(turn)
        await views["adapter"].update("Arr! **Paris**, matey:\n\n- on the Seine\n- in `France`")
        await views["base"].update("Paris is the capital of France.")
        await settled(pilot)

    assert snap_compare(still, terminal_size=size, run_before=talked)


@each_size
def test_empty_chat(size: tuple[int, int], still: TuituneApp, snap_compare: Any) -> None:
    assert snap_compare(still, terminal_size=size, run_before=showing("chat", histories.of(histories.finished())))


@each_size
def test_export(size: tuple[int, int], still: TuituneApp, snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExportScreen, "_look", lambda self, folder: None)
    kinds = [
        {"kind": "adapter", "about": "The LoRA weights.", "ready": True, "missing": None, "bytes": 45_000_000},
        {
            "kind": "merged_16bit",
            "about": "A whole model.",
            "ready": False,
            "missing": "Disk full.",
            "bytes": 2_500_000_000,
        },
    ]
    made = {
        "kind": "adapter",
        "path": "/runs/pirate-1/exports/adapter",
        "bytes": 45_000_000,
        "notices": [],
        "commands": [
            {"what": "Copy it to your machine (run there)", "line": "scp -r me@gpu:/runs/pirate-1/exports/adapter ."}
        ],
    }

    async def exported(pilot: Pilot[int]) -> None:
        await showing("export", histories.of(histories.finished()))(pilot)
        screen = pilot.app.screen
        assert isinstance(screen, ExportScreen)
        earlier = {**made, "kind": "script", "path": "/runs/pirate-1/exports/script", "notices": ["It has changed."]}
        screen.show_found(kinds, [earlier])
        screen.show_part({"failed": {"kind": "merged_16bit", "error": "The disk filled up: make room there."}})
        screen.show_part({"exported": made})
        screen.show_all_made()
        await settled(pilot)

    assert snap_compare(still, terminal_size=size, run_before=exported)


def test_help(still: TuituneApp, snap_compare: Any) -> None:
    assert snap_compare(
        still,
        terminal_size=(80, 24),
        press=["f1"],
        run_before=showing("train", histories.of(histories.training())),
    )


def test_too_small(still: TuituneApp, snap_compare: Any) -> None:
    assert snap_compare(still, terminal_size=(60, 20))


def test_trained_tokens_are_told_apart_without_colour() -> None:
    tokens = [
        {"id": 1, "text": "<|im_start|>", "trained": False},
        {"id": 2, "text": "Hi", "trained": False},
        {"id": 3, "text": "Arr", "trained": True},
        {"id": 4, "text": "<|im_end|>", "trained": True},
    ]
    assert tokens_content(tokens).plain == "<|im_start|>Hi▸Arr<|im_end|>◂"
