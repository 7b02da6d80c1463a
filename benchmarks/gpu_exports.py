"""Merging and converting on a GPU host: tuitune beside plain Unsloth, on the same model, adapter and machine.

    python -m benchmarks.gpu_exports SHAPE [--model DIR] [--folder DIR] [--kinds KIND …] [--no-peer]

SHAPE is one of benchmarks.shapes; the model is made in --folder, or --model is one of that shape. A LoRA adapter
(r=16 on every linear layer) with random weights is merged by Unsloth's `save_pretrained_merged` and by tuitune's
export, each in a process of its own; timed is the saving, with tuitune's check of every weight, and apart from it the
comparison with the adapter, which Unsloth has not. Then tuitune writes the GGUFs. Memory is the host's: the peak
of what processes hold for themselves (RssAnon, which cannot be given back), children included, sampled 20 times a
second, and the peak with mapped files (RSS). Writes benchmarks/results/gpu_exports_SHAPE.json.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.shapes import make_model

RESULTS = Path(__file__).parent / "results"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Memory(threading.Thread):
    """Watches a process and its children; peaks in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.done = threading.Event()
        self.own = self.resident = 0

    def run(self) -> None:
        while not self.done.wait(0.05):
            own = resident = 0
            try:
                processes = [self.process, *self.process.children(recursive=True)]
            except psutil.Error:
                continue
            for process in processes:
                try:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                except OSError:
                    continue
                fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
                own += 1024 * int(fields.get("RssAnon", "0 kB").split()[0])
                own += 1024 * int(fields.get("RssShmem", "0 kB").split()[0])
                resident += 1024 * int(fields.get("VmRSS", "0 kB").split()[0])
            self.own, self.resident = max(self.own, own), max(self.resident, resident)


def measured(arguments: list[str]) -> dict[str, Any]:
    """What one of this file's programs prints, with the memory that it took."""
    command = [sys.executable, "-m", "benchmarks.gpu_exports", *arguments]
    with tempfile.TemporaryFile("w+") as output:
        began = time.monotonic()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        memory = Memory(child.pid)
        memory.start()
        child.wait()
        seconds = time.monotonic() - began
        memory.done.set()
        output.seek(0)
        text = output.read()
    lines = [line for line in text.splitlines() if line.startswith('{"result"')]
    result = json.loads(lines[-1])["result"] if lines else {"error": text[-2000:]}
    return {
        **result,
        "process_seconds": round(seconds, 1),
        "peak_own_gb": round(memory.own / 1e9, 2),
        "peak_resident_gb": round(memory.resident / 1e9, 2),
    }


def peer(model: Path, out: Path) -> None:
    """Plain Unsloth: load in 4-bit, attach the adapter, and save the merged model."""
    from unsloth import FastLanguageModel  # first, as it patches the others

    began = time.monotonic()
    loaded, tokenizer = FastLanguageModel.from_pretrained(str(model), max_seq_length=2048, load_in_4bit=False)
    loaded = FastLanguageModel.get_peft_model(loaded, r=16, lora_alpha=16, target_modules=TARGETS)
    _randomise(loaded)
    load_s = time.monotonic() - began
    began = time.monotonic()
    loaded.save_pretrained_merged(str(out), tokenizer, save_method="merged_16bit")
    print(json.dumps({"result": {"save_s": round(time.monotonic() - began, 1), "load_s": round(load_s, 1)}}))


def own(run_folder: Path, kinds: list[str]) -> None:
    """tuitune's export of a run, each kind with its seconds."""
    import accelerate  # noqa: F401 - a session has imported these when it exports, as Unsloth's process has
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import transformers

    from tuitune.export import Exported, export
    from tuitune.runs.folder import Run

    transformers.AutoModelForCausalLM  # noqa: B018 - imported when it is first named
    seconds: dict[str, Any] = {}
    asking_began = 0.0

    def progress(kind: str, text: str, done: int | None, total: int | None) -> None:
        nonlocal asking_began
        if text.startswith("Asking"):
            asking_began = time.monotonic()

    began = time.monotonic()
    for exported in export(Run(run_folder), kinds, None, progress, lambda question: False, lambda: False):
        now = time.monotonic()
        if isinstance(exported, Exported):
            seconds[exported.kind] = {
                "save_s": round((asking_began or now) - began, 1),
                "compare_s": round(now - asking_began, 1) if asking_began else None,
                "gb": round(exported.bytes / 1e9, 2),
                "proof": exported.proof or " ".join(exported.notices),
            }
        else:
            save_s = round((asking_began or now) - began, 1)
            seconds[exported.kind] = {"error": str(exported.error), "save_s": save_s}
        began, asking_began = now, 0.0
    print(json.dumps({"result": seconds}))


def make_run(model: Path, folder: Path) -> Path:
    """A run folder of the model with an adapter of random weights."""
    import torch
    from accelerate import init_empty_weights
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from tuitune.recipe import Recipe
    from tuitune.runs.folder import create_run

    data = Path(__file__).parents[1] / "sample_data" / "pirate.jsonl"
    recipe = Recipe.from_data({"model": {"name": str(model), "load_in_4bit": False}, "data": {"path": str(data)}})
    writer = create_run(recipe, folder / "runs", "merged")
    writer.close()
    with init_empty_weights():
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    adapted = get_peft_model(base, LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM"))
    adapted.peft_config["default"].base_model_name_or_path = str(model)
    adapted.peft_config["default"].save_pretrained(str(writer.run.adapter))
    generator = torch.Generator().manual_seed(0)
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = {
        name: 0.02 * torch.randn(weight.shape, generator=generator)
        for name, weight in get_peft_model_state_dict(adapted).items()
    }
    save_file(weights, writer.run.adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(model).save_pretrained(writer.run.adapter)
    return writer.run.folder


def _randomise(model: Any) -> None:
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=["1b", "3b", "8b"])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--kinds", nargs="*", default=["gguf:q8_0", "gguf:q4_k_m"])
    parser.add_argument("--no-peer", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="exports-"))
    folder.mkdir(parents=True, exist_ok=True)
    model = arguments.model or make_model(arguments.shape, folder / arguments.shape)
    run = make_run(model, folder)
    result: dict[str, Any] = {"date": str(datetime.date.today()), "shape": arguments.shape}

    def tell(name: str, measurement: dict[str, Any]) -> None:
        result[name] = measurement
        print(name, json.dumps(measurement), flush=True)
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"gpu_exports_{arguments.shape}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")

    if not arguments.no_peer:
        tell("unsloth merged_16bit", measured(["--peer", str(model), str(folder / "peer")]))
        subprocess.run(["rm", "-rf", str(folder / "peer")], check=False)
    tell("tuitune merged_16bit", measured(["--own", str(run), "merged_16bit"]))
    if not arguments.no_peer and "save_s" in result["unsloth merged_16bit"]:
        theirs, ours = result["unsloth merged_16bit"], result["tuitune merged_16bit"]
        ratio = ours["merged_16bit"]["save_s"] / theirs["save_s"] if "save_s" in ours.get("merged_16bit", {}) else None
        tell(
            "ratios",
            {
                "seconds": ratio and round(ratio, 2),
                "own_memory": round(ours["peak_own_gb"] / theirs["peak_own_gb"], 2),
                "resident": round(ours["peak_resident_gb"] / theirs["peak_resident_gb"], 2),
            },
        )
    if arguments.kinds:
        tell("tuitune GGUF", measured(["--own", str(run), *arguments.kinds]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        peer(Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1:2] == ["--own"]:
        own(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
