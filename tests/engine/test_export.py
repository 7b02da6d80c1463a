"""A trained adapter is taken home as itself, merged, and as GGUF, and each answers as the run did."""

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.exporting import export, never, quiet, require_converter, yes
from tests.engine.hub_uploads import upload_hub
from tests.engine.ollama_program import put_on_path
from tuitune import export as engine
from tuitune.conversation import Conversation
from tuitune.errors import UnusableInput
from tuitune.export import Exported, ExportOptions, NotExported
from tuitune.export.ollama import pieces, prompts_of
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run, create_run

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "sample_data" / "demo_model"
PIRATE = ROOT / "sample_data" / "pirate.jsonl"
PROMPTS = ["Hello!", "What is 3 + 4?", "What is the capital of France?", "What colour is the sky?", "こんにちは"]

pytestmark = pytest.mark.skipif(not (DEMO / "config.json").is_file(), reason="the demo model is not here")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the demo model whose adapter learned a little of the pirate's speech."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = Recipe.from_data({"model": {"name": str(DEMO)}, "data": {"path": str(PIRATE)}})
    writer = create_run(recipe, tmp_path_factory.mktemp("runs"), "pirate")
    writer.close()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more threads only wait for each other on a model this small
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32),
        LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"),
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    rows = [json.loads(line)["messages"] for line in PIRATE.read_text().splitlines()[:64]]
    for start in range(0, 64, 4):
        batch = tokenizer.apply_chat_template(
            rows[start : start + 4], padding=True, return_dict=True, return_tensors="pt"
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(writer.run.adapter)
    tokenizer.save_pretrained(writer.run.adapter)
    return writer.run


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """What a run can be exported as, each form at least once, made in one go."""
    require_converter()
    kinds = ["adapter", "adapter_gguf", "merged_16bit", "merged_4bit"]
    kinds += ["gguf:f16", "gguf:q8_0", "gguf:q4_k_m", "ollama:q8_0", "script"]
    with pytest.MonkeyPatch.context() as patch:
        put_on_path(patch, tmp_path_factory.mktemp("ollama"), "answers")
        exports = export(run, kinds[::-1], None, quiet, yes, never)
    assert [result.kind for result in exports] == kinds
    assert exports[kinds.index("ollama:q8_0")].notices[-1].startswith("Tried in Ollama, which answered 'Hello!' with: ")
    return {result.kind: result for result in exports}


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.inference_mode():
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": PROMPTS[1]}], return_tensors="pt", return_dict=True
        )
        result: torch.Tensor = model(**ids).logits.float()
        return result


def greedy(model: Any, tokenizer: Any, prompt: str) -> str:
    chat = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        reply = model.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.eos_token_id in reply, "the reply must end by itself"
    text: str = tokenizer.decode(reply, skip_special_tokens=True)
    return text


def test_the_exported_adapter_computes_what_the_runs_own_does(run: Run, exported: dict[str, Exported]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    here = exported["adapter"].path
    results = []
    for folder in (run.adapter, here):
        base = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
        results.append(logits(PeftModel.from_pretrained(base, folder), AutoTokenizer.from_pretrained(folder)))
    assert torch.equal(*results)
    assert str(DEMO) in (here / "README.md").read_text()


def test_the_exported_adapter_holds_nothing_else_that_lay_in_its_folder(run: Run, tmp_path: Path) -> None:
    littered = Run(tmp_path / run.name)
    shutil.copytree(run.folder, littered.folder)
    (littered.adapter / "letters").mkdir()
    (littered.adapter / "letters" / "private.txt").write_text("mine")
    (littered.adapter / ".env").write_text("HF_TOKEN=hf_secret")
    (littered.adapter / "training_args.bin").write_bytes(b"a pickle")
    (exported,) = export(littered, ["adapter"], tmp_path / "out", quiet, yes, never)
    assert {path.name for path in exported.path.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "README.md", "tuitune_export.json"),
        "SHA256SUMS",
    }


def test_the_merged_weights_are_the_base_plus_the_scaled_product(run: Run, exported: dict[str, Exported]) -> None:
    from safetensors.torch import load_file

    base = load_file(DEMO / "model.safetensors")
    adapter = load_file(run.adapter / "adapter_model.safetensors")
    merged = load_file(exported["merged_16bit"].path / "model.safetensors")
    assert merged.keys() == base.keys()
    changed = 0
    for name, weight in merged.items():
        lora = f"base_model.model.{name.removesuffix('.weight')}.lora_%s.weight"
        if lora % "A" in adapter:
            expected = base[name].float() + 16 / 8 * adapter[lora % "B"].float() @ adapter[lora % "A"].float()
            torch.testing.assert_close(weight.float(), expected, atol=1e-3, rtol=2**-7)
            assert not torch.equal(weight, base[name])
            changed += 1
        else:
            assert torch.equal(weight, base[name])
    assert changed == 3 * 5, "three projections in each of the five layers"


