"""How long 1,000 runs take to be listed.

    python -m benchmarks.run_list [--runs 1000] [--steps 300] [--times 15]

Makes run folders as a session leaves them, each with a record of the steps and samples given, and lists them with
`tuitune runs`: the whole process, the same command on an empty folder (which is Python and imports), and the listing
alone in one process, with every `summary.json` there, and the first time, without any. Writes
benchmarks/results/run_list.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tuitune.recipe import Recipe
from tuitune.runs.events import Evaluation, Finished, Plan, Sample, Started, Step, to_json
from tuitune.runs.folder import create_run
from tuitune.runs.summary import summaries

RESULT = Path(__file__).parent / "results" / "run_list.json"


def make_runs(runs_folder: Path, runs: int, steps: int) -> None:
    """Finished runs with a step and two samples of the machine each two seconds."""
    plan = Plan(
        backend="unsloth", device="NVIDIA H200", rows=332, eval_rows=18, dropped_rows=0, tokens=104_000,
        trained_tokens=41_000, trainable_parameters=11_272_192, total_parameters=1_247_000_000, total_steps=steps,
    )  # fmt: skip
    sample = Sample(
        process_bytes=2**33, host_used_bytes=2**37, host_total_bytes=2**40, disk_free_bytes=2**40, cpu_percent=12.5,
        gpu_index=0, gpu_used_bytes=2**36, gpu_total_bytes=2**37, gpu_process_bytes=2**36, gpu_percent=99.0,
        gpu_celsius=70.0, gpu_watts=600.0,
    )  # fmt: skip
    record = [Started(run="x", attempt=1, pid=1), plan, Evaluation(attempt=1, step=0, loss=3.1)]
    for number in range(1, steps + 1):
        step = Step(
            attempt=1, step=number, total_steps=steps, epoch=number / steps, loss=3 / number, grad_norm=1.0,
            learning_rate=1e-4, tokens=2_000, tokens_per_second=5_000.0, elapsed_s=2.0 * number,
        )  # fmt: skip
        record += [step, sample, sample]
    record += [
        Evaluation(attempt=1, step=steps, loss=1.2),
        Finished(status="done", step=steps, seconds=2.0 * steps, adapter="adapter"),
    ]
    text = "".join(f"{to_json(event)}\n" for event in record)
    recipe = Recipe.from_data(
        {"model": {"name": "unsloth/Llama-3.2-1B-Instruct"}, "data": {"path": "/data/sums.jsonl"}}
    )
    for number in range(runs):
        writer = create_run(recipe, runs_folder, f"sums-{number}")
        writer.run.events_file.write_text(text)
        writer.close()


def seconds_of(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def in_words(times: list[float]) -> dict[str, float]:
    return {"median_s": round(statistics.median(times), 3), "max_s": round(max(times), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--times", type=int, default=15)
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # from cached byte code, as installed programs do
    with tempfile.TemporaryDirectory() as folder:
        runs_folder, empty = Path(folder) / "runs", Path(folder) / "empty"
        make_runs(runs_folder, arguments.runs, arguments.steps)
        empty.mkdir()
        began = time.perf_counter()
        first = summaries(runs_folder)
        first_s = time.perf_counter() - began
        alone, whole, imports = [], [], []
        command = [sys.executable, "-m", "tuitune", "runs", "--runs"]
        seconds_of([*command, str(runs_folder)])  # warms the disk cache
        for _ in range(arguments.times):
            began = time.perf_counter()
            listed = summaries(runs_folder)
            alone.append(time.perf_counter() - began)
            whole.append(seconds_of([*command, str(runs_folder)]))
            imports.append(seconds_of([*command, str(empty)]))
        if listed != first or len(listed) != arguments.runs or {run.status for run in listed} != {"done"}:
            sys.exit("the list is not that of the runs")
    result = {
        "what": f"{arguments.runs} runs of {arguments.steps} steps listed, {arguments.times} times",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 1),
        "tuitune_runs": in_words(whole),
        "tuitune_runs_on_an_empty_folder": in_words(imports),
        "listing_alone": in_words(alone),
        "listing_alone_without_summaries_s": round(first_s, 3),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
