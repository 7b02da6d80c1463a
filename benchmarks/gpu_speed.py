"""Speed on a GPU: tuitune against the plain Unsloth notebook, on the same model, data and machine, in one session.

    python -m benchmarks.gpu_speed SHAPE [--folder DIR] [--baseline FILE] [--steps 20] [--small-steps 300]
        [--only NAME …] [--in-process] [--set field=value …]

SHAPE is one of benchmarks.shapes; model and chats are made in --folder. FILE is the notebook as a script, by default
benchmarks/notebook.py, that prints one JSON line with `peer` first and tokens_per_second in it. tuitune runs as a user
runs it, `tuitune run --json`, with session, events, sampling, evaluations and replies. Tokens are non-padding ones,
over the last two thirds of the steps. Ways of small steps take more of them, as capturing pays in a long run only.
With --in-process they run one after the other in this process, which imports the libraries once: the training alone,
without session and sampling. Writes benchmarks/results/gpu_speed_SHAPE.json.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.shapes import make_chats, make_model
from tuitune.machine.environment import warm_up
from tuitune.recipe import Recipe

RESULTS = Path(__file__).parent / "results"
NOTEBOOK = ["fit=false", "padding_free=false", "gradient_checkpointing=true", "optim=adamw_8bit"]
WAYS: dict[str, list[str]] = {
    "as the notebook: 4-bit, 2×4": NOTEBOOK,
    "own choice, 4-bit, 8 rows a step": [],
    "own choice without CUDA graphs, 4-bit, 8 rows a step": ["cuda_graphs=false"],
    "own choice, 4-bit, 64 rows a step": ["per_device_train_batch_size=64", "gradient_accumulation_steps=1"],
    "own choice, 16-bit, 64 rows a step": [
        "per_device_train_batch_size=64",
        "gradient_accumulation_steps=1",
        "load_in_4bit=false",
    ],
}


def tuitune(model: Path, chats: Path, steps: int, changes: list[str], folder: Path) -> dict[str, Any]:
    """One `tuitune run --json`."""
    recipe = write_recipe(model, chats, steps, folder)
    command = [sys.executable, "-m", "tuitune", "run", str(recipe), "--runs", str(folder / "runs"), "--json"]
    command += [part for change in changes for part in ("--set", change)]
    began = time.time()
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    events = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    return summary(events, began, ended.stderr or ended.stdout)


def in_process(model: Path, chats: Path, steps: int, changes: list[str], folder: Path) -> dict[str, Any]:
    """The same training in this process."""
    import gc

    import torch

    from tuitune.runs.folder import create_run
    from tuitune.train.control import Control
    from tuitune.train.run import train

    recipe = Recipe.load(write_recipe(model, chats, steps, folder), changes)
    writer = create_run(recipe, folder / "runs", "run")
    torch.cuda.reset_peak_memory_stats()
    began = time.time()
    train(recipe, writer.run, Control(), writer.append)
    writer.close()
    peak = torch.cuda.max_memory_reserved()
    gc.collect()
    torch.cuda.empty_cache()
    events = [json.loads(line) for line in writer.run.events_file.read_text(encoding="utf-8").splitlines()]
    return {**summary(events, began), "peak_process_gib": None, "peak_reserved_gib": round(peak / 2**30, 2)}


def write_recipe(model: Path, chats: Path, steps: int, folder: Path) -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{name: {model}, backend: unsloth}}\ndata: {{path: {chats}}}\n"
        f"train: {{max_steps: {steps}, save_steps: 10000}}\nsamples: {{prompts: [hello], max_new_tokens: 4}}\n"
    )
    return recipe


def summary(events: list[dict[str, Any]], began: float, output: str = "") -> dict[str, Any]:
    """Speed from the step events of a run, its peak from its samples; `output` is what it wrote besides."""
    of = {kind: [e for e in events if e.get("event") == kind] for kind in ("step", "sample", "notice", "phase", "plan")}
    marks = of["step"]
    if len(marks) < 3:
        return {"error": output[-1500:], "events": [e.get("event") for e in events][-5:]}
    third, last = len(marks) // 3, marks[-(len(marks) // 4) :]
    timed = marks[third + 1 :]
    tokens = sum(step["tokens"] for step in timed)
    seconds = marks[-1]["at"] - marks[third]["at"]
    return {
        "tokens_per_second": round(tokens / seconds),
        "tokens_per_second_in_steps": round(tokens / sum(s["tokens"] / s["tokens_per_second"] for s in timed)),
        "tokens_per_second_in_the_last_quarter": round(
            sum(step["tokens"] for step in last) / (marks[-1]["at"] - marks[-len(last) - 1]["at"])
        ),
        "steps": len(marks),
        "seconds_per_step": round(seconds / len(timed), 4),
        "tokens_per_step": round(tokens / len(timed)),
        "peak_process_gib": round(max((e.get("gpu_process_bytes") or 0 for e in of["sample"]), default=0) / 2**30, 2),
        "seconds_to_first_step": round(marks[0]["at"] - began, 1),
        "phases": {e["text"]: round(e["at"] - began, 1) for e in of["phase"]},
        "first_loss": marks[0]["loss"],
        "last_loss": marks[-1]["loss"],
        "notices": [e["text"] for e in of["notice"]],
        "parameters": of["plan"][0]["total_parameters"] if of["plan"] else None,
        "seconds": round(time.time() - began, 1),
    }


def notebook(script: Path, model: Path, chats: Path, steps: int) -> dict[str, Any]:
    command = [sys.executable, str(script), str(model), "--data", str(chats), "--steps", str(steps)]
    began = time.time()
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    lines = [line for line in ended.stdout.splitlines() if line.startswith('{"peer"')]
    if not lines:
        return {"error": (ended.stderr or ended.stdout)[-1500:]}
    return {**json.loads(lines[-1]), "seconds": round(time.time() - began, 1)}


def achieved(tokens_per_second: float, parameters: int) -> float:
    """Share of 989 TFLOP/s (H200, dense bf16): 4 FLOP a parameter and token, as frozen weights get no gradient."""
    return round(4 * parameters * tokens_per_second / 989e12, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tuitune-speed")
    parser.add_argument("--baseline", type=Path, default=Path(__file__).parent / "notebook.py")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--small-steps", type=int, default=300)
    parser.add_argument("--dollars-per-hour", type=float, default=3.5)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--in-process", action="store_true")
    parser.add_argument("--set", dest="changes", action="append", default=[])
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if arguments.in_process:
        warm_up()  # Unsloth before transformers, which it patches
    chats = folder / "chats.jsonl"
    model = make_model(arguments.shape, folder / arguments.shape)
    if not chats.is_file():
        make_chats(chats)
    import pynvml

    pynvml.nvmlInit()
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "gpu": str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))),
        "shape": arguments.shape,
        "steps": arguments.steps,
        "in_process": arguments.in_process,
        "changes": arguments.changes,
        "ways": {},
    }
    name = RESULTS / f"gpu_speed_{arguments.shape}.json"
    RESULTS.mkdir(exist_ok=True)

    def note(way: str, result: dict[str, Any]) -> None:
        if result.get("tokens_per_second"):
            speed = result["tokens_per_second"]
            if result.get("parameters"):
                result["mfu"] = achieved(speed, result["parameters"])
            result["dollars_per_million_tokens"] = round(arguments.dollars_per_hour / 3600 / speed * 1e6, 4)
        report["ways"][way] = result
        name.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        print(json.dumps({way: result}, ensure_ascii=False), flush=True)

    if not arguments.only or "notebook" in arguments.only:
        note("notebook", notebook(arguments.baseline, model, chats, arguments.steps))
    for number, (way, changes) in enumerate(WAYS.items()):
        if not arguments.only or str(number) in arguments.only:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                steps = arguments.small_steps if "8 rows" in way else arguments.steps
                run = in_process if arguments.in_process else tuitune
                note(way, run(model, chats, steps, [*changes, *arguments.changes], Path(place)))


if __name__ == "__main__":
    main()