def test_every_export_of_a_model_is_compared_with_the_adapter(run: Run, exported: dict[str, Exported]) -> None:
    for kind, result in exported.items():
        if kind in ("adapter", "script"):
            continue
        path = result.path / "parity.json" if result.path.is_dir() else Path(f"{result.path}.parity.json")
        parity = json.loads(path.read_text())
        assert parity["same_prompt_ids"] == parity["prompts"] == parity["ended"] == 4
        assert parity["scored_tokens"] > 60 and parity["logprob_difference"] < parity["bound_logprob_difference"]
        assert parity["logprob_difference"] < parity["base_logprob_difference"], "it learnt more than is lost"
        assert result.proof == parity["words"]
    assert "on average" in (exported["merged_16bit"].path / "README.md").read_text()


def test_every_export_has_sums_that_sha256sum_agrees_with(exported: dict[str, Exported]) -> None:
    for result in exported.values():
        folder, sums = (
            (result.path, "SHA256SUMS") if result.path.is_dir() else (result.path.parent, f"{result.path.name}.sha256")
        )
        checked = subprocess.run(
            ["sha256sum", "-c", sums], check=False, cwd=folder, capture_output=True, text=True, timeout=60
        )
        files = {path for path in result.path.rglob("*") if path.is_file()} if result.path.is_dir() else {result.path}
        assert checked.returncode == 0 and checked.stdout.count(": OK\n") == len(files - {folder / "SHA256SUMS"})


