"""The mask holds for every chat template and tokenizer in llama.cpp's tree: content and end marker, nothing else."""

import re
from functools import cache
from itertools import groupby
from typing import Any

import pytest

from tests.engine.llama_cpp_models import CHAT_VOCABULARIES, templates, tokenizer
from tuitune.chat_template.template import ChatTemplate
from tuitune.masking import Conversation, Masked, Masker, UnusableRow

PLAIN: Conversation = [
    {"role": "user", "content": "Where is the river, and why?"},
    {"role": "assistant", "content": "Beyond the hill: it flows south."},
    {"role": "user", "content": "And the lake (the blue one)?"},
    {"role": "assistant", "content": "Two miles on; 日本 🎉 user assistant model"},
]
WITH_SYSTEM: Conversation = [{"role": "system", "content": "Speak plainly, please."}, *PLAIN]
THINKING: Conversation = [
    {"role": "user", "content": "Where is the river?"},
    {"role": "assistant", "content": "Beyond the hill.", "reasoning_content": "Maps show hills."},
    {"role": "user", "content": "And the lake?"},
    {"role": "assistant", "content": "Two miles on.", "reasoning_content": "Lakes are near."},
]
CALLING: Conversation = [
    {"role": "user", "content": "Is it raining in Rome?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "abcdef123",
                "type": "function",
                "function": {"name": "rainfall", "arguments": {"city": "Rome", "hours": 3}},
            }
        ],
    },
    {"role": "tool", "name": "rainfall", "tool_call_id": "abcdef123", "content": "4 mm"},
    {"role": "assistant", "content": "Yes, a little."},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "rainfall",
            "description": "Millimetres of rain.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Where."}}},
        },
    }
]

NEVER_ENDED = {"GLM-4.6", "GLM-4.7-Flash", "llama-cpp-rwkv-world", "tencent-Hy3"}
"""Templates that write nothing after a reply; the audit says so."""
WITH_TOOLS_ONLY = {"CohereForAI-c4ai-command-r-plus-tool_use", "fireworks-ai-llama-3-firefunction-v2"}
"""Templates that cannot be rendered without tools or extra variables of their own."""
ENDS_IN_PLAIN_TEXT = {"tencent-Hy3"}
"""Templates around whose replies stands text that a tokenizer joins with them, such as a newline or a tag."""
HEADER_WORDS = re.compile(r"user|assistant|system|model|human|tool", re.IGNORECASE)


@cache
def unchanged_tokenizer() -> Any:
    """One for the tests that look at rendered text alone."""
    return tokenizer("gpt-2")


def trained_texts(backend: object, masked: Masked) -> list[str]:
    """The decoded text of each run of trained tokens."""
    decode = backend.decode  # type: ignore[attr-defined]
    runs = groupby(zip(masked.input_ids, masked.labels, strict=True), key=lambda pair: pair[1] != -100)
    return [decode([token for token, _ in run], skip_special_tokens=False) for trained, run in runs if trained]


@pytest.mark.parametrize("name", CHAT_VOCABULARIES)
def test_each_turn_is_its_content_and_end_marker(name: str) -> None:
    """With every template on this tokenizer; its markers are special tokens where the vocabulary has them."""
    backend = tokenizer(name)
    masker = _masker(backend)
    refused = set()
    for template, source in templates().items():
        masker.template = ChatTemplate(backend, source)
        for messages in (PLAIN, WITH_SYSTEM):
            try:
                masked = masker.encode(messages)
            except UnusableRow:
                refused.add(template)
                continue
            replies = [turn["content"] or "" for turn in messages if turn["role"] == "assistant"]
            texts = trained_texts(backend, masked)
            assert len(texts) == len(replies), template
            for text, reply in zip(texts, replies, strict=True):
                assert text.lstrip(" ").startswith(reply), template
                marker = text.lstrip(" ").removeprefix(reply)
                assert marker.strip() or template in NEVER_ENDED, template
                assert not HEADER_WORDS.search(marker.replace("</assistant>", "").replace("assistant_end", "")), marker
    assert refused <= WITH_TOOLS_ONLY


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "phi-3", "starcoder"])
def test_ids_are_those_of_the_rendered_template(name: str) -> None:
    """With the template's markers as special tokens, as its own model has them, the ids are the template's."""
    backend = tokenizer(name)
    for source in templates().values():
        markers = set(
            re.findall(r"<[|｜][^<>{}']{1,40}[|｜]>|<\w+_of_turn>|\[/?[A-Z_]{3,}\]|<seed:\w+>|<SPECIAL_\d+>", source)
        )
        backend.add_special_tokens({"additional_special_tokens": sorted(markers)})
    masker = _masker(backend)
    different = set()
    for template, source in templates().items():
        masker.template = chat = ChatTemplate(backend, source)
        try:
            masked = masker.encode(PLAIN)
        except UnusableRow:
            continue
        expected = backend(chat.text(PLAIN) + chat.closing, add_special_tokens=False)["input_ids"]
        if masked.input_ids != expected:
            different.add(template)
            assert backend.decode(masked.input_ids) == backend.decode(expected)
    assert different <= ENDS_IN_PLAIN_TEXT


