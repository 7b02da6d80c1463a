"""Several cards against one: the same losses, the speed at equal rows a card, and what happens when a process dies.

    python -m benchmarks.gpu_cards MODEL [--cards 2 4] [--only losses sharding speed resumption] [--folder DIR]
        [--steps 24]

`sharding` compares cards that share the frozen weights with cards that each hold them whole, at 16-bit weights.

MODEL is a folder, as `python -m benchmarks.shapes` makes it. tuitune runs as a user runs it, by `tuitune run --json`.
With fewer than two cards the processes share the one there is (TUITUNE_TEST_RANKS), which says nothing of speed. Tokens
are non-padding ones, over the last two thirds of the steps. Writes benchmarks/results/gpu_cards_MODEL.json.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.shapes import make_chats
from tuitune.machine.cards import STAND_INS
from tuitune.machine.hardware import gpus

RESULTS = Path(__file__).parent / "results"
LOSS_STEPS = 20
DEATH_STEP = 25
STEPS = 40
ROWS_A_CARD = 64


class Runs:
    """Starts `tuitune run` and `tuitune resume` on one model and one set of chats, and reads their events."""

    def __init__(self, model: Path, chats: Path, folder: Path) -> None:
        self._folder = folder
        self._recipe = folder / "recipe.yaml"
        self._recipe.write_text(
            f"model: {{name: {model}, backend: auto}}\ndata: {{path: {chats}}}\n"
            "train: {save_steps: 1000, eval_steps: 0}\nsamples: {prompts: [hello], max_new_tokens: 4}\n"
        )

    def run(self, name: str, cards: int, changes: list[str], on_event: Callable[[dict[str, Any]], None]) -> str:
        """Run to the end with `on_event` called for each event; returns what was written to stderr."""
        return self._followed(["run", str(self._recipe), "--name", name], cards, changes, on_event)

    def resume(self, name: str, cards: int, changes: list[str], on_event: Callable[[dict[str, Any]], None]) -> str:
        return self._followed(["resume", name], cards, changes, on_event)

    def _followed(
        self, what: list[str], cards: int, changes: list[str], on_event: Callable[[dict[str, Any]], None]
    ) -> str:
        physical = len(gpus())
        chosen = "0" if cards == 1 else ",".join(map(str, range(cards))) if physical >= cards else "all"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        if physical < cards:
            environment[STAND_INS] = str(cards)
        command = [sys.executable, "-m", "tuitune", *what, "--runs", str(self._folder / "runs"), "--json"]
        command += ["--gpus", chosen] if physical or cards > 1 else []
        command += [part for change in changes for part in ("--set", change)]
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    on_event(json.loads(line))
            process.wait()
            errors.seek(0)
            return errors.read()


def trained(
    runs: Runs,
    name: str,
    cards: int,
    changes: list[str],
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> dict[str, Any]:
    """What a run came to: its losses, its speed, and each card's own seconds a step."""
    events: list[dict[str, Any]] = []
    began = time.time()

    def add(event: dict[str, Any]) -> None:
        events.append(event)
        on_event(event)

    errors = runs.run(name, cards, changes, add)
    steps = [event for event in events if event["event"] == "step"]
    notices = [event["text"] for event in events if event["event"] == "notice"]
    if len(steps) < 6:
        return {"error": errors[-1500:], "notices": notices, "last": [event["event"] for event in events][-5:]}
    third = len(steps) // 3
    tokens = sum(step["tokens"] for step in steps[third + 1 :])
    seconds = steps[-1]["at"] - steps[third]["at"]
    samples = [event for event in events if event["event"] == "sample"]
    figures = {
        "tokens_per_second": round(tokens / seconds),
        "seconds_per_step": round(seconds / (len(steps) - 1 - third), 4),
        "card_seconds": [round(median(column), 4) for column in zip(*(s["card_seconds"] for s in steps), strict=True)],
        "losses": [step["loss"] for step in steps],
        "grad_norms": [step["grad_norm"] for step in steps],
        "tokens": [step["tokens"] for step in steps],
        "cards_sampled": sorted({event["gpu_index"] for event in samples if event.get("gpu_index") is not None}),
        "peak_gib_by_card": peaks(samples),
        "seconds_to_first_step": round(steps[0]["at"] - began, 1),
        "device": next((event["device"] for event in events if event["event"] == "plan"), None),
        "notices": notices,
    }
    shown = {key: figures[key] for key in ("tokens_per_second", "peak_gib_by_card", "seconds_to_first_step")}
    print(name, json.dumps(shown), flush=True)  # so that what is cut off later was not in vain
    return figures


def peaks(samples: list[dict[str, Any]]) -> dict[int, float]:
    """The most memory that the run's process had on each card, in GiB, of one reading a second."""
    highest: dict[int, float] = {}
    for sample in samples:
        if sample.get("gpu_index") is not None and sample.get("gpu_process_bytes"):
            card, gib = sample["gpu_index"], sample["gpu_process_bytes"] / 2**30
            highest[card] = max(highest.get(card, 0.0), round(gib, 2))
    return highest


