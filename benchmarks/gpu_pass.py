"""One forward and backward pass on a GPU: with the whole output layer, for trained tokens alone, with its 4-bit weights
dequantised once, and as a CUDA graph.

    python -m benchmarks.gpu_pass MODEL CHATS [--rows 8 64] [--set field=value …] [--kernels 0] [--out FILE]

MODEL is a folder, CHATS a JSONL file with `messages`. For each number of rows a pass: milliseconds and tokens a second,
memory, and how loss and gradients differ from those of the same pass with the whole output layer. `--kernels N` lists
the N kernels that take the most of a pass. Prints one line of JSON for each number of rows, and writes them to FILE.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuitune.backends.loaded import LoadedModel
from tuitune.machine.environment import warm_up
from tuitune.recipe import Recipe

_REPEATS = 5


def load(model: Path, chats: Path, changes: list[str]) -> tuple[LoadedModel, Any]:
    """The model with its adapter, which no longer maps to zero, in training mode; and the tokenised rows."""
    from tuitune import backends
    from tuitune.data.prepare import prepare
    from tuitune.train.isolation import settle_batches

    recipe = Recipe.from_data(
        {"model": {"name": str(model), "backend": "unsloth"}, "data": {"path": str(chats), "eval_share": 0}},
        changes=["gradient_checkpointing=false", *changes],
    )
    loaded = backends.load(recipe, print)
    rows = prepare(recipe, loaded.tokenizer).train
    loaded.backend.attach(loaded)
    move_off_zero(loaded)
    settle_batches(loaded, rows)
    return loaded, rows


def move_off_zero(loaded: LoadedModel) -> None:
    """Turn the fresh adapter to fp32, as training does, and draw what begins at zero: all of it then has gradients."""
    import torch

    generator = torch.Generator("cuda").manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if "lora_B" in name:
                parameter.data.normal_(0, 0.02, generator=generator)


def compare(loaded: LoadedModel, rows: Any, count: int) -> dict[str, Any]:
    """A pass of `count` rows each way. Gradients are compared by cosine, losses by difference."""
    import torch

    from tuitune.backends.dequantized import kept_bytes
    from tuitune.train.batching import IGNORED, collator
    from tuitune.train.graphs import can_capture
    from tuitune.train.isolation import loss_of
    from tuitune.train.sizes import pass_sizes

    loaded.backend.for_training(loaded)
    lengths = [len(ids) for ids in rows["input_ids"]]
    by_length = sorted(range(len(lengths)), key=lambda place: lengths[place])
    chosen = [rows[by_length[(2 * i + 1) * len(by_length) // (2 * count)]] for i in range(count)]
    tokens = sum(len(row["input_ids"]) for row in chosen)
    trained_head = loaded.trained_head
    loaded.pass_sizes, loaded.trained_head = (), False
    whole = collator(loaded)(chosen)
    loaded.trained_head = trained_head
    part = collator(loaded)(chosen)
    loaded.pass_sizes = pass_sizes(lengths, count)
    filled = {name: tensor.pin_memory() for name, tensor in collator(loaded)(chosen).items()}
    trained = int((whole["labels"] != IGNORED).sum())
    report: dict[str, Any] = {
        "rows": count,
        "tokens": tokens,
        "trained": trained,
        "sizes": loaded.pass_sizes,
        "filled_up_to": filled["input_ids"].shape[1],
        "head_places": filled["trained_places"].shape[1] if "trained_places" in filled else None,
    }

    def eager(batch: dict[str, Any]) -> Callable[[], Any]:
        def run() -> Any:
            loss = loss_of(loaded, batch, trained)
            loss.backward()
            return loss.detach()

        return run

    def clear() -> None:
        for parameter in loaded.model.parameters():
            parameter.grad = None

    def measure(name: str, run: Callable[[], Any]) -> dict[str, Any]:
        clear()
        run()
        clear()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        loss = run().item()
        gradients = {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.grad is not None}
        began = time.perf_counter()
        for _ in range(_REPEATS):
            run()
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - began) / _REPEATS
        report[name] = {
            "ms": round(1e3 * seconds, 2),
            "tokens_per_second": round(tokens / seconds),
            "loss": loss,
            "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 1),
        }
        return {"loss": loss, "gradients": gradients}

    reference = measure("whole head", eager(whole))
    repeated = measure("whole head again", eager(whole))
    head = measure("trained head", eager(part))
    pairs = {"whole head again": repeated, "trained head": head}
    if kept_bytes(loaded.model):
        loaded.dequantize_once = True
        loaded.backend.for_training(loaded)
        pairs["dequantised once"] = measure("dequantised once", eager(part))
    if can_capture(loaded):
        graphs = pass_graphs(loaded, count, max(lengths))
        clear()
        loss = graphs.run(filled, [trained])[0].item()
        gradients = {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.grad is not None}
        clear()
        began = time.perf_counter()
        graphs.run(filled, [trained])
        torch.cuda.synchronize()
        report["capture_s"] = round(time.perf_counter() - began, 3)
        pairs["graph"] = measure("graph", lambda: graphs.run(filled, [trained])[0])
        report["graph"] |= {"captured": graphs.captured}
        report["graph_against_itself_eager"] = _difference({"loss": loss, "gradients": gradients}, pairs["graph"])
        graphs.drop()
    loaded.dequantize_once = False
    loaded.backend.for_training(loaded)
    for name, other in pairs.items():
        report[name] |= _difference(reference, other)
    clear()
    return report


def pass_graphs(loaded: LoadedModel, rows: int, longest: int) -> Any:
    """What runs passes of the model's method, of at most `rows` sequences of at most `longest` tokens."""
    from tuitune.train.graphs import PassGraphs
    from tuitune.train.methods import learner_of

    return PassGraphs(loaded, learner_of(loaded.recipe).compute(loaded, loaded.recipe), rows, longest)


