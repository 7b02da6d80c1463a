"""Every architecture through Unsloth, from loading to the merged model, on tiny models with random weights.

    python -m benchmarks.gpu_architectures [NAME …] [--jobs 8] [--caches FOLDER]

Needs an NVIDIA GPU with Unsloth. Each model goes through a whole run twice, in 16-bit and then in 4-bit, each in a
process of its own; the first finds no compiled kernel, the second those of the first. Gradients are then held against
plain transformers and PEFT in fp32. Prints what is wrong, and writes benchmarks/results/gpu_architectures.json.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tuitune.conversation import Conversation

SAMPLE_DATA = Path(__file__).parents[1] / "sample_data"
RESULTS = Path(__file__).parent / "results"
QUESTION: Conversation = [{"role": "user", "content": "What is the capital of France?"}]
SECONDS_EACH = 240.0


def problems(figures: dict[str, Any]) -> list[str]:
    """What one architecture's figures show to be wrong; empty where it is proven."""
    wrong = []
    for precision in ("16bit", "4bit"):
        run = figures.get(precision, {})
        if "error" in run or not run:
            wrong.append(f"{precision}: {run.get('error', 'no result')}")
            continue
        if not run.get("holds"):
            wrong.append(f"{precision}: rows are not kept apart ({run['isolation']})")
        if not run["losses"][-1] < run["losses"][0]:
            wrong.append(f"{precision}: the loss does not fall ({run['losses']})")
        if not run["reloaded_equal"]:
            wrong.append(f"{precision}: the saved adapter answers differently")
    reference = figures.get("reference", {})
    if "error" in reference or not reference:
        wrong.append(f"reference: {reference.get('error', 'no result')}")
        return wrong
    together, alone = (1 - reference[f"cosine_{kind}"] for kind in ("together", "alone"))
    if not together <= 1.25 * alone + 5e-4:
        wrong.append(
            f"the batch's gradient is further from the exact one ({together:.5f}) than each row's ({alone:.5f})"
        )
    if not reference["merged_difference"] <= 0.1:
        wrong.append(f"the merged model answers differently ({reference['merged_difference']:.3f} nats a token)")
    return wrong


def measure(architecture: str, folder: Path, *, in_4bit: bool, backend: str = "unsloth") -> dict[str, Any]:
    """One whole run in this process, which has imported nothing heavy yet; `folder` gets what `compare` needs."""
    began = time.time()
    from tuitune.machine.environment import warm_up

    warm_up()
    imported = time.time()
    import torch

    from tests.architectures import build
    from tuitune import backends
    from tuitune.chat.reply import reply
    from tuitune.chat.sampling import Sampling
    from tuitune.data.prepare import prepare
    from tuitune.recipe import Recipe
    from tuitune.runs.folder import create_run
    from tuitune.train.control import Control
    from tuitune.train.run import train

    base = folder / "base"
    if not base.is_dir():
        build(architecture, base)
    recipe = Recipe.from_data(
        {
            "model": {"name": str(base), "load_in_4bit": in_4bit, "backend": backend},
            "data": {"path": str(SAMPLE_DATA / "pirate.jsonl"), "eval_share": 0.02},
            "train": {"max_steps": 6, "learning_rate": 5e-3, "warmup_steps": 0, "per_device_train_batch_size": 8}
            | {"gradient_accumulation_steps": 1},
            "samples": {"prompts": ["hello"], "max_new_tokens": 4},
        }
    )
    events: list[Any] = []
    writer = create_run(recipe, folder, "4bit" if in_4bit else "16bit")
    run = writer.run
    started = time.time()
    try:
        loaded = train(recipe, run, Control(), events.append)
    finally:
        writer.close()
    assert loaded is not None
    plan = next(event for event in events if event.kind == "plan")
    steps = [event for event in events if event.kind == "step"]
    answer = reply(loaded, QUESTION, Sampling(max_new_tokens=12)).text
    figures: dict[str, Any] = {
        "batches": plan.batches,
        "attention": plan.attention,
        "isolation": plan.isolation,
        "holds": "leak" not in plan.isolation or abs(plan.isolation["leak"]) <= 4 * abs(plan.isolation["repeat"]),
        "target_modules": list(plan.target_modules),
        "trainable_parameters": plan.trainable_parameters,
        "losses": [round(step.loss, 4) for step in steps],
        "notices": [event.text for event in events if event.kind == "notice"],
        "import_seconds": round(imported - began, 1),
        "first_step_seconds": round(imported - began + steps[0].at - started, 1),
    }
    try:
        if not in_4bit:
            rows = prepare(recipe, loaded.tokenizer).train
            torch.save(_gradients(loaded, [rows[i] for i in range(4)]), folder / "gradients.pt")
            figures["merged"] = _merged(run, folder / "exports")
        reloaded = backends.load(recipe, lambda text: None)
        reloaded.backend.attach_saved(reloaded, str(run.adapter))
        figures["reloaded_equal"] = reply(reloaded, QUESTION, Sampling(max_new_tokens=12)).text == answer
    except Exception as error:  # what was measured before stays worth knowing
        figures["error"] = f"{type(error).__name__}: {error}"[:600]
    figures["peak_mib"] = torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else None
    figures["seconds"] = round(time.time() - began, 1)
    return figures


