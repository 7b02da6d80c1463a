"""The exported script trains the same adapter again, with no tuitune in sight."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sample_data import __file__ as sample_data
from tests.engine.exporting import export
from tuitune.export.script import requirements, script
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run, create_run

SAMPLES = Path(sample_data).parent


@pytest.mark.parametrize("model", [{"load_in_4bit": True}, {"load_in_4bit": False, "load_in_8bit": True}])
def test_the_script_trains_the_adapter_that_the_run_trained(tmp_path: Path, model: dict[str, Any]) -> None:
    from safetensors.torch import load_file

    from tuitune.train.control import Control
    from tuitune.train.run import train

    # The template of a tokenizer that has none comes from the recipe.
    base = tmp_path / "base"
    shutil.copytree(SAMPLES / "demo_model", base, ignore=shutil.ignore_patterns("chat_template.jinja"))
    recipe = Recipe.from_data(
        {
            "model": {"name": str(base), "backend": "transformers", "chat_template": "chatml", **model},
            "data": {"path": str(SAMPLES / "pirate.jsonl")},
            "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
            "train": {"max_steps": 3, "warmup_steps": 0, "gradient_accumulation_steps": 2, "learning_rate": 1e-3},
            "samples": {"prompts": ["Hello!"], "max_new_tokens": 4},
        }
    )
    writer = create_run(recipe, tmp_path / "runs", "again")
    writer.close()
    train(recipe, writer.run, Control(), lambda event: None)

    script, notebook = export(
        writer.run, ["script", "notebook"], None, lambda *_: None, lambda question: True, lambda: False
    )
    text = (script.path / "train.py").read_text()
    assert "import tuitune" not in text and "from tuitune" not in text
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(
        [sys.executable, "-P", script.path / "train.py"], cwd=tmp_path, env=environment, timeout=300, check=True,
        capture_output=True,
    )  # fmt: skip
    cells = json.loads((notebook.path / "train.ipynb").read_text())["cells"]
    code = [cell["source"] for cell in cells if cell["cell_type"] == "code" and not cell["source"].startswith("%")]
    assert len(code) == 8, "libraries, settings, model, data, a row, training, saving, a question"
    if model.get("load_in_4bit"):  # what the cells hold is the same for both
        ran = subprocess.run(
            [sys.executable, "-P", "-c", "\n".join(code)], cwd=notebook.path, env=environment, timeout=300, check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        assert "<|im_start|>" in ran.stdout
        assert (notebook.path / "adapter" / "adapter_model.safetensors").is_file()
    ours = load_file(writer.run.adapter / "adapter_model.safetensors")
    theirs = load_file(script.path / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        # Adam's first steps are as long as the learning rate whatever the gradient, so rounding may flip tiny ones.
        assert torch.nn.functional.cosine_similarity(weight.flatten(), theirs[name].flatten(), dim=0) > 0.999, name
    template = (writer.run.adapter / "chat_template.jinja").read_text()
    assert (script.path / "adapter" / "chat_template.jinja").read_text() == template


@pytest.mark.parametrize("method", ["dpo", "orpo"])
def test_the_script_of_a_method_of_replies_trains_the_same(tmp_path: Path, method: str) -> None:
    from safetensors.torch import load_file

    from tests.engine.training import trained

    recipe = Recipe.load(
        SAMPLES / "demo_dpo.yaml",
        [
            *(f"method={method}", "load_in_4bit=false", "data.eval_share=0", "lora.r=4", "lora.lora_alpha=8"),
            *(
                "max_steps=2",
                "warmup_steps=0",
                "learning_rate=1e-3",
                "samples.max_new_tokens=2",
                "backend=transformers",
            ),
        ],
    )
    run, _ = trained(recipe, tmp_path / "runs", method)
    (script,) = export(run, ["script"], None, lambda *_: None, lambda question: True, lambda: False)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-P", script.path / "train.py"], cwd=tmp_path, env=environment, timeout=300, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = load_file(run.adapter / "adapter_model.safetensors")
    theirs = load_file(script.path / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        cosine = torch.nn.functional.cosine_similarity(weight.flatten(), theirs[name].flatten(), dim=0)
        assert cosine > 0.99, name  # Adam, as above; these gradients are smaller


def test_a_machine_with_a_gpu_writes_the_same_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """It decides where it runs in what precision it computes."""
    recipe = Recipe.from_data(
        {
            "model": {"name": str(SAMPLES / "demo_model"), "load_in_4bit": False},
            "data": {"path": str(SAMPLES / "pirate.jsonl")},
        }
    )
    text = script(recipe, "again")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert script(recipe, "again") == text


def test_values_are_literals_and_never_code(tmp_path: Path) -> None:
    name = 'it\'s """ + __import__("os").system("touch pwned") + """ \\'
    folder = tmp_path / "base"
    folder.symlink_to(SAMPLES / "demo_model")
    recipe = Recipe.from_data(
        {"model": {"name": str(folder)}, "data": {"path": name}, "lora": {"target_modules": ["q_proj"]}}
    )
    text = script(recipe, name)
    tree = compile(text, "train.py", "exec", dont_inherit=True)
    assert f"MODEL, REVISION = {str(folder)!r}, 'main'" in text
    assert "system" not in {name for name in tree.co_names} and "__import__" not in tree.co_names


def test_requirements_are_those_of_the_run(tmp_path: Path) -> None:
    libraries = {"torch": "2.11.0+cu130", "trl": "1.10.0", "unsloth": "2026.10.7"}
    (tmp_path / "environment.json").write_text(json.dumps({"libraries": libraries}))
    lines = requirements(Run(tmp_path)).splitlines()
    assert {"torch==2.11.0", "trl==1.10.0", "unsloth==2026.10.7"} <= set(lines)
    assert all("==" in line for line in lines)
