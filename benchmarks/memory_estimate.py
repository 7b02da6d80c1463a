"""The memory estimate against what a GPU really held, over shapes, precisions, lengths, batches and ranks.

    python -m benchmarks.memory_estimate [--folder DIR] [--shapes 1b 8b]    # measure, on an NVIDIA GPU with Unsloth
    python -m benchmarks.memory_estimate --recorded                         # estimate again what was measured, anywhere

Each configuration runs two whole optimizer steps on its longest batch; measured is what the process held on the card
at the peak: the allocator's peak plus the CUDA context. Prints one line a configuration and writes
benchmarks/results/memory_estimate.json. `whole_runs` there are the peaks of whole runs, to which no constant of the
estimate was fitted.
"""

import argparse
import datetime
import gc
import json
import random
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.shapes import SAMPLE_DATA, make_config, make_model
from tuitune.plan.memory import Memory, memory_of, shape_of
from tuitune.recipe import Recipe

RESULT = Path(__file__).parent / "results" / "memory_estimate.json"
GIB = 2**30
H200_BYTES = 140 * GIB
Row = dict[str, Any]
# (rank, [(rows, tokens a row, checkpointing, padding-free)])
SETTINGS: dict[int, list[tuple[int, int, bool, bool]]] = {
    16: [
        (8, 64, True, True),
        (2, 512, True, True),
        (8, 512, False, True),
        (8, 2048, True, True),
        (4, 2048, False, True),
        (2, 2048, False, False),
        (4, 1024, True, False),
        (1, 16384, True, True),
    ],
    128: [(2, 1024, False, True), (8, 1024, True, True)],
}


def recipe_of(row: Row, model: Path) -> Recipe:
    """The recipe that a row of the results was measured with; `model` holds its config.json."""
    return Recipe.from_data(
        {
            "model": {"name": str(model), "load_in_4bit": row["in_4bit"], "backend": "unsloth"},
            "data": {"path": "unused.jsonl"},
            "lora": {"r": row["rank"], "lora_alpha": row["rank"]},
            "train": {
                "per_device_train_batch_size": row["rows"],
                "gradient_checkpointing": row["checkpointing"],
                "padding_free": row["padding_free"],
                "optim": row["optim"],
            },
        }
    )


def guess(row: Row, model: Path) -> Memory:
    recipe = recipe_of(row, model)
    return memory_of(recipe, shape_of(recipe), row["tokens"], backend="unsloth", card_bytes=H200_BYTES)


def with_error(row: Row, guessed: Memory) -> Row:
    """The row with today's estimate and its error, as a share of what was measured."""
    error = guessed.total_bytes / (row["measured_gib"] * GIB) - 1
    estimated = {"estimated_gib": round(guessed.total_bytes / GIB, 3), "error": round(error, 4)}
    return {**row, **estimated, "parts_gib": {k: round(v / GIB, 3) for k, v in asdict(guessed).items()}}


def measure(model: Path, *, in_4bit: bool, rank: int) -> list[Row]:
    """Load once, then run each setting of this rank."""
    import torch

    from tuitune.backends.unsloth import UnslothBackend
    from tuitune.machine import hardware
    from tuitune.train.batching import Padded, PaddingFree

    gc.collect()
    torch.cuda.empty_cache()
    settings: list[Row] = [
        {
            "model": model.name,
            "in_4bit": in_4bit,
            "rank": rank,
            "rows": rows,
            "tokens": rows * length,
            "checkpointing": checkpointing,
            "padding_free": padding_free,
            "optim": "adamw_torch_fused",
        }
        for rows, length, checkpointing, padding_free in SETTINGS[rank]
    ]
    backend = UnslothBackend()
    loaded = backend.load(recipe_of(settings[0], model))
    backend.attach(loaded)
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    card = hardware.chosen_gpu()
    assert card is not None
    rng = random.Random(0)
    results = []
    for row in settings:
        guessed = guess(row, model)
        if guessed.total_bytes > 0.9 * card.total_bytes:
            continue
        loaded.gradient_checkpointing = row["checkpointing"]
        backend.for_training(loaded)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        collate = PaddingFree(0) if row["padding_free"] else Padded(0)
        length = row["tokens"] // row["rows"]
        sequences = [[rng.randrange(10, 3000) for _ in range(length)] for _ in range(row["rows"])]
        batch = {
            k: v.cuda() for k, v in collate([{"input_ids": ids, "labels": list(ids)} for ids in sequences]).items()
        }
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        for _ in range(2):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                count = torch.tensor(row["tokens"], device="cuda")
                loss = loaded.model(**batch, use_cache=False, num_items_in_batch=count).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.cuda.synchronize()
        sample = hardware.sample()
        context = (sample.gpu_process_bytes or 0) - torch.cuda.memory_reserved()
        measured = round((torch.cuda.max_memory_reserved() + context) / GIB, 3)
        results.append(with_error({**row, "measured_gib": measured, "context_gib": round(context / GIB, 3)}, guessed))
        print(json.dumps(results[-1]), flush=True)
        del optimizer, batch, loss
        for parameter in trained:
            parameter.grad = None
    del loaded, trained
    return results


def recorded() -> dict[str, Any]:
    """The results with every estimate made again, the measurements as they are."""
    from transformers import AutoTokenizer

    result: dict[str, Any] = json.loads(RESULT.read_text())
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE_DATA / "demo_model")
    with tempfile.TemporaryDirectory() as folder:
        for name in {row["model"] for row in result["rows"] + result["whole_runs"]}:
            make_config(name, tokenizer).save_pretrained(Path(folder) / name)
        for part in ("rows", "whole_runs"):
            result[part] = [with_error(row, guess(row, Path(folder) / row["model"])) for row in result[part]]
    return result | summary(result["rows"]) | {"whole_runs_summary": summary(result["whole_runs"])}


def summary(rows: list[Row]) -> dict[str, float]:
    """Mean absolute, largest absolute and lowest error, as shares of what was measured."""
    errors = [row["error"] for row in rows]
    return {
        "configurations": len(errors),
        "mean_error": round(sum(map(abs, errors)) / len(errors), 4),
        "worst_error": max(map(abs, errors)),
        "lowest": min(errors),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tuitune-speed")
    parser.add_argument("--shapes", nargs="+", default=["1b", "8b"])
    parser.add_argument("--recorded", action="store_true", help="estimate again what was measured before")
    arguments = parser.parse_args()
    result = recorded() if arguments.recorded else measured(arguments.folder, arguments.shapes)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({key: value for key, value in result.items() if not isinstance(value, list)}, indent=1))


def measured(folder: Path, shapes: list[str]) -> dict[str, Any]:
    from tuitune.machine.environment import prepare_environment

    prepare_environment()
    import unsloth  # noqa: F401  (before transformers, which makes the models)

    rows: list[Row] = []
    for name in shapes:
        model = make_model(name, folder / name)
        for in_4bit in (True, False):
            for rank in SETTINGS:
                rows += measure(model, in_4bit=in_4bit, rank=rank)
    import torch

    # What whole runs held is kept: it comes from benchmarks.gpu_speed.
    whole = {k: v for k, v in json.loads(RESULT.read_text()).items() if k.startswith("whole_runs")}
    about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    return {"date": datetime.date.today().isoformat(), **about, **summary(rows), **whole, "rows": rows}


if __name__ == "__main__":
    main()
