"""What an exported model's chat template writes before a reply is what stood there in training."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.engine.exporting import export, never, quiet, yes
from tests.engine.llama_cpp_models import templates, tokenizer
from tests.engine.test_export import DEMO
from tuitune.chat.gguf_engine import open_gguf
from tuitune.chat_template.reply_start import begin_as_trained, prompt_as_trained
from tuitune.chat_template.template import ChatTemplate
from tuitune.conversation import Conversation, UnusableRow
from tuitune.recipe import Recipe
from tuitune.runs.folder import create_run

CHANGED = {
    *("GLM-4.6", "GLM-4.7-Flash", "Kimi-K2-Thinking", "MiniMax-M3", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"),
    *("Qwen-Qwen3-0.6B", "Qwen3.5-4B", "Spark2.5", "StepFun3.5-Flash", "inclusionai-ling-3.0-flash"),
}
SAID = {"deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "google-gemma-4-31B-it", "openai-gpt-oss-120b", "Cohere2MoE"}
CHATS: list[Conversation] = [
    [{"role": "user", "content": "One"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One\n\ntwo"}],
    [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three"},
    ],
]


@pytest.fixture(scope="module")
def qwen() -> Any:
    return tokenizer("qwen2")


@pytest.mark.parametrize("name", sorted(templates()))
def test_the_exported_template_prompts_as_in_training_or_that_is_said(name: str, qwen: Any) -> None:
    source = templates()[name]
    qwen.chat_template = source
    own = ChatTemplate(qwen)
    notices = begin_as_trained(qwen)
    changed = qwen.chat_template != source
    now = ChatTemplate(qwen)
    assert changed or name not in CHANGED
    assert len(notices) == 1 if changed or name in SAID else len(notices) <= 1
    for chat in CHATS:
        try:
            trained = prompt_as_trained(own, chat)
        except UnusableRow:
            continue
        prompt = now.text(now.standard(chat), prompt=True)
        assert notices or prompt == trained, "a difference that is not said"
        assert prompt == trained or not changed
        whole = own.standard([*chat, {"role": "assistant", "content": "Four"}])
        assert now.text(whole) == own.text(whole)


@pytest.mark.parametrize(
    ("reply", "ending"),
    [("Ahoy!", "assistant\n<think>\n\n</think>\n\n"), ("<think>\nhm\n</think>\n\nAhoy!", "assistant\n")],
    ids=["without thinking", "with thinking"],
)
def test_an_export_of_a_run_begins_where_its_data_did(reply: str, ending: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from tuitune.train.control import Control
    from tuitune.train.run import train

    model, rows = tmp_path / "qwen-like", tmp_path / "rows.jsonl"
    shutil.copytree(DEMO, model)
    given = AutoTokenizer.from_pretrained(model)
    given.chat_template = templates()["Qwen-Qwen3-0.6B"]
    given.save_pretrained(model)
    chat = [*CHATS[0], {"role": "assistant", "content": reply}]
    rows.write_text("".join(json.dumps({"messages": chat, "n": n}) + "\n" for n in range(4)))
    recipe = Recipe.from_data(
        {
            "model": {"name": str(model), "load_in_4bit": False},
            "data": {"path": str(rows)},
            "lora": {"target_modules": ["q_proj"]},
            "train": {"max_steps": 1, "warmup_steps": 0, "learning_rate": 5e-3},
            "samples": {"prompts": ["Hello!", "again " * 2100], "max_new_tokens": 4},
        }
    )
    writer = create_run(recipe, tmp_path / "runs", "qwen-like")
    train(recipe, writer.run, Control(), writer.append)
    writer.close()

    notices = [notice.text for notice in writer.run.history().notices]
    assert any(text.startswith("The data has no thinking, so replies are trained behind") for text in notices) is (
        "<think>" in ending
    )
    assert [text for text in notices if text.startswith("No reply to 'again again") and "shorten it" in text]
    kinds = ["adapter", "merged_16bit", "gguf:f16"] if "<think>" in ending else ["adapter", "merged_16bit"]
    for exported in export(writer.run, kinds, None, quiet, yes, never):
        if exported.kind == "gguf:f16":
            with open_gguf(exported.path, context=512) as gguf:  # llama.cpp asks for thinking by itself
                assert given.decode(gguf.prompt_ids(CHATS[0])).endswith(ending)
            continue
        opened = AutoTokenizer.from_pretrained(exported.path)
        prompt = opened.apply_chat_template(CHATS[0], tokenize=False, add_generation_prompt=True)
        assert prompt.endswith(ending)
        assert any("without thinking" in text for text in exported.notices) is ("<think>" in ending)
