"""The Modelfile makes the prompts that the model's own chat template makes, and stops where it does."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.engine.llama_cpp_models import templates
from tuitune.errors import TuituneError
from tuitune.export.ollama import modelfile, pieces, prompts_of, stop_texts

DEMO = Path(__file__).parents[2] / "sample_data" / "demo_model"

TURNS = "{% for m in messages %}"
END = "{% endfor %}"
GENERATE = "{% if add_generation_prompt %}"
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    + TURNS
    + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    + END
    + GENERATE
    + "<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "a default system message": DEFAULT_SYSTEM,
    "a reply that begins with a thought": DEFAULT_SYSTEM.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"),
    "instructions in brackets, no system": (
        "{{ bos_token }}"
        + TURNS
        + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' %} {{ m.content }}"
        + "<|im_end|>{% else %}{{ raise_exception('no system role') }}{% endif %}"
        + END
    ),
    "system folded into the first user message": (
        "{% set ns = namespace(s='') %}"
        + TURNS
        + "{% if m.role == 'system' %}{% set ns.s = m.content %}{% elif m.role == 'user' %}<|im_start|>user\n"
        + "{% if ns.s %}{{ ns.s }}\n\n{% set ns.s = '' %}{% endif %}{{ m.content }}<|im_end|>\n"
        + "{% else %}<|im_start|>model\n{{ m.content }}<|im_end|>\n{% endif %}"
        + END
        + GENERATE
        + "<|im_start|>model\n{% endif %}"
    ),
    "another end after the last turn": (
        TURNS
        + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        + END
        + GENERATE
        + "<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}"
    ),
    "what Go would read as its own": TURNS
    + "{{ '{{' }}{{ m.role }}}} {{ m.content }}<|im_end|>"
    + END
    + "{{ '{{- ' }}reply:",
}
CHATS = [
    [("user", "Hello\n\n{{ .you }}")],
    [("user", "One"), ("assistant", "Two 日本"), ("user", "Three")],
    [("system", "Be brief."), ("user", "One")],
    [
        ("system", "Be brief."),
        ("user", "One"),
        ("assistant", "Two"),
        ("user", "Three"),
        ("assistant", "4"),
        ("user", "5"),
    ],
]


@pytest.fixture
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def go_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that executes Go templates as Ollama does."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go, whose templates Ollama runs, is not installed")
    folder = tmp_path_factory.mktemp("go")
    settings = {**os.environ, "GOCACHE": str(folder / "cache"), "GO111MODULE": "off", "GOFLAGS": ""}
    source = Path(__file__).with_name("go_template.go")
    subprocess.run([go, "build", "-o", folder / "go_template", source], env=settings, check=True, timeout=300)
    return folder / "go_template"


def template_in(text: str) -> str:
    return text.split('TEMPLATE """', 1)[1].split('"""', 1)[0]


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("name", ["the demo's own", "Qwen-Qwen3-0.6B", *TEMPLATES])
def test_ollamas_template_engine_makes_the_same_prompts(
    name: str, thinks: bool, tokenizer: Any, go_template: Path
) -> None:
    tokenizer.chat_template = {**templates(), **TEMPLATES}.get(name, tokenizer.chat_template)
    prompt = prompts_of(tokenizer, thinks=thinks)
    template = template_in(modelfile(tokenizer, prompt))
    cases, expected = [], []
    for chat in CHATS:
        if chat[0][0] == "system" and pieces(tokenizer, prompt).system is None:
            continue
        cases.append({"Template": template, "Messages": [{"Role": r, "Content": c} for r, c in chat]})
        messages = [{"role": r, "content": c} for r, c in chat]
        if thinks:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            reply = {"role": "assistant", "content": "the reply"}
            text = tokenizer.apply_chat_template([*messages, reply], tokenize=False).partition("the reply")[0]
        expected.append(text.removeprefix(tokenizer.bos_token).rstrip(" "))  # the runtime writes what begins a text
    ran = subprocess.run([go_template], input=json.dumps(cases), capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == expected


def test_the_stops_are_the_tokens_that_end_and_begin_a_turn(tokenizer: Any) -> None:
    prompt = prompts_of(tokenizer, thinks=False)
    text = modelfile(tokenizer, prompt)
    assert text.startswith("FROM ./model.gguf\n")
    stops = stop_texts(tokenizer, pieces(tokenizer, prompt))
    assert stops == ["<|im_end|>", "<|im_start|>"]
    assert [line for line in text.splitlines() if line.startswith("PARAMETER")] == [
        f'PARAMETER stop "{stop}"' for stop in stops
    ]
    for stop in stops:  # one token each, so that a stop is never found in the middle of a text
        assert len(tokenizer(stop, add_special_tokens=False)["input_ids"]) == 1


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ loop.index }}: {{ m.content }}<|im_end|>{% endfor %}",
        "{{ raise_exception('no') }}",
        '{% for m in messages %}"""{{ m.content }}<|im_end|>{% endfor %}',
    ],
)
def test_a_template_that_does_more_is_refused(template: str, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    with pytest.raises(TuituneError, match=r"export gguf:q8_0"):
        modelfile(tokenizer, prompts_of(tokenizer, thinks=False))
