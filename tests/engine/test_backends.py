"""The transformers backend on the demo model: what is loaded, frozen, attached and refused."""

from pathlib import Path
from typing import Any

import pytest

from tests.adapters import draw_adapter
from tests.conftest import DEMO
from tuitune import backends
from tuitune.backends.loaded import LoadedModel
from tuitune.errors import TuituneError, UnusableInput
from tuitune.machine.environment import prepare_environment
from tuitune.model.config import load_tokenizer, training_config
from tuitune.recipe import Recipe
from tuitune.recipe_sections import ModelSection

LINEARS = 7 * 5  # seven projections in five layers


def recipe(**sections: dict[str, Any]) -> Recipe:
    model = {"name": str(DEMO / "demo_model"), "backend": "transformers", **sections.pop("model", {})}
    return Recipe.from_data({"model": model, "data": {"path": "unused.jsonl"}, **sections})


def attached(used: Recipe) -> LoadedModel:
    backend = backends.choose(used)
    loaded = backend.load(used)
    backend.attach(loaded)
    return loaded


@pytest.fixture(scope="module")
def in_4bit() -> LoadedModel:
    return attached(recipe())


def logits(loaded: LoadedModel) -> Any:
    import torch

    with torch.no_grad():
        return loaded.model(input_ids=torch.tensor([[5, 900, 17, 2000]])).logits


def test_every_linear_layer_but_the_head_is_nf4(in_4bit: LoadedModel) -> None:
    from bitsandbytes.nn import Linear4bit

    quantised = [m for m in in_4bit.model.modules() if isinstance(m, Linear4bit)]
    assert len(quantised) == LINEARS
    assert {m.weight.quant_type for m in quantised} == {"nf4"}
    assert all(m.weight.quant_state.nested for m in quantised)


@pytest.mark.parametrize("asked", [True, False])
def test_a_model_saved_in_4_bit_is_taken_as_it_is(tmp_path: Path, asked: bool) -> None:
    import torch
    from bitsandbytes.nn import Linear4bit

    quantised = backends.choose(recipe()).load(recipe())
    quantised.model.save_pretrained(tmp_path)
    quantised.tokenizer.save_pretrained(tmp_path)
    used = recipe(model={"name": str(tmp_path), "load_in_4bit": asked})
    loaded = backends.choose(used).load(used)
    assert sum(isinstance(m, Linear4bit) for m in loaded.model.modules()) == LINEARS
    if asked:
        torch.testing.assert_close(logits(loaded), logits(quantised), atol=0.05, rtol=0.05)