def _masker(backend: Any) -> Masker:
    backend.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    return Masker(backend, "assistant", 100_000)


@pytest.mark.parametrize("template", sorted(set(templates()) - WITH_TOOLS_ONLY))
def test_thinking_is_trained_only_where_the_template_writes_it(template: str) -> None:
    """Past thinking is often dropped; what is rendered of it is trained, from after the generation prompt on."""
    chat = ChatTemplate(unchanged_tokenizer(), templates()[template])
    rendered = chat.render(THINKING)
    for turn, message in zip(rendered.turns, THINKING[1::2], strict=True):
        text = rendered.text[turn.start : turn.end]
        thought, reply = message["reasoning_content"], message["content"] or ""
        assert reply in text
        assert (thought in text) == (thought in rendered.text)
        assert "river" not in text and "lake?" not in text


@pytest.mark.parametrize("template", sorted(templates()))
def test_tool_calls_are_trained_whole(template: str) -> None:
    """From after the header to the end marker, arguments of every type included; the tool's answer is not trained."""
    chat = ChatTemplate(unchanged_tokenizer(), templates()[template])
    try:
        rendered = chat.render(CALLING, TOOLS)
    except UnusableRow as reason:
        assert "tool" in str(reason) or "template" in str(reason)
        return
    call, reply = (rendered.text[turn.start : turn.end] for turn in rendered.turns)
    assert "rainfall" in call and "Rome" in call and "3" in call
    assert "4 mm" not in call and "raining" not in call
    assert reply.startswith("Yes, a little.")
    assert call.count("<") - call.count(">") in (-1, 0, 1)


def test_generation_markers_agree() -> None:
    """Templates that mark generated text themselves mark what is trained here, plus at most header and white space."""
    seen = 0
    for name, source in templates().items():
        if "generation -%}" not in source and "generation %}" not in source:
            continue
        seen += 1
        backend = tokenizer("gpt-2")
        backend.chat_template = source
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, spans = render_jinja_template(
            [PLAIN], chat_template=source, return_assistant_tokens_mask=True, **backend.special_tokens_map
        )
        rendered = ChatTemplate(backend, source).render(PLAIN)
        assert rendered.text == texts[0], name
        for turn, (start, end) in zip(rendered.turns, spans[0], strict=True):
            assert start <= turn.start and turn.end <= end, name
            assert not rendered.text[turn.end : end].strip(), name
            assert re.fullmatch(r"(<assistant>|</?think>|\s)*", rendered.text[start : turn.start]), name
    assert seen >= 3


def test_a_call_is_trained_without_what_stands_around_it() -> None:
    """Command R+ ends a call without a marker, and writes a turn of instructions before each generation."""
    name = "CohereForAI-c4ai-command-r-plus-tool_use"
    model = tokenizer("command-r")
    model.chat_template = templates()[name]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    calling: Conversation = [PLAIN[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    told: Conversation = [*calling, {"role": "tool", "content": "Rain."}, PLAIN[1]]
    for messages, turns in ((calling, 1), (told, 2)):
        rendered = ChatTemplate(model).render(messages, TOOLS)
        assert len(rendered.turns) == turns
        text = rendered.text[rendered.turns[0].start : rendered.turns[0].end]
        assert text.strip().startswith("Action:") and text.endswith("]```") and "_TOKEN|>" not in text


def test_refusals_say_why() -> None:
    """A template that demands alternation refuses the row in its own words."""
    chat = ChatTemplate(tokenizer("gpt-2"), templates()["google-gemma-2-2b-it"])
    with pytest.raises(UnusableRow, match="must alternate"):
        chat.render([PLAIN[0], PLAIN[0], PLAIN[1]])
    with pytest.raises(UnusableRow, match=r"message 2 \(assistant\) is empty"):
        chat.render([PLAIN[0], {"role": "assistant", "content": " \n"}])


def test_a_system_message_without_a_place_opens_the_first_user_turn() -> None:
    """Gemma 2 forbids the role and Mistral Nemo loses it in training rows: nothing of the row is lost."""
    for template in ("google-gemma-2-2b-it", "mistralai-Mistral-Nemo-Instruct-2407"):
        rendered = ChatTemplate(tokenizer("gpt-2"), templates()[template]).render(WITH_SYSTEM)
        assert "Speak plainly, please.\n\nWhere is the river" in rendered.text
