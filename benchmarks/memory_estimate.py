"""The memory estimate against what a GPU really held, over shapes, precisions, lengths, batches and ranks.

    python -m benchmarks.memory_estimate [--folder DIR] [--shapes 1b 8b]

Needs an NVIDIA GPU with Unsloth. Each configuration runs two whole optimizer steps on its longest batch; measured is
what the process held on the card at the peak: the allocator's peak plus the CUDA context. Prints one line a
configuration and writes benchmarks/results/memory_estimate.json.
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

from benchmarks.shapes import make_model
from tuitune.recipe import Recipe

RESULTS = Path(__file__).parent / "results"
GIB = 2**30
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


def measure(model: Path, *, in_4bit: bool, rank: int) -> list[dict[str, Any]]:
    """Load once, then run each setting of this rank."""
    import torch

    from tuitune import estimate, hardware
    from tuitune.backends.unsloth import UnslothBackend
    from tuitune.batching import Padded, PaddingFree

    gc.collect()
    torch.cuda.empty_cache()
    base: dict[str, Any] = {
        "model": {"name": str(model), "load_in_4bit": in_4bit, "backend": "unsloth"},
        "data": {"path": "unused.jsonl"},
        "lora": {"r": rank, "lora_alpha": rank},
    }
    backend = UnslothBackend()
    loaded = backend.load(Recipe.from_data(base))
    backend.attach(loaded)
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    card = hardware.chosen_gpu()
    assert card is not None
    rng = random.Random(0)
    found = []
    for rows, length, checkpointing, free in SETTINGS[rank]:
        recipe = Recipe.from_data(
            {
                **base,
                "train": {
                    "per_device_train_batch_size": rows,
                    "gradient_checkpointing": checkpointing,
                    "padding_free": free,
                },
            }
        )
        shape = estimate.shape_of(recipe)
        tokens = rows * length
        guess = estimate.memory_of(recipe, shape, tokens, backend="unsloth", card_bytes=card.total_bytes)
        if guess.total_bytes > 0.9 * card.total_bytes:
            continue
        loaded.gradient_checkpointing = checkpointing
        backend.for_training(loaded)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        collate = PaddingFree(0) if free else Padded(0)
        made = [[rng.randrange(10, 3000) for _ in range(length)] for _ in range(rows)]
        batch = {k: v.cuda() for k, v in collate([{"input_ids": ids, "labels": list(ids)} for ids in made]).items()}
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        for _ in range(2):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                count = torch.tensor(tokens, device="cuda")
                loss = loaded.model(**batch, use_cache=False, num_items_in_batch=count).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.cuda.synchronize()
        sample = hardware.sample()
        context = (sample.gpu_process_bytes or 0) - torch.cuda.memory_reserved()
        measured = torch.cuda.max_memory_reserved() + context
        row = {
            "model": model.name,
            "in_4bit": in_4bit,
            "rank": rank,
            "rows": rows,
            "length": length,
            "checkpointing": checkpointing,
            "padding_free": free,
            "measured_gib": round(measured / GIB, 3),
            "allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 3),
            "context_gib": round(context / GIB, 3),
            "estimated_gib": round(guess.total_bytes / GIB, 3),
            "error": round(guess.total_bytes / measured - 1, 4),
            "parts_gib": {k: round(v / GIB, 3) for k, v in asdict(guess).items()},
        }
        print(json.dumps(row), flush=True)
        found.append(row)
        del optimizer, batch, loss
        for parameter in trained:
            parameter.grad = None
    del loaded, trained
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean absolute, largest absolute and lowest error, as shares of what was measured."""
    errors = [row["error"] for row in rows]
    return {
        "configurations": len(errors),
        "mean_error": round(sum(map(abs, errors)) / len(errors), 4),
        "worst_error": max(map(abs, errors)),
        "lowest": min(errors),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tuitune-speed")
    parser.add_argument("--shapes", nargs="+", default=["1b", "8b"])
    arguments = parser.parse_args()
    from tuitune.backends.environment import prepare_environment

    prepare_environment()
    import unsloth  # noqa: F401  (before transformers, which makes the models)

    rows: list[dict[str, Any]] = []
    for name in arguments.shapes:
        model = make_model(name, arguments.folder / name)
        for in_4bit in (True, False):
            for rank in SETTINGS:
                rows += measure(model, in_4bit=in_4bit, rank=rank)
    import torch

    found = {
        "date": datetime.date.today().isoformat(),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        **summary(rows),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory_estimate.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
