"""Whether rows laid end to end train like rows alone: per-token loss, isolation, gradients, labels, loss curves.

    python -m benchmarks.gpu_equivalence [MODEL_FOLDER] [--data FILE] [--rows 8] [--16bit]

Needs an NVIDIA GPU with Unsloth. The default is the demo model on its own data. Prints one JSON object and writes it to
benchmarks/results/gpu_equivalence_NAME.json.
"""

import argparse
import datetime
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuitune.backends.loaded import LoadedModel
from tuitune.recipe import Recipe
from tuitune.train.batching import Padded, PaddingFree, Row

SAMPLE_DATA = Path(__file__).parents[1] / "sample_data"
RESULTS = Path(__file__).parent / "results"


def load(model: Path, data: Path, *, in_4bit: bool = True) -> tuple[LoadedModel, list[Row]]:
    """The model through the Unsloth backend, with an adapter that already changes what it says, and the data's rows."""
    import torch

    from tuitune.backends.unsloth import UnslothBackend
    from tuitune.data.prepare import prepare

    recipe = Recipe.from_data(
        {
            "model": {"name": str(model), "load_in_4bit": in_4bit, "backend": "unsloth"},
            "data": {"path": str(data)},
            "train": {"gradient_checkpointing": False, "fit": False},
        }
    )
    backend = UnslothBackend()
    loaded = backend.load(recipe)
    backend.attach(loaded)
    generator = torch.Generator(device="cuda").manual_seed(0)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=1e-3, generator=generator)
    backend.for_training(loaded)
    rows = prepare(recipe, loaded.tokenizer).train
    return loaded, [rows[i] for i in range(min(512, len(rows)))]


def compare(loaded: LoadedModel, rows: list[Row], *, steps: int = 10) -> dict[str, Any]:
    """All figures of the report; `rows` beyond the first batch feed the loss curves."""
    batch = rows[:8]
    return {
        "attention": loaded.attention,
        "rows": len(batch),
        "tokens": sum(len(row["input_ids"]) for row in batch),
        **token_losses(loaded, batch),
        **isolation(loaded, batch),
        **gradients(loaded, batch),
        **labels(loaded, rows),
        **curves(loaded, rows, steps),
        **(against_fp32(loaded, batch) if not loaded.recipe.model.load_in_4bit else {}),
    }


def token_losses(loaded: LoadedModel, rows: list[Row]) -> dict[str, float]:
    """Loss of each token among other rows against alone; the floor is alone against alone beside padding."""
    import torch

    together = _row_states(loaded, rows)
    alone = [_states(loaded, {"input_ids": [row["input_ids"]]})[0] for row in rows]
    # The same row in a longer tensor: other matrix kernels round differently, with no other row in sight.
    padded = [
        _states(loaded, PaddingFree(loaded.tokenizer.pad_token_id)([row]), tensors=True)[0, : len(row["input_ids"])]
        for row in rows
    ]
    losses = [
        [_losses(loaded, s, row) for s, row in zip(kind, rows, strict=True)] for kind in (together, alone, padded)
    ]
    a, b, c = (torch.cat(token_losses) for token_losses in losses)
    return {
        "token_loss_mean": float(b.mean()),
        "token_loss_mean_difference": float((a - b).abs().mean()),
        "token_loss_difference_of_means": float((a.mean() - b.mean()).abs()),
        "token_loss_max_difference": float((a - b).abs().max()),
        "token_loss_floor": float((c - b).abs().mean()),
    }


def against_fp32(loaded: LoadedModel, rows: list[Row]) -> dict[str, float]:
    """How far bf16 losses of each token lie from fp32 ones, among other rows and alone. Leaves the model in fp32."""
    import torch

    together = _row_states(loaded, rows)
    alone = [_states(loaded, {"input_ids": [row["input_ids"]]})[0] for row in rows]
    loaded.model.float()
    loaded.model.config.dtype = torch.float32  # Unsloth brings the hidden states to this
    exact = [_states(loaded, {"input_ids": [row["input_ids"]]}, bf16=False)[0] for row in rows]
    a, b, c = (
        torch.cat([_losses(loaded, s, row) for s, row in zip(kind, rows, strict=True)])
        for kind in (together, alone, exact)
    )
    return {
        "token_loss_error_together": float((a - c).abs().mean()),
        "token_loss_error_alone": float((b - c).abs().mean()),
    }


def isolation(loaded: LoadedModel, rows: list[Row]) -> dict[str, bool]:
    """Whether changing one row leaves every other row's output as it was, to the last bit."""
    import torch

    before = _row_states(loaded, rows)
    middle = len(rows) // 2
    changed = list(rows)
    changed[middle] = {"input_ids": rows[middle]["input_ids"][::-1], "labels": rows[middle]["labels"]}
    after = _row_states(loaded, changed)
    others = [i for i in range(len(rows)) if i != middle]
    return {
        "other_rows_bit_identical": all(torch.equal(before[i], after[i]) for i in others),
        "changed_row_differs": not torch.equal(before[middle], after[middle]),
    }


