"""Everything that must stop where a reply ends stops where the mask taught the model to end it."""

import re
from typing import Any

import pytest

from tests.engine.llama_cpp_models import templates, tokenizer
from tests.engine.test_masking_conformance import NEVER_ENDED
from tuitune.chat_template.turn_end import end_of_turn, end_of_turn_id
from tuitune.errors import TuituneError
from tuitune.export.ollama import modelfile, prompts_of
from tuitune.masking import Conversation, Masker, UnusableRow

MARKERS = re.compile(
    r"<[|｜][^<>{}']{1,40}[|｜]>|<\w+_of_turn>|\[/?[A-Z_]{3,}\]|<seed:\w+>|<SPECIAL_\d+>|\[e~\[|<turn\|>|</s>"
    r"|</?assistant>|<end_of_sentence>|<sep>"
)
CHAT: Conversation = [{"role": "user", "content": "Is it far?"}, {"role": "assistant", "content": "Two miles"}]


@pytest.fixture(scope="module")
def model() -> Any:
    """A tokenizer with every template's markers as special tokens, as their own models have them."""
    backend = tokenizer("gpt-2")
    markers = {marker for source in templates().values() for marker in MARKERS.findall(source)}
    backend.add_special_tokens({"additional_special_tokens": sorted(markers)})
    return backend


@pytest.mark.parametrize("name", sorted(templates()))
def test_a_reply_ends_at_the_last_token_that_is_trained(name: str, model: Any) -> None:
    model.chat_template = templates()[name]
    try:
        masked = Masker(model, "assistant", 100_000).encode(CHAT)
    except UnusableRow:
        assert end_of_turn(model) == model.eos_token
        return
    trained = [token for token, label in zip(masked.input_ids, masked.labels, strict=True) if label != -100]
    assert masked.ended != (name in NEVER_ENDED)
    if not masked.ended:
        assert end_of_turn_id(model) == model.eos_token_id
        return
    assert end_of_turn_id(model) == trained[-1]
    assert end_of_turn(model) == model.decode(trained[-1:])
    try:
        text = modelfile(model, prompts_of(model, thinks=False))
    except TuituneError:  # many templates are more than text around messages
        return
    assert f'PARAMETER stop "{end_of_turn(model)}"' in text