def losses(runs: Runs, counts: list[int]) -> dict[str, Any]:
    """The same 16 rows a step on each number of cards, for 20 steps; a while later one of the processes is killed."""
    settings = ["fit=false", "gradient_checkpointing=false", f"max_steps={STEPS}", "save_steps=10"]
    settings += ["per_device_train_batch_size=8", "gradient_accumulation_steps=2"]
    alone = trained(runs, "losses-1", 1, settings)
    figures: dict[str, Any] = {"1": alone}
    for cards in counts:
        death: dict[str, Any] = {}
        together = figures[str(cards)] = trained(runs, f"losses-{cards}", cards, settings, killer(death))
        together["death"] = death
        if "losses" in together and "losses" in alone:
            for what in ("losses", "grad_norms"):
                pairs = zip(alone[what][:LOSS_STEPS], together[what][:LOSS_STEPS], strict=True)
                together[f"largest_difference_of_{what}"] = max(abs(first - second) for first, second in pairs)
            together["same_tokens"] = alone["tokens"][:LOSS_STEPS] == together["tokens"][:LOSS_STEPS]
    return figures


def killer(death: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Kills the last of a run's processes at step DEATH_STEP; `death` gets the time until the run says so, and how."""

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "started":
            death["session"] = event["pid"]
        if event["event"] == "step" and event["step"] == DEATH_STEP:
            death["killed_at"] = time.time()
            children = psutil.Process(death["session"]).children()
            [child for child in children if "tuitune.session.rank" in child.cmdline()][-1].kill()
        if event["event"] == "failed":
            death["seconds_until_told"] = round(event["at"] - death.get("killed_at", event["at"]), 2)
            death["message"] = event["message"]

    return look


def resumption(runs: Runs, counts: list[int]) -> dict[str, Any]:
    """The run of which a process was killed goes on, with one card."""
    events: list[dict[str, Any]] = []
    errors = runs.resume(f"losses-{counts[0]}", 1, [], events.append)
    steps = [event for event in events if event["event"] == "step"]
    if not steps:
        return {"error": errors[-900:]}
    return {"steps": [step["step"] for step in steps], "last_loss": steps[-1]["loss"]}


def speed(runs: Runs, counts: list[int], steps: int) -> dict[str, Any]:
    """64 rows a card."""
    figures: dict[str, Any] = {}
    for cards in (1, *counts):
        rows = [f"per_device_train_batch_size={ROWS_A_CARD}", f"gradient_accumulation_steps={cards}"]
        figures[str(cards)] = trained(runs, f"speed-{cards}", cards, [*rows, f"max_steps={steps}"])
        if figures["1"].get("tokens_per_second") and figures[str(cards)].get("tokens_per_second"):
            times = figures[str(cards)]["tokens_per_second"] / figures["1"]["tokens_per_second"]
            figures[str(cards)]["times_one_card"] = round(times, 3)
    return figures


def sharding(runs: Runs, counts: list[int], steps: int) -> dict[str, Any]:
    """16 rows a step on the first number of cards, each with all frozen weights, and each with its share of them."""
    settings = ["fit=false", "gradient_checkpointing=true", f"max_steps={steps}", "load_in_4bit=false"]
    settings += ["backend=transformers"]
    settings += ["per_device_train_batch_size=4", "gradient_accumulation_steps=4"]
    figures: dict[str, Any] = {}
    for name, shard in (("whole", "false"), ("shared", "true")):
        figures[name] = trained(runs, f"weights-{name}", counts[0], [*settings, f"shard={shard}"])
    whole, shared = figures["whole"], figures["shared"]
    if "losses" in whole and "losses" in shared:
        pairs = zip(whole["losses"], shared["losses"], strict=True)
        figures["largest_difference_of_losses"] = max(abs(first - second) for first, second in pairs)
    return figures


def shortened(value: Any) -> Any:
    """A result with the first and the last ones of its figures by step."""
    if not isinstance(value, dict):
        return value
    long = ("losses", "grad_norms", "tokens")
    return {name: entry[:3] + entry[-1:] if name in long else entry for name, entry in value.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cards", type=int, nargs="*", default=[2])
    parser.add_argument("--only", nargs="*", default=["losses", "speed", "resumption"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tuitune-cards")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    chats = make_chats(arguments.folder / "chats.jsonl")
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "gpus": [card.name for card in gpus()],
        "model": arguments.model.name,
    }
    parts: dict[str, Callable[[Runs], dict[str, Any]]] = {
        "losses": lambda runs: losses(runs, arguments.cards),
        "speed": lambda runs: speed(runs, arguments.cards, arguments.steps),
        "sharding": lambda runs: sharding(runs, arguments.cards, min(arguments.steps, LOSS_STEPS)),
        "resumption": lambda runs: resumption(runs, arguments.cards),
    }
    runs = Runs(arguments.model, chats, Path(tempfile.mkdtemp(prefix="cards-", dir=arguments.folder)))
    out = arguments.out or RESULTS / f"gpu_cards_{arguments.model.name}.json"
    for name in arguments.only:
        result[name] = parts[name](runs)
        out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        shown = {key: shortened(value) for key, value in result[name].items()}
        print(json.dumps({name: shown}, indent=1, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
