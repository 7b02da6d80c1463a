"""Measures tokenising with masking against the bare tokenizer on the same rows, and the peak memory of a large file.

usage: python benchmarks/data_throughput.py [--rows FILE] [--gigabytes N] [--out FILE]

Both run on the same rows in the same process, alternating, seven times; the least disturbed runs are compared. The
bare tokenizer is given the rendered texts, so that rendering the chat template counts against the masker alone.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

PAIRS = {
    "Llama 3.2": ("llama-bpe", "meta-llama-Llama-3.2-3B-Instruct"),
    "Qwen 2.5": ("qwen2", "Qwen-Qwen2.5-7B-Instruct"),
    "Qwen 3": ("qwen2", "Qwen-Qwen3-0.6B"),
    "Phi 3.5": ("phi-3", "microsoft-Phi-3.5-mini-instruct"),
}
BATCH = 256
ROUNDS = 7


def compare(backend: Any, samples: list[Any]) -> dict[str, float]:
    """Rows per second of both, in wall time and in CPU time."""
    from tuitune.masking import Masker

    masker = Masker(backend, "assistant", 8192)
    batches = [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]
    texts = [[masker.template.render(sample.messages).text for sample in batch] for batch in batches]

    def bare() -> None:
        for batch in texts:
            backend(batch, add_special_tokens=False)

    def masked() -> None:
        for _ in masker.encode_batches(iter(batches)):
            pass

    seconds: dict[str, list[tuple[float, float]]] = {"bare": [], "masked": []}
    bare()
    masked()
    for _ in range(ROUNDS):
        for name, run in (("bare", bare), ("masked", masked)):
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    figures: dict[str, float] = {}
    for index, clock in enumerate(("wall", "cpu")):
        rates = {name: len(samples) / min(pair[index] for pair in pairs) for name, pairs in seconds.items()}
        figures |= {f"{name}_rows_per_{clock}_second": round(rate) for name, rate in rates.items()}
        figures[f"share_of_bare_{clock}"] = round(rates["masked"] / rates["bare"], 3)
    return figures


def large_file(gigabytes: float) -> dict[str, Any]:
    """Open, preview and tokenise a JSONL file of this size in a process of its own, and measure its peak memory."""
    question, answer = "Why is the sky blue on a clear day, and red at dusk? " * 6, "Light scatters. " * 40
    number = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.jsonl"
        with path.open("wb") as file:
            while file.tell() < gigabytes * 1e9:
                number += 1
                file.write(json.dumps({"question": f"{number}: {question}", "answer": answer}).encode() + b"\n")
        command = [sys.executable, __file__, "--measure", str(path)]
        environment = os.environ | {"XDG_CACHE_HOME": folder}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        measured: dict[str, Any] = json.loads(done.stdout)
        return measured


def huge_file(gigabytes: float) -> dict[str, Any]:
    """Open a JSONL file of this size, show a row of its middle, and count its rows."""
    from tuitune.data import open_dataset
    from tuitune.recipe_sections import DataSection

    row = {"question": "Why is the sky blue on a clear day? " * 9, "answer": "Light scatters. " * 40}
    block = (json.dumps(row).encode() + b"\n") * 20_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "huge.jsonl"
        with path.open("wb") as file:
            while file.tell() < gigabytes * 1e9:
                file.write(block)
        began_at = time.perf_counter()
        dataset = open_dataset(DataSection(path=str(path)))
        next(dataset.rows())
        opened_at = time.perf_counter()
        middle = (dataset.estimated_rows() or 0) // 2
        next(dataset.rows(middle))
        read_at = time.perf_counter()
        rows = len(dataset)
        return {
            "bytes": path.stat().st_size,
            "rows": rows,
            "open_and_preview_seconds": round(opened_at - began_at, 3),
            "row_in_the_middle_seconds": round(read_at - opened_at, 2),
            "count_seconds": round(time.perf_counter() - read_at, 2),
        }


def measure(path: Path) -> dict[str, Any]:
    import sample_data
    from tuitune.data import open_dataset
    from tuitune.data.prepare import prepare
    from tuitune.model.config import load_tokenizer
    from tuitune.recipe import Recipe

    model = {"name": str(Path(sample_data.__file__).parent / "demo_model")}
    recipe = Recipe.from_data({"model": model, "data": {"path": str(path), "eval_share": 0.001}})
    began = time.perf_counter()
    dataset = open_dataset(recipe.data)
    next(dataset.rows())
    opened = time.perf_counter()
    prepared = prepare(recipe, load_tokenizer(recipe.model))
    done, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows = len(prepared.train) + len(prepared.eval)
    del prepared  # as in a session, where one recipe's rows are in memory at a time
    cached = prepare(recipe, load_tokenizer(recipe.model))
    assert len(cached.train) + len(cached.eval) == rows
    return {
        "bytes": path.stat().st_size,
        "rows": rows,
        "open_and_preview_seconds": round(opened - began, 3),
        "prepare_seconds": round(done - opened, 1),
        "prepare_again_from_cache_seconds": round(time.perf_counter() - done, 1),
        "peak_memory_bytes": peak,
        "peak_memory_with_cache_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROOT.parent / "shared" / "data" / "gsm8k_train.jsonl")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the file that is tokenised")
    parser.add_argument("--huge", type=float, default=5.0, help="gigabytes of the file that is opened and counted")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "data_throughput.json")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    from tests.engine.llama_cpp_models import templates, tokenizer
    from tuitune.data import open_dataset
    from tuitune.recipe_sections import DataSection

    samples = [row.sample for row in open_dataset(DataSection(path=str(arguments.rows))) if row.sample]
    result: dict[str, Any] = {"rows": str(arguments.rows.name), "cpu_count": os.cpu_count(), "speed": {}}
    for name, (vocabulary, template) in PAIRS.items():
        backend = tokenizer(vocabulary)
        backend.chat_template = templates()[template]
        result["speed"][name] = compare(backend, samples)
        print(name, result["speed"][name], flush=True)
    if arguments.gigabytes:
        result["large_file"] = large_file(arguments.gigabytes)
        print(result["large_file"], flush=True)
    if arguments.huge:
        result["huge_file"] = huge_file(arguments.huge)
        print(result["huge_file"])
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
