"""Preference training on a GPU: its speed beside the plain notebook's, and replies end to end against each alone.

    python -m benchmarks.gpu_preference speed MODEL pairs.jsonl --pairs 8 --steps 40 --out results.json
    python -m benchmarks.gpu_preference same MODEL pairs.jsonl

The peer's script prints a JSON line of its own; `--peer` runs it on the same model and pairs and adds it to the result.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def recipe_of(model: Path, data: Path, **changes: Any) -> Any:
    from tuitune.recipe import Recipe

    train = {"max_steps": 40, "save_steps": 100_000, "eval_steps": 0, "optim": "adamw_8bit", "warmup_steps": 2}
    return Recipe.from_data(
        {
            "model": {"name": str(model.resolve()), "backend": "unsloth"},
            "data": {"path": str(data.resolve()), "max_length": 1024},
            "method": {"name": changes.pop("method", "dpo")},
            "train": {**train, **changes},
            "samples": {"prompts": ["Hello"], "max_new_tokens": 1},
        }
    )


def compare(loaded: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Replies of pairs end to end against each alone; the adapter of `loaded` is moved off zero for it.

    `logp_difference` is the largest difference of a reply's log-probability per token, in nats; `gradient_cosine` is
    between DPO's gradients of the batch and the sum over its pairs, each alone and padded; `gradient_cosine_padded` is
    what rounding alone makes of the same batch, padded.
    """
    import torch

    from tuitune.train.batching import Padded
    from tuitune.train.isolation import _cosine
    from tuitune.train.methods import learner_of
    from tuitune.train.methods.replies import CollateReplies, reply_logps
    from tuitune.train.methods.reply_trainer import Totals

    learner: Any = learner_of(loaded.recipe)
    loss, sequences_of = learner.loss(loaded.recipe), learner.sequences
    generator = torch.Generator(device=loaded.model.device).manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(parameter.shape, generator=generator, device=parameter.device)
            parameter.data.add_(0.01 * noise.to(parameter.dtype))
    loaded.backend.for_training(loaded)
    packed = learner.collator(loaded)(rows)
    padded = CollateReplies(Padded(loaded.tokenizer.pad_token_id or 0), True)
    alone = [[padded([sequence]) for sequence in sequences_of(row)] for row in rows]
    pairs = [padded(sequences_of(row)) for row in rows]

    def gradient(batches: list[dict[str, Any]]) -> dict[str, Any]:
        for parameter in loaded.model.parameters():
            parameter.grad = None
        for batch in batches:
            loss.outcome(loaded, batch, Totals(len(rows), 1)).loss.backward()
        named = loaded.model.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None and "lora_" in name}

    with torch.no_grad():
        together = reply_logps(loaded, packed).cpu()
        single = torch.stack([torch.cat([reply_logps(loaded, side).cpu() for side in row]) for row in alone], dim=1)
    counts, gradients_alone = packed["label_counts"], gradient(pairs)
    whole = padded([sequences_of(row)[side] for side in (0, 1) for row in rows])
    return {
        "attention": loaded.attention,
        "pairs": len(rows),
        "tokens": sum(len(sequence["input_ids"]) for row in rows for sequence in sequences_of(row)),
        "logp_difference": float(((together - single.flatten()).abs() / counts).max()),
        "gradient_cosine": _cosine(gradient([packed]), gradients_alone),
        "gradient_cosine_padded": _cosine(gradient([whole]), gradients_alone),
        "peak_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
    }


def load(model: Path, data: Path, **changes: Any) -> tuple[Any, Any]:
    """The model with its adapter through Unsloth, and the tokenised pairs."""
    from tuitune.machine.environment import warm_up

    warm_up()
    from tuitune import backends
    from tuitune.data.prepare import prepare

    recipe = recipe_of(model, data, **changes)
    loaded = backends.load(recipe, print, lambda text, done, total: None)
    loaded.backend.attach(loaded)
    return loaded, prepare(recipe, loaded.tokenizer).train


def speed(model: Path, data: Path, pairs: int, steps: int, method: str) -> dict[str, Any]:
    """Pairs and tokens a second over the last two thirds of a run's steps, as tuitune itself chooses the passes."""
    from tuitune.machine.environment import warm_up

    warm_up()
    import torch

    from tuitune.runs.events import Event, Notice, Plan, Step
    from tuitune.runs.folder import create_run
    from tuitune.train.control import Control
    from tuitune.train.run import train

    recipe = recipe_of(
        model, data, method=method, max_steps=steps, per_device_train_batch_size=pairs, gradient_accumulation_steps=1
    )
    timed_steps: list[tuple[float, Step]] = []
    settled: dict[str, Any] = {}

    def emit(event: Event) -> None:
        if isinstance(event, Step):
            timed_steps.append((time.perf_counter(), event))
            if len(timed_steps) == 1:
                torch.cuda.reset_peak_memory_stats()
        if isinstance(event, Notice):
            settled.setdefault("notices", []).append(event.text)
        if isinstance(event, Plan):
            settled["plan"] = {"batches": event.batches, "attention": event.attention, "isolation": event.isolation}

    with tempfile.TemporaryDirectory() as folder:
        writer = create_run(recipe, Path(folder), "speed")
        train(recipe, writer.run, Control(), emit)
        writer.close()
    third = len(timed_steps) // 3
    seconds = timed_steps[-1][0] - timed_steps[third][0]
    after = [step for _, step in timed_steps[third + 1 :]]
    return {
        "pairs_per_second": round(pairs * len(after) / seconds, 2),
        "tokens_per_second": round(sum(step.tokens or 0 for step in after) / seconds),
        "seconds_per_step": round(seconds / len(after), 4),
        "first_loss": timed_steps[0][1].loss,
        "last_loss": timed_steps[-1][1].loss,
        "last_metrics": timed_steps[-1][1].metrics,
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        **settled,
    }


