"""Which layers get an adapter, in every architecture that tests/architectures.py makes."""

from pathlib import Path
from typing import Any

import pytest

from tests.architectures import ARCHITECTURES, architecture
from tests.conftest import DEMO
from tuitune import backends
from tuitune.errors import UnusableInput
from tuitune.model.targets import Targets, resolve
from tuitune.plan.memory import empty_model, shape_of
from tuitune.plan.proven import proof
from tuitune.recipe import Recipe


def recipe(folder: Path, targets: Any = "auto") -> Recipe:
    return Recipe.from_data(
        {
            "model": {"name": str(folder), "load_in_4bit": False, "backend": "transformers"},
            "data": {"path": str(DEMO / "pirate.jsonl")},
            "lora": {"r": 8, "target_modules": targets},
        }
    )


def targets_of(folder: Path, targets: Any = "auto") -> Targets:
    used = recipe(folder, targets)
    return resolve(empty_model(used), used)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_auto_is_what_is_usual_for_the_architecture(name: str, folders: dict[str, Path]) -> None:
    proven = proof(architecture(name), "transformers")
    assert proven is not None and targets_of(folders[name]).names == proven.targets


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        *((name, "auto") for name in ARCHITECTURES),
        ("lfm2", "attention"),
        ("gemma3", "attention"),
        ("gemma4_text", "all"),
    ],
)
def test_the_adapter_lies_where_it_was_counted(name: str, targets: str, folders: dict[str, Path]) -> None:
    """Nowhere else: not on a head, a router, or what reads images, some of whose layers have the same names."""
    from peft import get_peft_model

    from tuitune.backends.transformers import lora_config

    used = recipe(folders[name], targets)
    model = empty_model(used)
    resolved = resolve(model, used)
    for written in (resolved.as_peft(), resolved.as_unsloth()):
        config = lora_config(used, resolved)
        config.target_modules = written
        adapted = get_peft_model(empty_model(used), config)
        layers = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
        assert sum(p.numel() for p in layers.values()) == shape_of(used).adapter_parameters
        assert not any(
            part in n for n in layers for part in ("vision", "visual", "lm_head", "router", ".gate.", "projector")
        )
        ends = {n.partition(".lora_")[0].rsplit(".", 1)[-1] for n in layers}
        assert ends == {shown.rsplit(".", 1)[-1] for shown in resolved.names}


def test_attention_alone_where_other_layers_have_the_same_name(folders: dict[str, Path]) -> None:
    assert targets_of(folders["lfm2"], "attention").names == ("q_proj", "k_proj", "v_proj", "self_attn.out_proj")


def test_a_list_keeps_off_what_reads_images(folders: dict[str, Path]) -> None:
    listed = targets_of(folders["gemma3"], ["q_proj"])
    assert listed.names == ("q_proj",)
    assert listed.as_peft() == r"model\.language_model\.layers\.\d+\.self_attn\.(?:q_proj)"


def test_single_layers_can_be_named(folders: dict[str, Path]) -> None:
    import re

    listed = targets_of(folders["llama"], ["layers.0.self_attn.q_proj", "layers.2.self_attn.q_proj"])
    model = empty_model(recipe(folders["llama"]))
    matched = [name for name, _ in model.named_modules() if re.fullmatch(str(listed.as_peft()), name)]
    assert matched == ["model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj"]


@pytest.mark.parametrize(("name", "word"), [("qwen3_moe", "experts"), ("gemma3", "images"), ("falcon_h1", "out_proj")])
def test_what_stays_as_it_is_is_said(name: str, word: str, folders: dict[str, Path]) -> None:
    (sentence,) = targets_of(folders[name]).left_out
    assert word in sentence


def test_the_backend_remembers_what_it_adapted(folders: dict[str, Path]) -> None:
    used = recipe(folders["phi3"])
    backend = backends.choose(used)
    loaded = backend.load(used)
    backend.attach(loaded)
    assert loaded.targets is not None and loaded.targets.names == ("o_proj", "qkv_proj", "gate_up_proj", "down_proj")
    trained = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    assert trained == sum(loaded.targets.parameters(8).values())


def test_a_layer_that_only_the_vision_tower_has_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UnusableInput, match=r"no layer named fc1: choose lora\.target_modules among down_proj"):
        targets_of(folders["gemma3"], ["q_proj", "fc1"])


@pytest.mark.parametrize("value", ["everything", "", [], [""], [3], None, {"q_proj": 1}])
def test_what_target_modules_cannot_be(value: Any) -> None:
    with pytest.raises(
        UnusableInput, match=r"lora\.target_modules is .* but should be auto, attention, all, or a list"
    ):
        recipe(DEMO / "demo_model", value)
