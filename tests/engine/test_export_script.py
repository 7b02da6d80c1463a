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
from tests.forking import run_forked
from tuitune.export.script import requirements, script
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run, create_run

SAMPLES = Path(sample_data).parent


@pytest.mark.parametrize("model", [{"load_in_4bit": True}, {"load_in_4bit": False, "load_in_8bit": True}])
def test_the_script_trains_the_adapter_that_the_run_trained(tmp_path: Path, model: dict[str, Any]) -> None:
    """One of the scripts starts as users start it."""
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
    command = [sys.executable, "-P", str(script.path / "train.py")]
    if model.get("load_in_4bit"):
        subprocess.run(command, cwd=tmp_path, env=environment, timeout=300, check=True, capture_output=True)
    else:
        run_forked(command, cwd=tmp_path, env=environment).check_returncode()
    cells = json.loads((notebook.path / "train.ipynb").read_text())["cells"]
    code = [cell["source"] for cell in cells if cell["cell_type"] == "code" and not cell["source"].startswith("%")]
    assert len(code) == 8, "libraries, settings, model, data, a row, training, saving, a question"
    if model.get("load_in_4bit"):  # what the cells hold is the same for both
        ran = run_forked([sys.executable, "-P", "-c", "\n".join(code)], cwd=notebook.path, env=environment)
        assert ran.returncode == 0, ran.stderr
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
    done = run_forked([sys.executable, "-P", str(script.path / "train.py")], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    ours = load_file(run.adapter / "adapter_model.safetensors")
    theirs = load_file(script.path / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        cosine = torch.nn.functional.cosine_similarity(weight.flatten(), theirs[name].flatten(), dim=0)
        assert cosine > 0.99, name  # Adam, as above; these gradients are smaller


OWN = """
def short(completions, animal):
    return [float(len(reply) < 20) for reply in completions]
"""


def test_the_script_of_rewards_trains_by_the_same_rewards(tmp_path: Path) -> None:
    """Trained by trl's own trainer for a step, with each reward that a script can carry."""
    from safetensors.torch import load_file

    from tests.engine.training import trained
    from tuitune.reward_sections import PythonFile
    from tuitune.rewards.confirmed import confirm
    from tuitune.rewards.judge import Answer, Judge

    own = tmp_path / "own.py"
    own.write_text(OWN)
    data = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"Name a {animal}.", "answer": "#### 2", "animal": animal} for animal in ("cat", "cow")]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rewards = [
        {"name": "exact_match", "weight": 2.0},
        {"name": "numeric_match"},
        {"name": "format", "pattern": "(A|An) .*[.]"},
        {"name": "length", "most": 3, "weight": 0.5},
        {"name": "json_schema", "json_schema": {"type": "object"}},
        {"name": "python", "function": f"{own}:short"},
    ]
    confirm(PythonFile(name="python", function=f"{own}:short"))
    recipe = Recipe.from_data(
        {
            "model": {"name": str(SAMPLES / "demo_model"), "load_in_4bit": False, "backend": "transformers"},
            "data": {"path": str(data), "max_length": 64},
            "method": {
                **{"name": "grpo", "rewards": rewards, "num_generations": 4, "max_completion_length": 6},
                **{"beta": 0.1, "temperature": 2.0},
            },
            "train": {"max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
            "samples": {"prompts": ["Hello!"], "max_new_tokens": 2},
        },
        changes=["warmup_steps=0", "learning_rate=1e-3", "eval_steps=0"],
    )
    run, _ = trained(recipe, tmp_path / "runs", "grpo")
    script_folder, notebook = export(
        run, ["script", "notebook"], None, lambda *_: None, lambda question: True, lambda: False
    )
    text = (script_folder.path / "train.py").read_text()
    assert "tuitune" not in text.partition("import os")[2] and "import tuitune" not in text
    own.unlink()  # the script has it beside itself
    # What each reward says of a few answers, after the script's own end.
    replies = ["#### 2", "A cat says meow.", '{"a": 1}', "two is 2"]
    asked = """
row = rows[0]["prompt"]
said = [function([row] * 4, REPLIES, [[1, 2]] * 4) for function in rewards]
(HERE / "said.json").write_text(json.dumps({"said": said, "log": trainer.state.log_history}))
"""
    (script_folder.path / "train.py").write_text(f"{text}\nREPLIES = {replies!r}\n{asked}")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = run_forked([sys.executable, "-P", str(script_folder.path / "train.py")], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads((script_folder.path / "said.json").read_text())
    own.write_text(OWN)
    columns = {name: lines[0][name] for name in ("answer", "animal")}
    with Judge(run.resolved().method.judges()) as judge:
        prompt = [{"role": "user", "content": lines[0]["prompt"]}]
        assert report["said"] == judge.values([Answer(prompt, reply, 2, columns) for reply in replies])
    step = report["log"][0]
    expected = {f"rewards/{title}/mean" for title in judge.titles}
    assert expected <= step.keys() and step["completions/max_length"] <= 6 and step["kl"] < 1e-5
    weights = load_file(script_folder.path / "adapter" / "adapter_model.safetensors")
    assert weights.keys() == load_file(run.adapter / "adapter_model.safetensors").keys()
    assert not (script_folder.path / "adapter" / "ref").exists()
    if step["reward_std"]:  # else nothing is learned, here as there
        assert any(weight.any() for name, weight in weights.items() if "lora_B" in name)
    cells = json.loads((notebook.path / "train.ipynb").read_text())["cells"]
    code = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "code")
    assert "jsonschema==" in (notebook.path / "requirements.txt").read_text()
    assert "GRPOTrainer(" in code and (notebook.path / "own_1.py").read_text() == OWN


def test_a_script_says_which_rewards_it_cannot_carry() -> None:
    from tuitune.errors import UnusableInput

    recipe = Recipe.from_data(
        {
            "model": {"name": str(SAMPLES / "demo_model")},
            "data": {"path": str(SAMPLES / "animals.jsonl")},
            "method": {"name": "grpo", "rewards": [{"name": "unit_tests", "run_code": True}]},
        }
    )
    with pytest.raises(UnusableInput, match="cannot repeat a run with the reward unit_tests"):
        script(recipe, "tests")


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
