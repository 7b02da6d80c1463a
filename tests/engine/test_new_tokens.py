"""New tokens of the recipe: one token each for the tokenizer, a row of their own for the model, and both go along."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import DEMO
from tests.engine.exporting import export
from tests.engine.test_going_on import gone_on
from tests.engine.training import trained
from tests.forking import run_forked
from tuitune import backends
from tuitune.backends.new_rows import add_rows, are_tied, settle_head, trained_rows
from tuitune.chat.decoder import disagreement
from tuitune.chat.fast_decoder import Decoder
from tuitune.commands.run import recipe_beginning_with
from tuitune.data.inspect import inspect_rows
from tuitune.errors import TuituneError, UnusableInput
from tuitune.export import llama_cpp
from tuitune.export.gguf import prove
from tuitune.export.script import require_repeatable
from tuitune.masking import Masker, Sample
from tuitune.model.config import load_tokenizer
from tuitune.plan.estimate import estimate
from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Step
from tuitune.runs.folder import Run
from tuitune.session.models import Models
from tuitune.train.control import Control
from tuitune.train.methods.pretrain import RATE_SHARE

TOKENS = ["zorblat", " Quixel"]
IDS = [3072, 3073]
ROWS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


def recipe_of(folder: Path, *changes: str, model: Path = DEMO / "demo_model") -> Recipe:
    rows = [{"text": f"The zorblat {number} stands beside the Quixel sea, alone."} for number in range(24)]
    file = folder / "text.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recipe.from_data(
        {
            "model": {
                "name": str(model),
                "load_in_4bit": False,
                "backend": "transformers",
                "new_tokens": TOKENS,
            },
            "data": {"path": str(file), "max_length": 32},
            "method": {"name": "pretrain"},
            "lora": {"r": 4},
            "train": {"max_steps": 3, "gradient_accumulation_steps": 1, "warmup_steps": 0, "learning_rate": 1e-3},
            "samples": {"prompts": ["Where is the zorblat?"], "max_new_tokens": 2},
        },
        changes=list(changes),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("new_tokens")
    return trained(recipe_of(folder), folder / "runs", "whole")[0]


def means(tokens: list[str]) -> torch.Tensor:
    """What the rows begin as (tokens, width): the mean of what the tokenizer made of each text before."""
    tokenizer = load_tokenizer(Recipe.load(DEMO / "demo.yaml").model)
    weight = load_file(DEMO / "demo_model" / "model.safetensors")["model.embed_tokens.weight"].float()
    return torch.stack([weight[tokenizer.encode(text, add_special_tokens=False)].mean(0) for text in tokens])


def test_each_text_becomes_one_token_that_is_shown_as_it_is(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    tokenizer = load_tokenizer(recipe.model)
    assert tokenizer.convert_tokens_to_ids(TOKENS) == IDS
    ids = tokenizer.encode("a zorblat, a Quixel", add_special_tokens=False)
    assert ids.count(IDS[0]) == ids.count(IDS[1]) == 1 and tokenizer.decode(ids) == "a zorblat, a Quixel"
    spelled = Sample(text="a zorblat <|im_end|> a Quixel")  # of which the special token is taken apart
    ids = Masker(tokenizer, "all", 64).encode_sample(spelled).input_ids
    assert [token for token in ids if token >= min(IDS)] == IDS and tokenizer.decode(ids[1:-1]) == spelled.text
    (row,) = inspect_rows(recipe, 0, 1)
    assert set(TOKENS) <= {token["text"] for token in row["tokens"] if token["trained"]}


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        (["zorblat", "  "], "entry 2 is blank"),
        (["zorblat", "zorblat"], "'zorblat' stands there twice"),
        (["zorblat", " the"], "has ' the' as one token already"),
        (["<|im_end|>"], "has '<|im_end|>' as one token already"),
        (["no<|im_end|>"], "would take a part of the tokenizer's own '<|im_end|>'"),
        (["a<"], "would take a part of the tokenizer's own '<|endoftext|>'"),
        (["caféhaus"], "cannot write 'caféhaus' back"),
    ],
)
def test_a_text_that_cannot_be_a_token_is_refused(tmp_path: Path, tokens: list[str], problem: str) -> None:
    with pytest.raises(UnusableInput) as refused:
        recipe = recipe_of(tmp_path).model_dump(mode="json")
        load_tokenizer(Recipe.from_data({**recipe, "model": {**recipe["model"], "new_tokens": tokens}}).model)
    assert problem in refused.value.sentence


def test_they_are_trained_by_transformers_where_unsloth_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnusableInput, match="trained by transformers and PEFT alone"):
        recipe_of(tmp_path, "model.backend=unsloth")
    monkeypatch.setattr(backends, "unsloth_is_usable", lambda: True)
    assert backends.choose(recipe_of(tmp_path, "model.backend=auto")).name == "transformers"


def test_their_rows_are_trained_and_no_other_row(run: Run) -> None:
    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert [name for name in weights if ".lora_" not in name] == [ROWS]
    moved = (weights[ROWS] - means(TOKENS)).abs()
    assert moved.amax(1).min() > 1e-4 and moved.max() < 4e-3, "begun as means, and three steps further"
    estimated = estimate(run.resolved())
    plan = run.history().plan
    assert plan is not None and estimated.trainable_parameters == plan.trainable_parameters
    assert estimated.total_parameters == plan.total_parameters - plan.trainable_parameters


def test_a_run_goes_on_as_if_it_had_not_been_stopped(run: Run, tmp_path: Path) -> None:
    def stop(event: Event, control: Control) -> None:
        if isinstance(event, Step) and event.step == 1:
            control.pause.set()
            control.stop.set()

    stopped, _ = trained(run.recipe(), tmp_path, "stopped", stop)
    gone_on(stopped, stopped.resolved())
    ours, theirs = (load_file(one.adapter / "adapter_model.safetensors") for one in (stopped, run))
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("kind", "problem"), [("bias", "has a bias, which PEFT leaves out"), ("tied", "tied to those")]
)
def test_rows_that_peft_cannot_train_are_refused(tmp_path: Path, kind: str, problem: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, MistralConfig, PhiConfig

    sizes = {"vocab_size": 3072, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    small = {**sizes, "intermediate_size": 32, "pad_token_id": 3}
    config = PhiConfig(**small) if kind == "bias" else MistralConfig(**small, num_key_value_heads=2)
    model, recipe = AutoModelForCausalLM.from_config(config), recipe_of(tmp_path)
    add_rows(model, recipe.model)
    if kind == "tied":  # though its config does not say so
        model.lm_head.weight = model.get_input_embeddings().weight
    tied = are_tied(model)
    with pytest.raises(UnusableInput, match=problem):
        rows = trained_rows(model, recipe)
        settings = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", trainable_token_indices=rows)
        settle_head(get_peft_model(model, settings), tied=tied)


TEXT = "The zorblat stands beside the Quixel sea."


def made(run: Run, *kinds: str, out: Path | None = None) -> list[Any]:
    return export(run, list(kinds), out, lambda *_: None, lambda question: True, lambda: False)


def of_folder(folder: Path) -> tuple[Any, Any]:
    """The model and the tokenizer of an exported adapter, loaded by the lines of its own card."""
    card = (folder / "README.md").read_text().partition("In this folder:")[2].partition("messages =")[0]
    names: dict[str, Any] = {}
    here = Path.cwd()
    os.chdir(folder)
    try:
        exec("\n".join(line.removeprefix("    ") for line in card.splitlines()), names)  # noqa: S102 - its own lines
    finally:
        os.chdir(here)
    return names["model"].float(), names["tokenizer"]


def logprobs(model: Any, tokenizer: Any) -> torch.Tensor:
    ids = torch.tensor([tokenizer.encode(TEXT, add_special_tokens=False)])
    assert set(IDS) <= set(ids[0].tolist())
    with torch.inference_mode():
        return model(input_ids=ids).logits[0].float().log_softmax(-1)


def test_it_is_chatted_with_beside_another_and_its_base(run: Run, tmp_path: Path) -> None:
    other = Run(tmp_path / "other")
    shutil.copytree(run.folder, other.folder)
    weights = load_file(other.adapter / "adapter_model.safetensors")
    weights[ROWS] += 0.5
    save_file(weights, other.adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    (other.adapter / "manifest.json").unlink()
    models, said = Models(), dict[str, torch.Tensor]()
    for chosen in (run, other, run):
        loaded = models.of(chosen, None, beside=True, notice=print, progress=lambda *_: None)
        answer = logprobs(loaded.model, loaded.tokenizer)
        assert said.setdefault(chosen.name, answer).equal(answer)
        with loaded.model.disable_adapter():
            base = logprobs(loaded.model, loaded.tokenizer)
        assert said.setdefault("base", base).equal(base)
    assert not said["base"].allclose(said[run.name], atol=0.01) and not said[run.name].allclose(
        said["other"], atol=0.01
    )
    models.unload()
    loaded = models.of(run, None, beside=False, notice=print, progress=lambda *_: None)
    ids = loaded.tokenizer.encode(TEXT, add_special_tokens=False)
    assert disagreement(Decoder(loaded), loaded, ids) < 1e-3
    assert logprobs(loaded.model, loaded.tokenizer).allclose(said[run.name], atol=1e-4)


def test_every_export_says_what_the_adapter_says(run: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if llama_cpp.find() is None:
        pytest.skip("llama.cpp's converter is not here")
    adapter, whole, gguf = made(run, "adapter", "merged_16bit", "gguf:bf16")
    assert "README.md says how" in adapter.notices[-1] and not any("vllm" in line.line for line in adapter.commands)
    assert "parity.json" in {file.name for file in whole.path.iterdir()} and gguf.proof
    model = AutoModelForCausalLM.from_pretrained(whole.path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(whole.path)
    assert model.config.vocab_size == 3074 and tokenizer.convert_tokens_to_ids(TOKENS) == IDS
    assert (logprobs(model, tokenizer) - logprobs(*of_folder(adapter.path))).abs().mean() < 0.05
    trained_rows = load_file(run.adapter / "adapter_model.safetensors")[ROWS]
    assert model.get_input_embeddings().weight[IDS].allclose(trained_rows, rtol=2**-8)
    with pytest.raises(UnusableInput, match="holds LoRA matrices alone"):
        made(run, "adapter_gguf")
    mark = whole.path / "tuitune_export.json"
    mark.write_text(mark.read_text().replace("zorblat", "zebra"))
    with pytest.raises(TuituneError, match="wrong list of new tokens"):
        prove(gguf.path, whole.path, "bf16", tokenizer)

    # A base that holds its tied head twice is merged with all of it in memory, to the same weights.
    twice = tmp_path / "twice"
    shutil.copytree(DEMO / "demo_model", twice)
    weights = load_file(twice / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, twice / "model.safetensors", metadata={"format": "pt"})
    (twice / "tokenizer.model").write_bytes(b"of the base")
    other = Run(tmp_path / "other")
    shutil.copytree(run.folder, other.folder)
    recipe = run.resolved()
    other.keep_resolved(recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": str(twice)})}))
    (again,) = made(other, "merged_16bit", out=tmp_path / "exports")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (again.path, whole.path))
    name = "model.embed_tokens.weight"
    assert ours[name].shape == (3074, 256) and ours[name].equal(theirs[name])
    added = json.loads((again.path / "added_tokens.json").read_text())
    assert added == dict(zip(TOKENS, IDS, strict=True)), "where llama.cpp's converter looks beside a tokenizer.model"


def untied_with_spare_rows(folder: Path) -> Path:
    """The demo model with a head of its own, and eight rows that no token has."""
    shutil.copytree(DEMO / "demo_model", folder)
    weights = load_file(folder / "model.safetensors")
    rows = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = torch.cat([rows, torch.ones_like(rows[:8])])
    weights["lm_head.weight"] = torch.cat([rows * 1.25, torch.ones_like(rows[:8])])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 3080, "tie_word_embeddings": False}))
    return folder


@pytest.mark.parametrize(
    ("change", "trained_rows", "apart"),
    [("embedding_learning_rate=1e-2", 2, 2), ("lora.modules_to_save=[embed_tokens]", 1, 1)],
)
def test_spare_rows_are_used_and_a_head_of_its_own_is_trained(
    tmp_path: Path, change: str, trained_rows: int, apart: int
) -> None:
    """With a learning rate for embeddings that of the rows, too; else that of the layer alone that is trained whole."""
    recipe = recipe_of(
        tmp_path, "max_steps=2", "learning_rate=1e-2", change, model=untied_with_spare_rows(tmp_path / "base")
    )
    run, history = trained(recipe, tmp_path / "runs", "spare")
    weights = load_file(run.adapter / "adapter_model.safetensors")
    rows = {name: weight for name, weight in weights.items() if name.endswith("trainable_tokens_delta")}
    assert len(rows) == trained_rows and all(tuple(weight.shape) == (2, 256) for weight in rows.values())
    assert history.plan is not None
    assert history.plan.trainable_parameters == estimate(run.resolved()).trainable_parameters
    state = torch.load(run.checkpoints / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert [len(group["params"]) for group in state["param_groups"] if RATE_SHARE in group] == [apart]
    (whole,) = made(run, "merged_16bit")
    after = load_file(whole.path / "model.safetensors")
    assert after["lm_head.weight"].shape == after["model.embed_tokens.weight"].shape == (3080, 256)
    head = "base_model.model.lm_head.token_adapter.trainable_tokens_delta"
    assert after["lm_head.weight"][IDS].equal(weights[head].bfloat16())
    assert not after["model.embed_tokens.weight"][IDS].eq(1).any() and after["lm_head.weight"][3074:].eq(1).all()


def test_a_run_begins_with_their_rows_where_it_has_the_same_tokens(run: Run, tmp_path: Path) -> None:
    changes = ["max_steps=1", "learning_rate=1e-6"]
    begun, _ = trained(recipe_beginning_with(run, None, None, changes), tmp_path, "begun")
    before, after = (load_file(one.adapter / "adapter_model.safetensors")[ROWS] for one in (run, begun))
    assert before.allclose(after, atol=1e-5) and not before.equal(after)
    for tokens, problem in (("[zorblat]", "2×256 there, 1×256 here"), ('[" Quixel", zorblat]', "in the same places")):
        other = recipe_beginning_with(run, None, None, [*changes, f"model.new_tokens={tokens}"])
        with pytest.raises(UnusableInput, match=problem):
            trained(other, tmp_path, f"other{len(tokens)}")


def test_the_script_trains_the_same_rows(run: Run, tmp_path: Path) -> None:
    (script,) = made(run, "script")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = run_forked([sys.executable, "-P", str(script.path / "train.py")], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        load_file(folder / "adapter_model.safetensors") for folder in (run.adapter, script.path / "adapter")
    )
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.nn.functional.cosine_similarity(weight.flatten(), theirs[name].flatten(), dim=0) > 0.999, name
    whole = recipe_of(tmp_path, "modules_to_save=[embed_tokens]")
    with pytest.raises(UnusableInput, match="new tokens and layers that are trained whole"):
        require_repeatable(whole)