def test_a_folder_goes_into_one_tar_that_is_never_older_than_it(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (exported,) = export(run, ["adapter"], out, quiet, yes, never, ExportOptions(tar=True))
    assert {path.name for path in out.iterdir()} == {"adapter", "adapter.tar", "adapter.tar.sha256"}
    assert "adapter.tar" in exported.commands[0].line and "adapter.tar" in exported.commands[1].line
    check = subprocess.run(
        ["bash", "-c", exported.commands[2].line], check=False, cwd=out, capture_output=True, timeout=60
    )
    assert check.returncode == 0
    (exported,) = export(run, ["adapter"], out, quiet, yes, never)
    assert {path.name for path in out.iterdir()} == {"adapter"}, "that of the folder before goes with it"
    assert "adapter.tar" not in exported.commands[0].line
    (out / "adapter.tar").write_text("mine")
    with pytest.raises(UnusableInput, match=r"adapter\.tar exists and is not an export"):
        export(run, ["adapter"], out, quiet, yes, never, ExportOptions(tar=True))
    assert (out / "adapter.tar").read_text() == "mine"


def test_parts_for_a_slow_link_are_never_older_than_what_they_are_of(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (made,) = export(run, ["adapter"], out, quiet, yes, never, ExportOptions(split_bytes=1 << 20))
    assert {path.name for path in out.iterdir()} == {"adapter", "adapter.tar.parts"}
    assert "adapter.tar.parts" in made.commands[0].line
    shutil.rmtree(out / "adapter")
    joined = subprocess.run(["bash", "-c", made.commands[2].line], check=False, cwd=out, capture_output=True)
    assert joined.returncode == 0 and (out / "adapter" / "adapter_model.safetensors").is_file()
    (out / "adapter.tar").unlink()
    (made,) = export(run, ["adapter"], out, quiet, yes, never)
    assert {path.name for path in out.iterdir()} == {"adapter"}
    (out / "adapter.tar.parts").mkdir()
    with pytest.raises(UnusableInput, match=r"adapter\.tar\.parts exists and is not an export"):
        export(run, ["adapter"], out, quiet, yes, never, ExportOptions(split_bytes=1 << 20))
    (out / "adapter.tar.parts").rmdir()
    (made,) = export(run, ["adapter"], out, quiet, yes, never, ExportOptions(split_bytes=100))
    assert "in more than 999 parts: give --split a larger size" in made.notices[-1] and made.path.is_dir()


def test_a_tar_that_the_disk_does_not_hold_leaves_the_folder_and_says_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    (exported,) = export(run, ["adapter"], out, quiet, yes, never, ExportOptions(tar=True))
    assert "no tar of it was written" in exported.notices[-1] and "which has 0.0 MB free" in exported.notices[-1]
    assert [path.name for path in out.iterdir()] == ["adapter"]


def test_a_merge_in_many_shards_gives_the_same_model(
    run: Run, exported: dict[str, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    from tuitune.export import shards

    monkeypatch.setattr(shards, "_SHARD_BYTES", 2_000_000)
    (sharded,) = export(run, ["merged_16bit"], tmp_path, quiet, yes, never)
    assert len([*sharded.path.glob("model-*.safetensors")]) > 3
    here, there = (
        AutoModelForCausalLM.from_pretrained(path, dtype="auto").state_dict()
        for path in (sharded.path, exported["merged_16bit"].path)
    )
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def test_plain_transformers_answers_with_the_merged_model_as_the_run_did(
    run: Run, exported: dict[str, Exported]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = exported["merged_16bit"].path
    merged, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto"),
        AutoTokenizer.from_pretrained(folder),
    )
    assert merged.dtype == torch.bfloat16
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(DEMO).chat_template
    base, tuned = (AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32) for _ in range(2))
    tuned = PeftModel.from_pretrained(tuned, run.adapter)
    learned = (logits(tuned, tokenizer) - logits(base, tokenizer)).abs().mean()
    lost = (logits(merged.float(), tokenizer) - logits(tuned, tokenizer)).abs().mean()
    assert lost < 0.05 * learned, "16-bit rounding may cost little of what was learned"


@pytest.fixture(scope="module", params=["gguf:f16", "gguf:q8_0"])
def runner(request: pytest.FixtureRequest, exported: dict[str, Exported]) -> tuple[str, Any]:
    """llama.cpp itself with the exported file loaded."""
    return request.param, serve(exported[request.param].path)


def serve(gguf: Path) -> Any:
    xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp, which runs GGUF files, is not installed")
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx, params.n_parallel, params.warmup, params.port, params.verbosity = 512, 1, False, 0, -1
    params.cpuparams.n_threads = 2
    server = xllamacpp.Server(params)
    server.handle_completions({"prompt": "a", "max_tokens": 1})  # one that goes before its loop began waits for ever
    return server


def test_llama_cpp_answers_with_the_gguf_as_transformers_does_with_the_merged_model(
    runner: Any, exported: dict[str, Exported]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kind, server = runner
    folder = exported["merged_16bit"].path
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    alike = []
    for prompt in PROMPTS:
        chat = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 64}
        choice = server.handle_chat_completions(chat)["choices"][0]
        assert choice["finish_reason"] == "stop", "the reply must end by itself"
        alike.append(SequenceMatcher(None, choice["message"]["content"], greedy(merged, tokenizer, prompt)).ratio())
    # Eight bits may tip the balance between two words that the model finds equally good; sixteen may not.
    assert min(alike) == 1 if kind == "gguf:f16" else sum(alike) / len(alike) > 0.8


def test_the_modelfiles_template_and_stops_give_the_same_replies(runner: Any, exported: dict[str, Exported]) -> None:
    from transformers import AutoTokenizer

    _, server = runner
    folder = exported["ollama:q8_0"].path
    assert (folder / "model.gguf").samefile(exported["gguf:q8_0"].path), "one file, not a copy"
    modelfile = (folder / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./model.gguf\n")
    stops = re.findall('^PARAMETER stop "(.+)"$', modelfile, re.MULTILINE)
    tokenizer = AutoTokenizer.from_pretrained(exported["adapter"].path)
    template = pieces(tokenizer, prompts_of(tokenizer, thinks=False))
    assert template.go_template() in modelfile
    for content in PROMPTS:
        messages: Conversation = [{"role": "user", "content": content}]
        chat = server.handle_chat_completions({"messages": messages, "temperature": 0, "max_tokens": 64})
        bare = {"prompt": template.prompt(messages), "stop": stops, "temperature": 0, "max_tokens": 64}
        assert server.handle_completions(bare)["choices"][0]["text"] == chat["choices"][0]["message"]["content"]


def test_llama_cpp_reads_text_as_the_models_own_tokenizer_does(runner: Any) -> None:
    from transformers import AutoTokenizer

    _, server = runner
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    texts = [
        "I've 12345 cats, they're   spaced\n\n and  tabbed\t.",
        "こんにちは、東京 123 ！？",
        "naïve café — “quoted” 🦜🏴‍☠️",
        "<|im_start|>user\nWhat's 7*8?<|im_end|>\n<|im_start|>assistant\n",
    ]
    for text in texts:
        body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            assert json.load(response)["tokens"] == tokenizer(text, add_special_tokens=False)["input_ids"], text


def test_a_line_to_run_an_export_does(exported: dict[str, Exported]) -> None:
    line = exported["adapter"].commands[-1].line.replace("python", sys.executable, 1)
    answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, check=True)
    assert answer.stdout.strip()


@pytest.mark.cold
def test_replies_end_although_the_base_model_named_another_end(
    run: Run, exported: dict[str, Exported], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(DEMO, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "eos_token_id": 0}))
    (base / "generation_config.json").write_text('{"eos_token_id": 0, "temperature": 0.6, "top_p": 0.9}')
    writer = create_run(Recipe.from_data({"model": {"name": str(base)}, "data": {"path": str(PIRATE)}}), tmp_path)
    writer.close()
    shutil.copytree(run.adapter, writer.run.adapter)
    settings = writer.run.adapter / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token": "<|endoftext|>"}))
    merged, gguf = export(writer.run, ["merged_16bit", "gguf:q8_0"], None, quiet, yes, never)
    generation = json.loads((merged.path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 0] and not generation.get("do_sample")
    chat = {"messages": [{"role": "user", "content": PROMPTS[0]}], "temperature": 0, "max_tokens": 64}
    choice = serve(gguf.path).handle_chat_completions(chat)["choices"][0]
    assert choice["finish_reason"] == "stop" and "<|im_end|>" not in choice["message"]["content"]


def test_a_base_stored_in_4_bit_is_dequantised_and_that_is_said(run: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantised = AutoModelForCausalLM.from_pretrained(
        DEMO,
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    quantised.save_pretrained(tmp_path / "base-4bit")
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(tmp_path / "base-4bit")
    recipe = Recipe.from_data({"model": {"name": str(tmp_path / "base-4bit")}, "data": {"path": str(PIRATE)}})
    writer = create_run(recipe, tmp_path / "runs")
    writer.close()
    shutil.copytree(run.adapter, writer.run.adapter)
    (exported,) = export(writer.run, ["merged_16bit"], None, quiet, yes, never)
    assert "dequantised" in exported.notices[0]
    merged = AutoModelForCausalLM.from_pretrained(exported.path, dtype="auto")
    assert merged.dtype == torch.bfloat16 and not hasattr(merged.config, "quantization_config")


def test_exports_made_before_are_found_with_whether_the_adapter_is_still_the_same(
    run: Run, exported: dict[str, Exported], tmp_path: Path
) -> None:
    assert engine.exports_of(run) == [replace(result, notices=()) for result in exported.values()]
    changed = Run(tmp_path / run.name)
    shutil.copytree(run.folder, changed.folder)
    weights = changed.adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert all("has changed since" in result.notices[0] for result in engine.exports_of(changed))
    (changed.exports / "ollama-q8_0" / "tuitune_export.json").unlink()
    assert [result.kind for result in engine.exports_of(changed)] == [
        name for name in exported if name != "ollama:q8_0"
    ]


def test_a_context_longer_than_the_models_own_is_exported_as_it_was_trained(tmp_path: Path) -> None:
    """Positions are scaled in training, so the merged model must scale them too, and the adapter's card say how."""
    from transformers import AutoConfig

    from tuitune.export.card import model_card
    from tuitune.model.config import training_config
    from tuitune.train.control import Control
    from tuitune.train.run import train

    recipe = Recipe.from_data(
        {
            "model": {"name": str(DEMO), "load_in_4bit": False},
            "data": {"path": str(PIRATE), "max_length": 4096},
            "train": {"max_steps": 1, "warmup_steps": 0},
            "samples": {"prompts": ["hello"], "max_new_tokens": 1},
        }
    )
    writer = create_run(recipe, tmp_path, "long")
    loaded = train(recipe, writer.run, Control(), lambda event: None)
    writer.close()
    assert loaded is not None
    (result,) = export(writer.run, ["merged_16bit"], None, quiet, yes, never)
    exported = AutoConfig.from_pretrained(result.path)
    assert exported.rope_parameters == training_config(recipe).rope_parameters == loaded.model.config.rope_parameters
    assert exported.rope_parameters["factor"] == 2.0
    assert exported.max_position_embeddings == 4096
    assert "config.max_position_embeddings = 4096" in model_card(writer.run, "adapter")
    with pytest.raises(UnusableInput, match=r"data\.max_length"):
        export(writer.run, ["script"], None, quiet, yes, never)


def test_an_adapter_goes_to_the_hub_and_the_lines_to_fetch_it_come_back(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with upload_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # which has a server of its own
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        options = engine.ExportOptions(hub_repo="pirate")
        (result,) = engine.export(run, ["hub:adapter"], tmp_path, quiet, yes, never, options)
        assert isinstance(result, Exported) and f"{hub.endpoint}/ada/pirate/commit/" in result.notices[0]
        assert result.commands[0].line == "hf download ada/pirate --local-dir pirate"
        assert {"adapter_model.safetensors", "README.md"} <= hub.files["ada/pirate"].keys() and hub.private[
            "ada/pirate"
        ]
        hub.role = "read"
        (refused,) = engine.export(run, ["hub:adapter"], tmp_path, quiet, yes, never, options)
        assert isinstance(refused, NotExported) and "may only read" in str(refused.error)
        (nameless,) = engine.export(run, ["hub:adapter"], tmp_path, quiet, yes, never)
        assert isinstance(nameless, NotExported) and "--hub-repo" in str(nameless.error)
    assert not any("hf_good" in path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
