"""GRPO on a GPU: seconds a step beside the plain Unsloth notebook without vLLM, and tokens a second of a chat.

    python -m benchmarks.gpu_grpo SHAPE [--folder DIR] [--model DIR] [--steps 12] [--baseline-seconds 60]
        [--only grpo chat baseline]

SHAPE is one of benchmarks.shapes; a step is 8 answers of 256 tokens to one prompt, in 4-bit. Random weights hardly ever
end by themselves, so answers run to their longest. tuitune runs as a user runs it, `tuitune run --json`; the notebook
is benchmarks.notebook_grpo, which is ended after --baseline-seconds and then gives the steps that it has done, or
the time in which it did none. Writes benchmarks/results/gpu_grpo_SHAPE.json.
"""

import argparse
import datetime
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.shapes import make_model

RESULTS = Path(__file__).parent / "results"
ANSWERS, TOKENS = 8, 256
WORDS = (
    "apples",
    "buys",
    "costs",
    "days",
    "eggs",
    "gives",
    "has",
    "how",
    "many",
    "more",
    "pays",
    "sells",
    "the",
    "week",
)


def make_prompts(file: Path, count: int = 64, seed: int = 0) -> Path:
    """Write word problems of about the length of those in gsm8k."""
    rng = random.Random(seed)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(count):
            out.write(json.dumps({"prompt": " ".join(rng.choices(WORDS, k=rng.randint(30, 60))) + "?"}) + "\n")
    return file


