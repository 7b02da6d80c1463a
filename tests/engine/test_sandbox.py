"""Templates from outside stay in their sandbox, at the first look and at every later one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest

from tests.conftest import DEMO
from tests.engine.llama_cpp_models import templates
from tuitune.chat_template.sandbox import sandboxed
from tuitune.errors import UnusableInput
from tuitune.masking import Masker
from tuitune.model.config import load_tokenizer
from tuitune.recipe_sections import ModelSection

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "attempt",
    [
        "messages.append(1)",
        "messages[0].update(role='x')",
        "''.__class__.__mro__",
        "raise_exception.__globals__.keys()",
        "'{0.__class__.__name__}'.format(1)",
        "range(10**9)",
    ],
)
def test_what_is_not_allowed_stays_so(attempt: str) -> None:
    source = f"{{{{ messages[0].content }}}}{{% if add_generation_prompt %}}{{{{ {attempt} }}}}{{% endif %}}"
    render = sandboxed(source)
    for _ in range(3):
        assert render([MESSAGES], chat_template=source)[0] == ["hello"]
        with pytest.raises(Exception, match=r"unsafe|undefined|Range too big"):
            render([MESSAGES], chat_template=source, add_generation_prompt=True)


GROWING = "{% set ns = namespace(s='x' * 1000) %}{% for each in range(60) %}GROW{% endfor %}"
BOTH = "{{ calls(depth - 1) }}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for each in range(99999) %}{% for other in range(99999) %}{% endfor %}{% endfor %}",
        f"{{% macro calls(depth) %}}{{% if depth %}}{BOTH}{BOTH}{{% endif %}}{{% endmacro %}}{{{{ calls(30) }}}}",
        "{{ 'x' * 10**8 * 100 }}",
        "{{ 'x'|center(10000000000) }}",
        "{{ 10 ** 10 ** 10 }}",
        GROWING.replace("GROW", "{% set ns.s = ns.s + ns.s %}"),
        GROWING.replace("GROW", "{% set ns.s = ns.s ~ ns.s %}"),
        GROWING.replace("GROW", "{% set ns.s = [ns.s, ns.s]|join %}"),
        GROWING.replace("GROW", "{% set twice %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = twice %}"),
    ],
)
def test_a_template_without_end_is_stopped(source: str) -> None:
    with pytest.raises(UnusableInput, match=r"The chat template does not come to an end \(its? .*\): choose a"):
        sandboxed(source)([MESSAGES], chat_template=source)


@pytest.mark.parametrize("name", sorted(templates()))
def test_templates_in_use_write_what_transformers_makes_them_write(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = templates()[name]
    chat = [*MESSAGES, {"role": "assistant", "content": "ahoy"}, *MESSAGES]

    def written(render: Callable[..., Any], **asked: Any) -> Any:
        try:
            return render([chat], chat_template=source, bos_token="<s>", eos_token="</s>", **asked)[0]
        except (jinja2.TemplateError, TypeError) as error:
            return str(error)

    tool = {"type": "function", "function": {"name": "rain", "description": "Rain.", "parameters": {"properties": {}}}}
    for asked in ({}, {"add_generation_prompt": True}, {"tools": [tool]}):
        assert written(sandboxed(source), **asked) == written(render_jinja_template, **asked)


def test_a_model_whose_template_is_broken_or_endless_is_refused_in_one_sentence(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(DEMO / "demo_model", base)
    for source, says in (
        (
            "{% for m in messages %}",
            r"The chat template cannot be read \(line 1: Unexpected end of template.*\)",
        ),
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "does not come to an end"),
    ):
        (base / "chat_template.jinja").write_text(source)
        with pytest.raises(UnusableInput, match=says):
            Masker(load_tokenizer(ModelSection(name=str(base))), "assistant", 100)


def test_a_decision_for_one_type_is_not_another_s() -> None:
    source = "{% for each in things %}{{ each.pop is defined }} {% endfor %}"
    render = sandboxed(source)
    mine = type("Mine", (), {"pop": "mine"})
    for things, text in (([mine()], "True "), ([{}, mine(), []], "False True False "), ([[], mine()], "False True ")):
        assert render([MESSAGES], chat_template=source, things=things)[0] == [text]
