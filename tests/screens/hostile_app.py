"""Run on a pty by test_hostile: walks the app through every place that shows outside text, all of it hostile.

    python -m tests.screens.hostile_app RUNS_FOLDER PAYLOAD_FILE

The session's answers are replaced, since no real model or file system would give them so reliably.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from textual.content import Content
from textual.widgets import OptionList

from screens.app import TuituneApp
from screens.chat import ChatScreen
from screens.columns import ColumnsScreen
from screens.home import HomeScreen
from screens.hub_datasets import HubDatasets
from screens.model import Choice, ModelScreen
from screens.settings import Settings
from tuitune.catalogue import Found
from tuitune.events import Checkpoint, Failed, Notice, Phase, Reply, Started, Step
from tuitune.glance import Glance
from tuitune.history import History
from tuitune.recipe import Recipe
from tuitune.run import Run

runs_folder, payload = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
PAUSE = 0.4


def answer(command: str) -> dict[str, Any]:
    token = {"id": 1, "text": payload, "trained": True}
    kind = {"kind": "adapter", "about": payload, "ready": True, "missing": None, "bytes": 1, "question": None}
    line = {"what": payload, "line": payload}
    made = {"kind": payload, "path": payload, "bytes": 1, "notices": [payload], "commands": [line]}
    return {
        "summary": {
            **{"rows": 3, "format": payload, "reason": payload, "kind": payload, "bytes": 1},
            "sources": [
                {"name": payload, "rows": 3, "rows_estimated": False, "weight": weight, "share": weight}
                for weight in (0.5, 0.5, None)
            ],
        },
        "search_datasets": {"found": [{"name": payload, "gated": True, "downloads": 1}]},
        "dataset_splits": {"configs": {payload: [payload]}},
        "rows": {"rows": [{"row": 0, "tokens": [token], "trained_tokens": 1, "total_tokens": 1}]},
        "columns": {"columns": {payload: payload}, "mappable": ["user"]},
        "audit": {
            **{"rows": 3, "used": 3, "tokens": 1, "trained_tokens": 1, "trained_share": 1.0, "truncated": 0},
            "token_percentiles": {"50": 1, "95": 1},
            "length_histogram": [[1, 3]],
            "lengths": [],
            "notices": [],
            "dropped": {payload: {"count": 1, "examples": [0], "elsewhere": {}}},
            "findings": [{"text": payload, "count": 1, "examples": [0], "elsewhere": {}}],
        },
        "preflight": {"kinds": [kind], "exports": [made]},
        "export": {},
        "chat": {"reply": payload, "tokens": 1, "seconds": 1.0, "ended": True},
    }[command]


class HostileApp(TuituneApp):
    CSS_PATH = str(Path(sys.modules["screens.app"].__file__ or "").parent / "app.tcss")

    def _start(self) -> None:
        self._set_state("ready")
        self.run_worker(self._walk(), exit_on_error=True)

    async def call(self, command: str, on_part: Any = None, **arguments: Any) -> dict[str, Any]:
        if command == "estimate":
            from tuitune.errors import TuituneError

            raise TuituneError(payload)
        if on_part is not None:
            on_part({"text": payload, "kind": payload, "done": 1, "total": 2})
            if command == "export":
                on_part({"exported": answer("preflight")["exports"][0]})
                on_part({"failed": {"kind": payload, "error": payload}})
        return answer(command)

    async def _walk(self) -> None:
        async def on(screen: str) -> Any:
            await self.show_step(screen)  # type: ignore[arg-type]
            await asyncio.sleep(PAUSE)
            return self.screen

        home = await on("home")
        run = Run(runs_folder / "run")
        home.post_message(
            HomeScreen.Looked([], Content(""), [Glance(Run(Path("/r") / "x"), "done", payload, 1, 1, (1.0,), 1.0)])
        )
        await asyncio.sleep(PAUSE)
        model = await on("model")
        assert isinstance(model, ModelScreen)
        model.post_message(ModelScreen.Listed([Choice(payload, payload, note=payload)], payload, 1))
        model.post_message(ModelScreen.Searched([Found(payload, True, 1)], payload))
        await asyncio.sleep(PAUSE)
        data = await on("data")
        data.action_audit()
        await asyncio.sleep(PAUSE)
        data.action_map_columns()
        await asyncio.sleep(PAUSE)
        if isinstance(self.screen, ColumnsScreen):  # not where the path itself is refused
            self.screen.dismiss(None)
            await asyncio.sleep(PAUSE)
        data.action_search_datasets()
        await asyncio.sleep(PAUSE)
        if isinstance(self.screen, HubDatasets):
            self.screen._search(payload)
            await asyncio.sleep(PAUSE)
            self.screen.query_one("#found", OptionList).action_select()
            await asyncio.sleep(PAUSE)
            self.screen.dismiss(None)
        lora = await on("lora")
        lora.action_next_view()
        await asyncio.sleep(PAUSE)
        lora.action_next_view()
        await asyncio.sleep(PAUSE)
        run.adapter.mkdir(parents=True)
        run.log_file.write_bytes(payload.encode(errors="surrogatepass"))
        self.run_shown, self._live = run, False
        self.history = History.of(
            [
                Started(run=payload, attempt=1, pid=1),
                Phase(name="data", text=payload, done=1, total=2),
                Notice(text=payload),
                Reply(step=0, prompt=payload, reply=payload),
                Checkpoint(attempt=1, step=1, path=payload),
            ]
        )
        train = await on("train")
        self.history.add(Step(attempt=1, step=1, total_steps=2, epoch=1.0, loss=1.0))
        self.history.add(Failed(message=payload))
        train.draw()
        for _ in range(2):
            train.action_next_pane()
            await asyncio.sleep(PAUSE)
        chat = await on("chat")
        assert isinstance(chat, ChatScreen)
        chat.reply_to(payload)
        await asyncio.sleep(2 * PAUSE)
        export = await on("export")
        export.action_export_now()
        await asyncio.sleep(PAUSE)
        self.notify_problem(payload)
        await asyncio.sleep(PAUSE)
        self.exit(0)


if __name__ == "__main__":
    recipe = Recipe.from_data({"model": {"name": payload[:60]}, "data": {"path": payload[:60]}})
    app = HostileApp(recipe, runs_folder=runs_folder, settings=Settings(ascii="--ascii" in sys.argv))
    app.run()
    sys.exit(app.return_code or 0)
