"""An export that does not answer as its adapter does is refused, and the sentence says in what way."""

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from tests.engine.exporting import export
from tuitune.errors import TuituneError
from tuitune.export import llama_cpp, parity
from tuitune.export.parity import Answers, Asked, Reference
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run, create_run

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "sample_data" / "demo_model"

pytestmark = pytest.mark.skipif(not (DEMO / "config.json").is_file(), reason="the demo model is not here")


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the demo model whose adapter moves every prediction a little."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = {"path": str(ROOT / "sample_data" / "pirate.jsonl")}
    writer = create_run(
        Recipe.from_data({"model": {"name": str(DEMO)}, "data": data}), tmp_path_factory.mktemp("runs"), "moved"
    )
    writer.close()
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj", "down_proj"], task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.03)
    model.save_pretrained(writer.run.adapter)
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(writer.run.adapter)
    return writer.run


@pytest.fixture(scope="module")
def expected(run: Run) -> Reference:
    """What the adapter and the base say to two prompts and three rows."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    asked = parity.asked_of(run, tokenizer, never)
    small = Asked(asked.prompts[:2], asked.rows[:3])
    return parity.reference(run, run.resolved(), tokenizer, small, never)


def answers_of(run: Run, folder: Path, expected: Reference) -> Answers:
    return parity.transformers_answers(folder, run.resolved(), expected.asked, never)


def test_a_merge_that_is_the_base_is_refused(run: Run, expected: Reference) -> None:
    answers = answers_of(run, DEMO, expected)
    with pytest.raises(TuituneError, match="answers as the base model does and not as the adapter"):
        parity.judged("merged_16bit", expected, answers)


def test_an_adapter_that_changes_nothing_is_refused(expected: Reference) -> None:
    unchanged = replace(expected, base_logprobs=expected.adapter.logprobs)
    with pytest.raises(TuituneError, match=r"The adapter changes nothing.*Train longer"):
        parity.judged("merged_16bit", unchanged, expected.adapter)


def test_a_template_that_makes_other_tokens_is_refused_unless_it_was_told(
    run: Run, expected: Reference, tmp_path: Path
) -> None:
    other = tmp_path / "model"
    shutil.copytree(DEMO, other)
    template = (other / "chat_template.jinja") if (other / "chat_template.jinja").is_file() else None
    if template is None:
        config = json.loads((other / "tokenizer_config.json").read_text())
        config["chat_template"] += "{{ 'Well' }}"
        (other / "tokenizer_config.json").write_text(json.dumps(config))
    else:
        template.write_text(template.read_text().rstrip("\n") + "{{ 'Well' }}")
    answers = answers_of(run, other, expected)
    assert all(mine != theirs for mine, theirs in zip(answers.prompt_ids, expected.adapter.prompt_ids, strict=True))
    as_adapter = replace(expected.adapter, prompt_ids=answers.prompt_ids)
    with pytest.raises(TuituneError, match="makes other tokens of a prompt than the run was trained on"):
        parity.judged("merged_16bit", expected, as_adapter)
    assert parity.judged("merged_16bit", expected, as_adapter, template_told=True).same_prompt_ids == 0


def test_a_reply_that_never_ends_is_refused_where_the_adapters_ends(expected: Reference) -> None:
    ending = replace(expected, adapter=replace(expected.adapter, ended=[True, True]))
    endless = replace(expected.adapter, ended=[True, False])
    with pytest.raises(TuituneError, match="does not end within 96 tokens where the adapter's does"):
        parity.judged("gguf:q8_0", ending, endless)
    neither = replace(expected, adapter=endless)
    assert parity.judged("gguf:q8_0", neither, endless).ended == 1, "the adapter's own does not end either"


def test_a_figure_beyond_the_bound_of_its_kind_is_refused(expected: Reference) -> None:
    far = replace(expected, base_logprobs=[logprob - 5 for logprob in expected.adapter.logprobs])
    moved = replace(expected.adapter, logprobs=[logprob - 0.3 for logprob in expected.adapter.logprobs])
    with pytest.raises(TuituneError, match=r"are 0\.30 from the adapter's .*, and 0\.1 is the most for this kind"):
        parity.judged("gguf:q8_0", far, moved)
    assert parity.judged("gguf:q4_k_m", far, moved).logprob_difference == pytest.approx(0.3), "within q4's"
    sure = replace(far, adapter=replace(expected.adapter, sureness=[math.log(0.9)] * len(moved.logprobs)))
    others = replace(sure.adapter, likeliest=[token + 1 for token in expected.adapter.likeliest])
    with pytest.raises(TuituneError, match=r"Only 0% of the next tokens .* and 96% is the least"):
        parity.judged("gguf:q8_0", sure, others)


def test_a_converter_that_is_killed_is_said_and_leaves_all_as_it_was(run: Run, tmp_path: Path) -> None:
    if llama_cpp.find() is None:
        pytest.skip("llama.cpp's converter is not here")
    adapter = {path: path.read_bytes() for path in run.adapter.iterdir()}
    killed: list[int] = []

    def kill(*_: object) -> bool:  # asked between looks at the child, as whether the user stopped it
        for child in [] if killed else psutil.Process().children():
            if "convert.py" in " ".join(child.cmdline()):
                killed.append(child.pid)
                os.kill(child.pid, signal.SIGKILL)
        return False

    out = tmp_path / "out"
    with pytest.raises(TuituneError, match=r"was killed \(SIGKILL\), perhaps for want of memory"):
        export(run, ["adapter_gguf"], out, lambda *_: None, lambda question: True, kill)
    assert killed and not list(out.iterdir())
    assert {path: path.read_bytes() for path in run.adapter.iterdir()} == adapter
