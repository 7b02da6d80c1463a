"""How soon the first step of `tuitune run` comes for each architecture at 8B-class width, with kernels cached and not.

    python -m benchmarks.gpu_first_step [NAME …] [--layers 8] [--jobs 1]

Needs an NVIDIA GPU with Unsloth. Models have random weights, the width of the 7 to 30 billion parameter models of
their architecture and fewer layers, which changes the seconds that loading takes but not what is compiled. The first of
the two runs finds no compiled kernel. Writes benchmarks/results/gpu_first_step.json.
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

RESULTS = Path(__file__).parent / "results"
_WIDE = {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8}
# What differs from _WIDE, as in the model that is named.
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama 3.1 8B", {"intermediate_size": 14336}),
    "qwen3": ("Qwen 3 8B", {"head_dim": 128}),
    "qwen3_5": (
        "Qwen 3.5 9B",
        {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256, "linear_num_value_heads": 32}
        | {"linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128},
    ),
    "qwen3_moe": (
        "Qwen 3 30B-A3B",
        {"hidden_size": 2048, "intermediate_size": 6144, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128}
        | {"num_experts_per_tok": 8, "moe_intermediate_size": 768},
    ),
    "gemma2": (
        "Gemma 2 9B",
        {"hidden_size": 3584, "intermediate_size": 14336, "num_attention_heads": 16, "head_dim": 256}
        | {"sliding_window": 4096, "query_pre_attn_scalar": 256},
    ),
    "gemma3": (
        "Gemma 3 12B",
        {"hidden_size": 3840, "intermediate_size": 15360, "num_attention_heads": 16, "head_dim": 256}
        | {"sliding_window": 1024, "query_pre_attn_scalar": 256},
    ),
    "gemma4_text": (
        "Gemma 4 E4B",
        {"hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 8, "num_key_value_heads": 2}
        | {"head_dim": 256, "global_head_dim": 512, "sliding_window": 512, "hidden_size_per_layer_input": 256},
    ),
    "ministral3": ("Ministral 3 8B", {"intermediate_size": 14336, "head_dim": 128}),
    "mistral": ("Mistral 7B", {"intermediate_size": 14336, "head_dim": 128}),
    "phi3": (
        "Phi 4",
        {"hidden_size": 5120, "intermediate_size": 17920, "num_attention_heads": 40, "num_key_value_heads": 10},
    ),
    "gpt_oss": (
        "gpt-oss 20B",
        {"hidden_size": 2880, "intermediate_size": 2880, "num_attention_heads": 64, "head_dim": 64}
        | {"num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128},
    ),
    "smollm3": (
        "SmolLM 3 3B",
        {"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_key_value_heads": 4},
    ),
    "glm4": ("GLM 4 9B", {"intermediate_size": 13696, "num_key_value_heads": 2, "head_dim": 128}),
}

# Unsloth takes these in 4-bit only from files that are stored so.
IN_16BIT = {"gpt_oss"}


def first_step(base: Path, data: Path, folder: Path, name: str, *, in_4bit: bool) -> dict[str, Any]:
    """A run of three steps through the command line; seconds from its start to its first step, and what it told."""
    recipe, caches = folder / f"{name}.yaml", folder / "caches"
    recipe.write_text(
        f"model: {{name: {base}, load_in_4bit: {str(in_4bit).lower()}}}\ndata: {{path: {data}}}\n"
        "train: {max_steps: 3}\nsamples: {prompts: [hello], max_new_tokens: 4}\n"
    )
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "UNSLOTH_COMPILE_LOCATION": str(caches / "unsloth"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        sys.executable,
        "-m",
        "tuitune",
        "run",
        str(recipe),
        "--runs",
        str(folder / "runs"),
        "--name",
        name,
        "--json",
    ]
    began = time.time()
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=400)
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    steps = [event for event in events if event.get("event") == "step"]
    plans = [event for event in events if event.get("event") == "plan"]
    if not steps or not plans:
        return {"error": (done.stderr or done.stdout).strip()[-400:]}
    phases = [event for event in events if event.get("event") == "phase"]
    return {
        "first_step_seconds": round(steps[0]["at"] - began, 1),
        "until": {event["text"][:40]: round(event["at"] - began, 1) for event in phases if event.get("done") is None},
        "warm_up_seconds": round(plans[0]["isolation"].get("warm_up_seconds", 0.0), 2),
        "check_seconds": round(plans[0]["isolation"].get("seconds", 0.0), 2),
        "isolation": plans[0]["isolation"],
        "batches": plans[0]["batches"],
        "attention": plans[0]["attention"],
        "notices": [event["text"] for event in events if event.get("event") == "notice"],
    }


def main() -> None:
    from benchmarks.shapes import make_chats

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(SIZES))
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    import torch

    from tests.architectures import build

    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "jobs": arguments.jobs,
        "architectures": {},
    }
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        data = make_chats(Path(scratch) / "chats.jsonl", 400)

        def measured(name: str) -> None:
            folder = Path(scratch) / name
            model, sizes = SIZES[name]
            sizes = {**_WIDE, **sizes, "num_hidden_layers": arguments.layers, "max_position_embeddings": 8192}
            base = build(name, folder / "base", sizes=sizes, device="cuda")
            torch.cuda.empty_cache()
            figures: dict[str, Any] = {"shape_of": model, "layers": arguments.layers}
            for kind in ("cold", "warm"):
                figures[kind] = first_step(base, data, folder, kind, in_4bit=name not in IN_16BIT)
            for file in base.glob("*.safetensors"):
                file.unlink()
            print(name, json.dumps(figures), flush=True)
            result["architectures"][name] = figures
            (RESULTS / "gpu_first_step.json").write_text(json.dumps(result, indent=1) + "\n")

        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(measured, arguments.names))


if __name__ == "__main__":
    main()
