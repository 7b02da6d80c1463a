"""What the app says is proven: the record, the catalogue and the page made from them."""

from pathlib import Path

import pytest

from tests.architectures import ARCHITECTURES, architecture
from tuitune.plan.catalogue import known_models
from tuitune.plan.models_page import table
from tuitune.plan.proven import LIMITS, architectures, proof


def test_the_page_is_made_from_the_record() -> None:
    page = Path(__file__).parents[2] / "docs" / "models.md"
    assert page.read_text(encoding="utf-8") == table(), "run python -m tuitune.plan.models_page > docs/models.md"


def test_what_is_said_to_be_proven_is_tested() -> None:
    assert set(architectures()) == {architecture(name) for name in ARCHITECTURES}
    assert all(proof(name, "transformers") for name in architectures())


@pytest.mark.parametrize("name", architectures())
@pytest.mark.parametrize("backend", ["transformers", "unsloth"])
def test_each_proof_says_how(name: str, backend: str) -> None:
    proven = proof(name, backend)
    if proven is not None:
        assert proven.rows in ("end to end", "padded")
        assert proven.attention and proven.targets
        assert all(limit.endswith(".") for limit in proven.limits)


def test_an_architecture_without_a_record_is_not_proven() -> None:
    assert proof("some_new_one", "transformers") is None
    assert proof("llama", "some_new_one") is None


def test_sizes_from_one_source_are_marked() -> None:
    unchecked = {known.name for known in known_models() if known.unchecked}
    assert "unsloth/Qwen3.5-27B" in unchecked
    assert "unsloth/Qwen3.5-9B" not in unchecked


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("unsloth/Qwen3.5-9B", "Qwen3_5TextConfig"),
        ("unsloth/Ministral-3-8B-Instruct-2512", "Ministral3Config"),
        ("unsloth/gpt-oss-120b", "GptOssConfig"),
        ("unsloth/SmolLM3-3B", "SmolLM3Config"),
        ("unsloth/gemma-2-2b-it", "Gemma2Config"),
    ],
)
def test_sizes_agree_with_the_defaults_of_transformers(name: str, config: str) -> None:
    """Where a config's defaults are those of a model in the catalogue, they are a second source."""
    import transformers

    shape = next(known.shape for known in known_models() if known.name == name)
    own = getattr(transformers, config)()
    assert (shape.hidden, shape.layers, shape.vocabulary) == (own.hidden_size, own.num_hidden_layers, own.vocab_size)
    head = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
    assert shape.key_value == head * own.num_key_value_heads
    per_token = own.intermediate_size * getattr(own, "num_experts_per_tok", 1)
    assert shape.intermediate == per_token


def test_every_limit_is_one_that_is_translated() -> None:
    proofs = [proof(name, backend) for name in architectures() for backend in ("transformers", "unsloth")]
    limits = {limit for proven in proofs if proven is not None for limit in proven.limits}
    assert limits and limits == set(LIMITS)
