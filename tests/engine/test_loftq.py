"""LoftQ on the demo model: the adapter begins as what 4-bit loses, and what is merged is what was trained."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO
from tuitune import backends
from tuitune.backends.loaded import LoadedModel
from tuitune.errors import UnusableInput
from tuitune.recipe import Recipe
from tuitune.runs.folder import create_run
from tuitune.train.check import check

IDS = [[5, 900, 17, 2000, 31, 77, 1200, 8]]


def recipe(lora: dict[str, Any], **model: Any) -> Recipe:
    data = {"path": str(DEMO / "pirate.jsonl")}
    model = {"name": str(DEMO / "demo_model"), "backend": "transformers", **model}
    return Recipe.from_data({"model": model, "data": data, "lora": lora})


def attached(used: Recipe) -> LoadedModel:
    backend = backends.choose(used)
    loaded = backend.load(used)
    backend.attach(loaded)
    backend.for_inference(loaded)
    return loaded


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS)).logits.float()


def distance(loaded: LoadedModel) -> float:
    """How far the model with its fresh adapter computes from the one that was never in 4-bit."""
    whole = attached(recipe({}, load_in_4bit=False))
    return float((logits(loaded.model) - logits(whole.model)).pow(2).mean())


@pytest.mark.parametrize("scale", [{"lora_alpha": 64}, {"lora_alpha": 16}, {"use_rslora": True, "lora_alpha": 32}])
def test_the_model_begins_closer_to_what_it_was_before_4_bit(scale: dict[str, Any]) -> None:
    loftq = attached(recipe({"r": 64, **scale, "init_lora_weights": "loftq"}))
    plain = attached(recipe({"r": 64, **scale}))
    assert distance(loftq) < 0.75 * distance(plain)
    assert all(p.dtype.is_floating_point and p.element_size() == 4 for p in loftq.model.parameters() if p.requires_grad)


def test_a_full_rank_adapter_gives_the_weight_back() -> None:
    """At rank 128, all that the smallest side of k_proj has, W - Q is met exactly."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from safetensors.torch import load_file

    loaded = attached(recipe({"r": 128, "lora_alpha": 64, "target_modules": ["k_proj"], "init_lora_weights": "loftq"}))
    stored = load_file(DEMO / "demo_model" / "model.safetensors")
    name, layer = next((n, m) for n, m in loaded.model.named_modules() if n.endswith("layers.2.self_attn.k_proj"))
    held = layer.get_base_layer().weight
    begun = dequantize_4bit(held.data, held.quant_state).float() + layer.get_delta_weight("default")
    torch.testing.assert_close(
        begun, stored[f"{name.removeprefix('base_model.model.')}.weight"].float(), atol=1e-4, rtol=0
    )


def test_what_is_merged_computes_what_was_trained(tmp_path: Path) -> None:
    """The adapter makes up for 4-bit weights, so it must be merged into those."""
    from tests.engine.exporting import export
    from tuitune.export import preflight

    used = recipe({"r": 64, "lora_alpha": 64, "init_lora_weights": "loftq"})
    loaded = attached(used)
    writer = create_run(used, tmp_path, "loftq")
    writer.close()
    loaded.model.save_pretrained(writer.run.adapter)
    loaded.tokenizer.save_pretrained(writer.run.adapter)
    export(
        writer.run, ["merged_16bit", "adapter"], None, progress=lambda *_: None, allow_download=lambda _: False,
        cancelled=lambda: False,
    )  # fmt: skip
    merged = attached(recipe({}, name=str(writer.run.exports / "merged_16bit"), load_in_4bit=False))
    plain = attached(recipe({}, load_in_4bit=False))
    off = float((logits(merged.model) - logits(loaded.model)).pow(2).mean())
    assert off < 0.1 * float((logits(plain.model) - logits(loaded.model)).pow(2).mean())
    assert "load_in_4bit=True" in (writer.run.exports / "adapter" / "README.md").read_text()
    script = next(need for need in preflight(writer.run) if need.kind == "script")
    assert not script.ready and script.missing and "cannot repeat" in script.missing


@pytest.mark.parametrize(
    ("lora", "model", "sentence"),
    [
        ({}, {"load_in_4bit": False}, "model.load_in_4bit is false"),
        ({"use_dora": True}, {}, "use_dora exclude each other"),
    ],
)
def test_where_it_cannot_work_it_is_refused_before_the_run(
    lora: dict[str, Any], model: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UnusableInput, match=sentence):
        check(recipe({**lora, "init_lora_weights": "loftq"}, **model))


def test_a_model_stored_in_4_bit_has_nothing_to_begin_from(tmp_path: Path) -> None:
    plain = backends.choose(recipe({})).load(recipe({}))
    plain.model.save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    used = recipe({"init_lora_weights": "loftq"}, name=str(tmp_path))
    with pytest.raises(UnusableInput, match="stored quantised: choose the model that it was made from"):
        check(used)
    with pytest.raises(UnusableInput, match="stored quantised"):
        attached(used)