def test_only_the_adapter_is_trained_in_fp32(in_4bit: LoadedModel) -> None:
    trained = {name: p for name, p in in_4bit.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * LINEARS
    assert all("lora_" in name for name in trained)
    assert {str(p.dtype) for p in trained.values()} == {"torch.float32"}


def test_a_reply_in_between_leaves_the_weights_as_they_were(in_4bit: LoadedModel) -> None:
    """bitsandbytes would repack 4-bit weights on the CPU at the first pass in eval mode, with rounded scales."""
    import torch

    backend = in_4bit.backend
    backend.for_training(in_4bit)
    before = logits(in_4bit)
    backend.for_inference(in_4bit)
    logits(in_4bit)
    backend.for_training(in_4bit)
    assert torch.equal(before, logits(in_4bit))


def test_the_seed_decides_the_adapter() -> None:
    import torch

    def first_values(seed: int) -> Any:
        loaded = attached(recipe(model={"load_in_4bit": False}, train={"seed": seed}))
        return next(p.detach() for name, p in loaded.model.named_parameters() if "lora_A" in name)

    assert torch.equal(first_values(1), first_values(1))
    assert not torch.equal(first_values(1), first_values(2))


def test_attaching_leaves_the_random_state_alone() -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    backend = backends.choose(recipe(model={"load_in_4bit": False}))
    loaded = backend.load(recipe(model={"load_in_4bit": False}))
    torch.manual_seed(5)
    backend.attach(loaded)
    assert torch.equal(torch.rand(1), expected)


def test_every_lora_field_reaches_peft() -> None:
    lora = {"r": 4, "lora_alpha": 12, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"], "use_rslora": True}
    config = attached(recipe(model={"load_in_4bit": False}, lora=lora)).model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (4, 12, 0.1, True)
    assert set(config.target_modules) == {"q_proj", "v_proj"}


def test_a_saved_adapter_answers_as_it_did(tmp_path: Path) -> None:
    import torch

    used = recipe(model={"load_in_4bit": False})
    loaded = attached(used)
    draw_adapter(loaded.model, std=0.05)
    loaded.backend.for_inference(loaded)
    expected = logits(loaded)
    loaded.model.save_pretrained(tmp_path)
    reloaded = loaded.backend.load(used)
    reloaded.backend.attach_saved(reloaded, str(tmp_path))
    reloaded.backend.for_inference(reloaded)
    assert torch.equal(logits(reloaded), expected)
    assert not any(p.requires_grad for p in reloaded.model.parameters())


def test_a_layer_that_the_model_lacks_is_named_with_what_it_has() -> None:
    with pytest.raises(
        UnusableInput, match=r"no layer named c_attn: choose lora\.target_modules among down_proj, gate_proj"
    ):
        attached(recipe(lora={"target_modules": ["q_proj", "c_attn"]}))


def test_8_bit_weights_are_loaded_frozen_and_trained_over() -> None:
    from bitsandbytes.nn import Linear8bitLt

    loaded = attached(recipe(model={"load_in_4bit": False, "load_in_8bit": True}))
    assert sum(isinstance(m, Linear8bitLt) for m in loaded.model.modules()) == LINEARS
    loaded.backend.for_training(loaded)
    import torch

    ids = torch.tensor([[5, 900, 17, 2000]])
    loaded.model(input_ids=ids, labels=ids).loss.backward()
    grads = [p.grad for p in loaded.model.parameters() if p.grad is not None]
    assert len(grads) == 2 * LINEARS


def test_two_precisions_at_once_are_refused() -> None:
    with pytest.raises(UnusableInput, match="exclude each other"):
        recipe(model={"load_in_8bit": True})


def test_transformers_stands_in_for_a_model_that_unsloth_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here Unsloth refuses every model, as it is not installed."""
    monkeypatch.setattr(backends, "unsloth_is_usable", lambda: True)
    told: list[str] = []
    assert backends.load(recipe(model={"backend": "auto"}), told.append).backend.name == "transformers"
    assert len(told) == 1 and told[0].startswith("Unsloth does not take this model, so transformers trains it")
    with pytest.raises(TuituneError, match="Unsloth is not installed"):
        backends.load(recipe(model={"backend": "unsloth"}), told.append)


def test_a_folder_without_an_adapter_is_refused(in_4bit: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="holds no adapter"):
        in_4bit.backend.attach_saved(in_4bit, str(tmp_path))


def test_weights_that_are_cut_short_give_one_sentence(tmp_path: Path) -> None:
    for file in (DEMO / "demo_model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 4096 if file.suffix == ".safetensors" else None])
    used = recipe(model={"name": str(tmp_path)})
    with pytest.raises(TuituneError, match=r"^Loading .* failed: [^\n]+\.$"):
        backends.choose(used).load(used)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    for file in (DEMO / "demo_model").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    used = recipe(model={"name": str(tmp_path)})
    with pytest.raises(UnusableInput, match=r"holds no \.safetensors weights"):
        backends.choose(used).load(used)


def test_a_tokenizer_without_padding_gets_a_token_it_has(tmp_path: Path) -> None:
    import json

    for file in (DEMO / "demo_model").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("pad_token", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(ModelSection(name=str(tmp_path)))
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id < len(tokenizer)


def test_what_the_user_set_in_the_environment_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("UNSLOTH_COMPILE_LOCATION", raising=False)
    monkeypatch.delenv("UNSLOTH_AUTO_INSTALL", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    prepare_environment()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "0"
    assert os.environ["UNSLOTH_AUTO_INSTALL"] == "0"
    folder = Path(os.environ["UNSLOTH_COMPILE_LOCATION"])
    assert folder.is_relative_to(tmp_path)
    assert folder.stat().st_mode & 0o077 == 0


def test_positions_that_cannot_be_scaled_refuse_a_longer_context(tmp_path: Path) -> None:
    import json

    config = json.loads((DEMO / "demo_model" / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    sections: dict[str, dict[str, Any]] = {
        "model": {"name": str(tmp_path)},
        "data": {"path": "x.jsonl", "max_length": 2049},
    }
    with pytest.raises(UnusableInput, match="reads 2,048 tokens at most"):
        training_config(Recipe.from_data(sections))
    sections["data"]["max_length"] = 2048
    assert training_config(Recipe.from_data(sections)).rope_parameters["factor"] == 2.0


def test_a_model_whose_files_lack_a_weight_is_refused(tmp_path: Path) -> None:
    """transformers would draw it at random, and the run would train on noise."""
    from safetensors.torch import load_file, save_file

    for file in (DEMO / "demo_model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(TuituneError, match=r"do not hold 1 of the weights .*q_proj\.weight.*, which would be random"):
        backends.load(recipe(model={"name": str(tmp_path)}), pytest.fail)