PASSES = [
    *((pairs, length, True) for pairs, length in ((2, 256), (8, 256), (8, 512), (16, 512))),
    *((pairs, length, False) for pairs, length in ((2, 256), (4, 512), (8, 256), (8, 512))),
]
"""Pairs, tokens of each reply with its prompt, checkpointing."""


def memory(model: Path, data: Path, method: str) -> dict[str, Any]:
    """Peaks of passes of one method, forward, backward and optimizer, against the estimate."""
    import gc
    import random

    import torch

    from tuitune.machine import hardware
    from tuitune.plan.memory import memory_of, shape_of
    from tuitune.train.methods import learner_of

    loaded, _ = load(model, data, method=method)
    recipe, learner = loaded.recipe, learner_of(loaded.recipe)
    shape, card = shape_of(recipe), hardware.chosen_gpu()
    assert card is not None
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    rng, results = random.Random(0), []
    for pairs, length, checkpointing in PASSES:
        loaded.gradient_checkpointing = checkpointing
        loaded.backend.for_training(loaded)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

        def side(length: int) -> tuple[list[int], list[int]]:
            ids = [rng.randrange(10, 3000) for _ in range(length)]
            return ids, [-100] * (length // 2) + ids[length // 2 :]

        rows: list[dict[str, Any]] = []
        for _ in range(pairs):
            (chosen, kept), (rejected, left) = side(length), side(length)
            both = {"chosen_input_ids": chosen, "chosen_labels": kept}
            rows.append({**both, "rejected_input_ids": rejected, "rejected_labels": left, "desirable": [1]}
                        | {"input_ids": chosen, "labels": kept})  # fmt: skip
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        batch = learner.collator(loaded)(rows)
        for _ in range(2):
            learner.loss_of(loaded, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.cuda.synchronize()
        context = (hardware.sample().gpu_process_bytes or 0) - torch.cuda.memory_reserved()
        measured = torch.cuda.max_memory_reserved() + context
        changed = {"gradient_checkpointing": checkpointing, "optim": "adamw_torch_fused"}
        settled = recipe.model_copy(update={"train": recipe.train.model_copy(update=changed)})
        tokens = sum(learner.method.lengths_of(rows))
        parts = memory_of(settled, shape, tokens, backend="unsloth", card_bytes=card.total_bytes)
        row = {"pairs": pairs, "length": length, "checkpointing": checkpointing, "measured_gib": measured / 2**30}
        row |= {"estimated_gib": parts.total_bytes / 2**30, "error": parts.total_bytes / measured - 1}
        results.append({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
        print(json.dumps(results[-1]), flush=True)
        del optimizer, batch
    errors = [row["error"] for row in results]
    return {"rows": results, "mean_error": sum(map(abs, errors)) / len(errors), "lowest": min(errors)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speed", "same", "memory"))
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--method", default="dpo")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--peer", type=Path, help="the peer's script, run before")
    parser.add_argument("--peer-steps", type=int, default=6)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"date": datetime.date.today().isoformat(), "method": arguments.method}
    if arguments.what == "same":
        loaded, rows = load(arguments.model, arguments.data)
        result |= compare(loaded, [rows[place] for place in range(arguments.pairs)])
    elif arguments.what == "memory":
        result |= memory(arguments.model, arguments.data, arguments.method)
    else:
        if arguments.peer:
            command = [sys.executable, str(arguments.peer), str(arguments.model), str(arguments.data)]
            command += ["--steps", str(arguments.peer_steps)]
            lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
            result["peer"] = next((json.loads(line) for line in reversed(lines) if line.startswith("{")), None)
        result["tuitune"] = speed(arguments.model, arguments.data, arguments.pairs, arguments.steps, arguments.method)
        if result.get("peer"):
            ratio = result["tuitune"]["pairs_per_second"] / result["peer"]["pairs_per_second"]
            result["times_the_peer"] = round(ratio, 2)
    import torch

    result["gpu"] = torch.cuda.get_device_name()
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