def grpo(model: Path, prompts: Path, steps: int, folder: Path) -> dict[str, Any]:
    """One `tuitune run --json`: medians over the steps after the first two."""
    recipe = folder / "recipe.yaml"
    rewards = "[{name: length, unit: characters, least: 900}, {name: length, unit: characters, least: 1100}]"
    recipe.write_text(
        f"model: {{name: {model}, backend: unsloth}}\ndata: {{path: {prompts}, max_length: 512}}\n"
        f"method: {{name: grpo, rewards: {rewards}, num_generations: {ANSWERS}, max_completion_length: {TOKENS}}}\n"
        f"train: {{max_steps: {steps}, save_steps: 1000, per_device_train_batch_size: {ANSWERS}, eval_steps: 0, "
        "gradient_accumulation_steps: 1, warmup_steps: 1}\nsamples: {prompts: [hello], max_new_tokens: 4}\n"
    )
    command = [sys.executable, "-m", "tuitune", "run", str(recipe), "--runs", str(folder / "runs"), "--json"]
    began = time.time()
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    events = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    marks = [event for event in events if event.get("event") == "step"]
    if len(marks) < 4:
        return {"error": (ended.stderr or ended.stdout)[-1500:]}
    between = sorted(after["at"] - before["at"] for before, after in itertools.pairwise(marks[1:]))
    shares = sorted(mark["metrics"]["generating"] for mark in marks[2:])
    lengths = [mark["metrics"]["completions/mean_length"] for mark in marks[2:]]
    return {
        "seconds_per_step": round(between[len(between) // 2], 3),
        "share_generating": round(shares[len(shares) // 2], 3),
        "mean_length": round(sum(lengths) / len(lengths), 1),
        "sampling_difference": marks[-1]["metrics"]["sampling_difference"],
        "first_step_after_s": round(marks[0]["at"] - began, 1),
        "peak_gib": round(
            max(e.get("gpu_process_bytes") or 0 for e in events if e.get("event") == "sample") / 2**30, 2
        ),
        "notices": [event["text"] for event in events if event.get("event") == "notice"],
    }


def baseline(model: Path, prompts: Path, seconds: float) -> dict[str, Any]:
    """The notebook's median step after the first two; where it is too slow for that, what is known of it."""
    command = [sys.executable, "-m", "benchmarks.notebook_grpo", str(model.absolute())]
    command += ["--data", str(prompts.absolute()), "--steps", "1000"]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, error = process.communicate()
    steps = [json.loads(line)["seconds"] for line in out.splitlines() if line.startswith('{"step"')]
    if not steps:
        return {"steps": 0, "none_within_s": seconds, "last_words": error[-300:]}
    later = sorted(steps[2:] or steps)
    return {"steps": len(steps), "seconds_per_step": later[len(later) // 2], "all": steps}


def chat(model: Path, tokens: int = 256) -> dict[str, Any]:
    """Tokens a second of one reply, streamed as a chat does: captured steps, and transformers' `generate`."""
    from tuitune.machine.environment import warm_up

    warm_up()
    import torch

    from tuitune import backends
    from tuitune.chat.choice import Choice
    from tuitune.chat.decoder import Generating
    from tuitune.chat.decoding import CanDecode, DecodeRequest
    from tuitune.chat.fast_decoder import Decoder
    from tuitune.recipe import Recipe

    recipe = Recipe.from_data({"model": {"name": str(model)}, "data": {"path": "none.jsonl"}})
    loaded = backends.load(recipe, print)
    loaded.backend.attach(loaded)
    prompt = list(range(100, 200))
    speeds: dict[str, Any] = {}
    decoders: list[tuple[str, CanDecode]] = [("captured steps", Decoder(loaded)), ("generate", Generating(loaded))]
    for name, decoder in decoders:
        for count in (16, tokens):
            torch.cuda.synchronize()
            began = time.perf_counter()
            decoder.decode(
                DecodeRequest(
                    prompts=[prompt],
                    choice=Choice(temperature=0.7, top_p=0.9),
                    seeds=[0],
                    max_new_tokens=count,
                    ends=set(),
                    on_token=lambda row, token: None,
                )
            )
            torch.cuda.synchronize()
            speeds[name] = round(count / (time.perf_counter() - began), 1)
    step_ms: dict[str, float] = {}
    for name, decoder in decoders:
        for count in (16, 64):
            torch.cuda.synchronize()
            began = time.perf_counter()
            prompts, seeds = [prompt] * ANSWERS, range(ANSWERS)
            decoder.decode(
                DecodeRequest(prompts=prompts, choice=Choice(), seeds=seeds, max_new_tokens=count, ends=set())
            )
            torch.cuda.synchronize()
            step_ms[name] = round(1000 * (time.perf_counter() - began) / count, 2)
    return {
        "tokens_per_second": speeds,
        "ratio": round(speeds["captured steps"] / speeds["generate"], 2),
        "eight_answers_ms_a_token": step_ms,
        "eight_answers_ratio": round(step_ms["generate"] / step_ms["captured steps"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tuitune-grpo")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--baseline-seconds", type=float, default=60)
    parser.add_argument("--only", nargs="+", choices=("grpo", "chat", "baseline"), default=["grpo", "chat", "baseline"])
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    model = arguments.model or make_model(arguments.shape, arguments.folder / arguments.shape)
    prompts = make_prompts(arguments.folder / "prompts.jsonl")
    file = RESULTS / f"gpu_grpo_{arguments.shape}.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    result: dict[str, Any] = {"day": datetime.date.today().isoformat(), "answers": ANSWERS, "tokens": TOKENS}
    if kept.get("day") == result["day"]:  # what was not asked for now may have been measured before, today
        result = {**kept, **result}
    command = [
        sys.executable,
        "-c",
        f"from benchmarks.gpu_grpo import *; print(json.dumps(chat(Path({str(model)!r}))))",
    ]

    def chatted() -> dict[str, Any]:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in ended.stdout.splitlines() if line.startswith('{"tokens_per_second"')]
        return json.loads(lines[-1]) if lines else {"error": ended.stderr[-1500:]}

    def trained() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            return grpo(model, prompts, arguments.steps, Path(folder))

    RESULTS.mkdir(exist_ok=True)
    for name, measured in (
        ("tuitune", trained),
        ("chat", chatted),
        ("notebook", lambda: baseline(model, prompts, arguments.baseline_seconds)),
    ):
        if {"tuitune": "grpo", "notebook": "baseline"}.get(name, name) in arguments.only:
            result[name] = measured()
            print(name, json.dumps(result[name], indent=1), flush=True)
            file.write_text(json.dumps(result, indent=1) + "\n")  # each at once: the next may take too long


if __name__ == "__main__":
    main()