def _difference(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    from tuitune.train.isolation import _cosine

    same = all(first["gradients"][name].equal(second["gradients"][name]) for name in first["gradients"])
    return {
        "loss_difference": second["loss"] - first["loss"],
        "gradient_cosine": round(_cosine(first["gradients"], second["gradients"]), 8),
        "gradients_equal": same,
    }


def kernels(loaded: LoadedModel, rows: Any, count: int, most: int) -> list[str]:
    """The kernels of a pass of `count` rows that take the most time, and then torch's operations with their shapes.

    Each line is milliseconds, calls, name.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    from tuitune.train.batching import collator
    from tuitune.train.isolation import loss_of

    loaded.pass_sizes = ()
    batch = collator(loaded)([rows[i] for i in range(count)])
    trained = int((batch["labels"] != -100).sum())
    loss_of(loaded, batch, trained).backward()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU], record_shapes=True) as profiled:
        loss_of(loaded, batch, trained).backward()
        torch.cuda.synchronize()
    events = [event for event in profiled.key_averages() if str(event.device_type).endswith("CUDA")]
    events.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events) / 1e3
    named = [f"{event.self_device_time_total / 1e3:7.2f} {event.count:5d} {event.key[:110]}" for event in events[:most]]
    operations = [event for event in profiled.key_averages(group_by_input_shape=True) if event.key.startswith("aten::")]
    operations.sort(key=lambda event: -event.self_device_time_total)
    shaped = [
        f"{event.self_device_time_total / 1e3:7.2f} {event.count:5d} {event.key} {event.input_shapes}"[:170]
        for event in operations[:most]
    ]
    return [f"{total:7.2f} ms in all, {sum(event.count for event in events)} kernels", *named, *shaped]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("chats", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--kernels", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warm_up()
    loaded, rows = load(arguments.model, arguments.chats, arguments.changes)
    reports = []
    for count in arguments.rows:
        reports.append(compare(loaded, rows, count))
        print(json.dumps(reports[-1]), flush=True)
        if arguments.kernels:
            print("\n".join(kernels(loaded, rows, count, arguments.kernels)), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(reports, indent=2) + "\n")


if __name__ == "__main__":
    main()