def _gradients(loaded: Any, rows: list[Any]) -> dict[str, Any]:
    """The adapter's gradients of the rows in the run's own kind of batch, and of each row alone, as fp32 on the CPU."""
    from tuitune.train.batching import IGNORED, Padded, collator
    from tuitune.train.isolation import loss_of

    rows = [{name: list(row[name]) for name in ("input_ids", "labels")} for row in rows]
    trained = sum(label != IGNORED for row in rows for label in row["labels"][1:])
    loaded.backend.for_training(loaded)
    alone = Padded(loaded.tokenizer.pad_token_id or 0)
    kept: dict[str, Any] = {"rows": rows}
    for kind, batches in {"together": [collator(loaded)(rows)], "alone": [alone([row]) for row in rows]}.items():
        for parameter in loaded.model.parameters():
            parameter.grad = None
        for batch in batches:
            loss_of(loaded, batch, trained).backward()
        named = loaded.model.named_parameters()
        kept[kind] = {name: p.grad.float().cpu() for name, p in named if p.grad is not None and "lora_" in name}
    loaded.backend.for_inference(loaded)
    return kept


def _merged(run: Any, out: Path) -> str:
    from tuitune.export import export

    results = list(export(run, ["merged_16bit"], out, lambda *_: None, lambda question: False, lambda: False))
    return "; ".join(str(getattr(result, "error", "made")) for result in results)


def compare(folder: Path) -> dict[str, Any]:
    """Gradients and the merged model against plain transformers and PEFT in fp32; Unsloth is not imported here."""
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    from tuitune.train.batching import IGNORED

    kept = torch.load(folder / "gradients.pt", weights_only=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    multimodal = hasattr(AutoConfig.from_pretrained(folder / "base"), "text_config")
    kind = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM

    def opened(path: Path) -> Any:
        return kind.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").to(device)

    exact = PeftModel.from_pretrained(opened(folder / "base"), folder / "16bit" / "adapter", is_trainable=True).float()
    merged = opened(folder / "exports" / "merged_16bit")
    trained = sum(label != IGNORED for row in kept["rows"] for label in row["labels"][1:])
    differences = []
    for row in kept["rows"]:
        ids, labels = (torch.tensor([row[name]], device=device) for name in ("input_ids", "labels"))
        logits = exact(input_ids=ids).logits[0, :-1].float()
        (torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum") / trained).backward()
        with torch.no_grad():
            answers = merged(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            differences.append((answers - logits.log_softmax(-1)).abs().mean())
    gradients = {name: p.grad.cpu() for name, p in exact.named_parameters() if p.grad is not None}

    def cosine(kind: str) -> float:
        names = kept[kind].keys() & gradients.keys()
        measured, expected = (
            torch.cat([side[n].double().flatten() for n in names]) for side in (kept[kind], gradients)
        )
        return float(torch.nn.functional.cosine_similarity(measured, expected, dim=0))

    return {
        "cosine_together": cosine("together"),
        "cosine_alone": cosine("alone"),
        "tensors": len(gradients),
        "tensors_compared": len(kept["together"].keys() & gradients.keys()),
        "merged_difference": float(torch.stack(differences).mean()),
    }


def _child(arguments: list[str], folder: Path, caches: Path) -> dict[str, Any]:
    """What a process of this module printed as its last line; its own words where it failed."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "UNSLOTH_COMPILE_LOCATION": str(caches / "unsloth"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "benchmarks.gpu_architectures", "--folder", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=SECONDS_EACH, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {SECONDS_EACH:.0f} s"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer
    except (ValueError, IndexError):
        return {"error": " | ".join(done.stderr.strip().splitlines()[-3:])[-600:]}


def prove(architecture: str, folder: Path, caches: Path, backend: str = "unsloth") -> dict[str, Any]:
    """Everything that is measured of one architecture: `16bit` and `4bit` runs, and the `reference`."""
    figures = {}
    for precision in ("16bit", "4bit"):
        figures[precision] = _child([architecture, "--run", precision, "--backend", backend], folder, caches)
    figures["reference"] = _child([architecture, "--compare"], folder, caches)
    return figures


def main() -> None:
    from tests.architectures import ARCHITECTURES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=ARCHITECTURES)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--caches", type=Path)
    parser.add_argument("--backend", default="unsloth")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", choices=("16bit", "4bit"), help=argparse.SUPPRESS)
    parser.add_argument("--compare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        in_4bit = arguments.run == "4bit"
        figures = measure(arguments.names[0], arguments.folder, in_4bit=in_4bit, backend=arguments.backend)
        print("\n" + json.dumps(figures))
        return
    if arguments.compare:
        print("\n" + json.dumps(compare(arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        caches = arguments.caches or Path(scratch) / "caches"

        def proven(name: str) -> tuple[str, dict[str, Any]]:
            folder = Path(scratch) / name
            folder.mkdir()
            figures = prove(name, folder, caches / name, arguments.backend)
            print(name, json.dumps({"problems": problems(figures)}), flush=True)
            return name, figures

        with ThreadPoolExecutor(arguments.jobs) as pool:
            architectures = dict(pool.map(proven, arguments.names))
    import torch

    result = {
        "date": datetime.date.today().isoformat(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "jobs": arguments.jobs,
        "architectures": architectures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gpu_architectures.json").write_text(json.dumps(result, indent=1) + "\n")
    failed = {name: problems(figures) for name, figures in architectures.items() if problems(figures)}
    print(json.dumps({"proven": len(architectures) - len(failed), "failed": failed}, indent=1))


if __name__ == "__main__":
    main()