def gradients(loaded: LoadedModel, rows: list[Row]) -> dict[str, float]:
    """Cosine of the adapter's gradients, end to end against padded; the floor is padded against one row at a time."""
    import torch

    pad = loaded.tokenizer.pad_token_id
    total = sum(len(row["labels"]) - row["labels"].count(-100) for row in rows)

    def gradient(batches: list[dict[str, Any]]) -> Any:
        for parameter in loaded.model.parameters():
            parameter.grad = None
        for batch in batches:
            _loss(loaded, batch, total).backward()
        return torch.cat([p.grad.double().flatten() for p in loaded.model.parameters() if p.requires_grad])

    def cosine(a: Any, b: Any) -> float:
        return float(torch.nn.functional.cosine_similarity(a, b, dim=0))

    padding_free, padded = gradient([PaddingFree(pad)(rows)]), gradient([Padded(pad)(rows)])
    alone = gradient([Padded(pad)([row]) for row in rows])
    repeated = gradient([PaddingFree(pad)(rows)])
    return {
        "gradient_cosine_padding_free_padded": cosine(padding_free, padded),
        "gradient_cosine_padding_free_alone": cosine(padding_free, alone),
        "gradient_cosine_floor_padded_alone": cosine(padded, alone),
        "gradient_cosine_floor_repeated": cosine(padding_free, repeated),
        "gradient_norm_ratio": float(padding_free.norm() / alone.norm()),
    }


def labels(loaded: LoadedModel, rows: list[Row]) -> dict[str, int]:
    """Trained labels counted both ways; a row's first token has no token before it to be predicted from."""
    pad = loaded.tokenizer.pad_token_id
    padding_free = int((PaddingFree(pad)(rows)["labels"] != -100).sum())
    padded = int((Padded(pad)(rows)["labels"][:, 1:] != -100).sum())
    return {"trained_labels_padding_free": padding_free, "trained_labels_padded": padded}


def curves(loaded: LoadedModel, rows: list[Row], steps: int) -> dict[str, Any]:
    """Losses of `steps` AdamW steps over the same rows in the same order, both ways, from the same adapter."""
    import torch

    pad = loaded.tokenizer.pad_token_id
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]
    losses = {}
    for name, collate in (("padding_free", PaddingFree(pad)), ("padded", Padded(pad))):
        for parameter, first in zip(trained, start, strict=True):
            parameter.data.copy_(first)
            parameter.grad = None
        optimizer = torch.optim.AdamW(trained, lr=2e-4, fused=True)
        curve = []
        for step in range(steps):
            picked = [rows[(step * 8 + i) % len(rows)] for i in range(8)]
            total = sum(len(row["labels"]) - row["labels"].count(-100) for row in picked)
            loss = _loss(loaded, collate(picked), total)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(float(loss.detach()))
        losses[name] = curve
    for parameter, first in zip(trained, start, strict=True):
        parameter.data.copy_(first)
    pairs = list(zip(losses["padding_free"], losses["padded"], strict=True))
    return {
        "curve_padding_free": [round(a, 5) for a, _ in pairs],
        "curve_padded": [round(b, 5) for _, b in pairs],
        "curve_largest_difference": max(abs(a - b) for a, b in pairs),
    }


def _loss(loaded: LoadedModel, batch: dict[str, Any], total: int) -> Any:
    import torch

    inputs = {name: tensor.cuda() for name, tensor in batch.items()}
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return loaded.model(**inputs, use_cache=False, num_items_in_batch=torch.tensor(total, device="cuda")).loss


@contextmanager
def _hidden_states() -> Iterator[None]:
    """Unsloth gives the last hidden states in place of logits, so that no bf16 rounding of logits is compared."""
    os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "1"
    try:
        yield
    finally:
        os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "0"


def _states(loaded: LoadedModel, batch: dict[str, Any], *, tensors: bool = False, bf16: bool = True) -> Any:
    import torch

    inputs = {n: (t if tensors else torch.tensor(t)).cuda() for n, t in batch.items() if n != "labels"}
    with _hidden_states(), torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16):
        return loaded.model(**inputs, use_cache=False).logits


def _row_states(loaded: LoadedModel, rows: list[Row]) -> list[Any]:
    states = _states(loaded, PaddingFree(loaded.tokenizer.pad_token_id)(rows), tensors=True)[0]
    lengths = [len(row["input_ids"]) for row in rows]
    return list(states[: sum(lengths)].split(lengths))


def _losses(loaded: LoadedModel, states: Any, row: Row) -> Any:
    import torch

    head = loaded.model.get_output_embeddings().weight.float()
    logits = states[:-1].float() @ head.T
    return torch.nn.functional.cross_entropy(
        logits, torch.tensor(row["input_ids"][1:], device="cuda"), reduction="none"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=SAMPLE_DATA / "demo_model")
    parser.add_argument("--data", type=Path, default=SAMPLE_DATA / "pirate.jsonl")
    parser.add_argument("--16bit", action="store_true", dest="in_16bit")
    arguments = parser.parse_args()
    loaded, rows = load(arguments.model, arguments.data, in_4bit=not arguments.in_16bit)
    import torch

    name = f"{arguments.model.name}_{16 if arguments.in_16bit else 4}bit"
    result = {
        "date": datetime.date.today().isoformat(),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "model": name,
        **compare(loaded, rows),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"gpu_equivalence_{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
