"""The fast decoder: the same probabilities as the training's own forward, sequences that end by themselves, seeds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters import draw_adapter
from tests.conftest import DEMO
from tuitune.backends.loaded import LoadedModel
from tuitune.backends.transformers import TransformersBackend
from tuitune.chat.choice import Choice, choose
from tuitune.chat.decoder import Generating, decoder_of, logprobs_of
from tuitune.chat.decoding import CanDecode, Decoded, DecodeRequest
from tuitune.chat.fast_decoder import Decoder
from tuitune.chat.reply import prompt_ids
from tuitune.recipe import Recipe

QUESTIONS = (
    "Which city is the capital of Portugal?",
    "空は何色ですか？",
    "I have 3 apples and get 9 more. How many do I have?",
)
END = 2


def with_adapter(recipe: Recipe) -> LoadedModel:
    """The recipe's model with an adapter that changes what it says."""
    backend = TransformersBackend()
    loaded = backend.load(recipe)
    backend.attach(loaded)
    draw_adapter(loaded.model, std=0.05)
    backend.for_inference(loaded)
    return loaded


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return with_adapter(Recipe.load(DEMO / "demo.yaml", ["load_in_4bit=false"]))


@pytest.fixture(scope="module")
def decoder(loaded: LoadedModel) -> Decoder:
    return Decoder(loaded)


@pytest.fixture(scope="module")
def prompts(loaded: LoadedModel) -> list[list[int]]:
    return [prompt_ids(loaded, [{"role": "user", "content": question}]) for question in QUESTIONS for _ in range(3)]


SAMPLED = Choice()


def decode(decoder: CanDecode, prompts: list[list[int]], choice: Choice = SAMPLED, **options: Any) -> list[Decoded]:
    settings: dict[str, Any] = {"seeds": range(len(prompts)), "max_new_tokens": 24, "ends": {END}} | options
    return decoder.decode(DecodeRequest(prompts=prompts, choice=choice, **settings))


def furthest(loaded: LoadedModel, prompts: list[list[int]], decoded: list[Decoded]) -> float:
    """The largest difference of a token's log-probability from the training's forward."""
    pairs = zip(prompts, decoded, strict=True)
    return max(
        float((logprobs_of(loaded, prompt, result.ids) - torch.tensor(result.logprobs)).abs().max())
        for prompt, result in pairs
    )


def test_sampled_tokens_have_the_probabilities_of_the_training_forward(
    loaded: LoadedModel, decoder: Decoder, prompts: list[list[int]]
) -> None:
    assert furthest(loaded, prompts, decode(decoder, prompts)) < 1e-4


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3", "mistral_window"])
def test_windows_norms_and_biases_of_other_architectures_are_theirs(name: str, folders: dict[str, Path]) -> None:
    """Prompts longer than the window of 64 tokens, decoded beside short ones."""
    model = {"name": str(folders[name]), "load_in_4bit": False}
    loaded = with_adapter(Recipe.from_data({"model": model, "data": {"path": "none.jsonl"}}))
    generator = torch.Generator().manual_seed(1)
    lines = [torch.randint(5, 3000, (length,), generator=generator).tolist() for length in (3, 40, 90)]
    assert furthest(loaded, lines, decode(Decoder(loaded), lines, ends=set())) < 1e-4


def test_a_model_in_4bit_is_decoded_from_the_weights_it_is_computed_with() -> None:
    loaded = with_adapter(Recipe.load(DEMO / "demo.yaml"))
    ids = prompt_ids(loaded, [{"role": "user", "content": QUESTIONS[0]}])
    assert furthest(loaded, [ids], decode(Decoder(loaded), [ids])) < (
        1e-3 if torch.finfo(loaded.model.dtype).bits == 32 else 0.1
    )


def test_a_sequence_depends_on_its_seed_and_not_on_its_batch(decoder: Decoder, prompts: list[list[int]]) -> None:
    varied = Choice(temperature=3)
    together = decode(decoder, prompts, varied)
    alone = decode(decoder, [prompts[4]], varied, seeds=[4])
    assert alone[0].ids == together[4].ids != together[5].ids
    assert decode(decoder, prompts, varied) == together


def test_sequences_end_at_the_end_token_or_at_the_limit(decoder: Decoder, prompts: list[list[int]]) -> None:
    decoded = decode(decoder, prompts, Choice(temperature=0))
    assert all(result.ended == (result.ids[-1] == END) for result in decoded) and any(map(lambda r: r.ended, decoded))
    assert all(END not in result.ids[:-1] for result in decoded)
    endless = decode(decoder, prompts, ends=set(), max_new_tokens=20)
    assert all(len(result.ids) == 20 and not result.ended for result in endless)


def test_greedy_replies_are_those_of_generate(loaded: LoadedModel, decoder: Decoder, prompts: list[list[int]]) -> None:
    slow = Generating(loaded)
    for adapter in (True, False):
        greedy = {"adapter": adapter, "max_new_tokens": 16}
        fast = decode(decoder, prompts[::3], Choice(temperature=0), **greedy)
        expected = decode(slow, prompts[::3], Choice(temperature=0), seeds=[0], **greedy)
        assert [result.ids for result in fast] == [result.ids for result in expected]


def test_a_trained_adapter_is_taken_over_at_the_next_decoding(
    loaded: LoadedModel, decoder: Decoder, prompts: list[list[int]]
) -> None:
    before = decode(decoder, prompts[:1], Choice(temperature=0))
    changed = [p for name, p in loaded.model.named_parameters() if "lora_B" in name]
    kept = [p.detach().clone() for p in changed]
    for parameter in changed:
        parameter.data.mul_(-3)
    after = decode(decoder, prompts[:1], Choice(temperature=0))
    assert furthest(loaded, prompts[:1], after) < 1e-4 < abs(before[0].logprobs[0] - after[0].logprobs[0])
    for parameter, value in zip(changed, kept, strict=True):
        parameter.data.copy_(value)


def test_a_decoding_is_left_when_that_is_asked(decoder: Decoder, prompts: list[list[int]]) -> None:
    tokens: list[tuple[int, int]] = []
    decoded = decode(
        decoder, prompts, on_token=lambda row, token: tokens.append((row, token)), cancelled=lambda: len(tokens) > 20
    )
    assert max(len(result.ids) for result in decoded) == 3 and len(tokens) == 27


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    """Every quantile of the uniform numbers once: counts are the probabilities, to the width of one quantile."""
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 2
    quantiles = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    tokens, logprobs = choose(logits.expand(20_000, -1), Choice(temperature=0.7), quantiles)
    expected = torch.softmax(logits / 0.7, -1)
    assert (torch.bincount(tokens, minlength=50) / 20_000 - expected).abs().max() < 1e-4
    assert torch.allclose(logprobs.exp(), expected[tokens], atol=1e-5)


@pytest.mark.parametrize("choice", [Choice(top_k=3), Choice(top_p=0.6), Choice(min_p=0.3)])
def test_what_an_option_leaves_out_is_what_transformers_leaves_out(choice: Choice) -> None:
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(1)) * 2
    warpers = [
        *([TopKLogitsWarper(choice.top_k)] if choice.top_k else []),
        *([TopPLogitsWarper(choice.top_p)] if choice.top_p < 1 else []),
        *([MinPLogitsWarper(choice.min_p)] if choice.min_p else []),
    ]
    left = logits
    for warper in warpers:
        left = warper(None, left)
    quantiles = (torch.arange(5_000, dtype=torch.float64) + 0.5) / 5_000
    tokens, _ = choose(logits.expand(5_000, -1), choice, quantiles)
    assert set(tokens.tolist()) == set(left.isfinite()[0].nonzero()[:, 0].tolist())
    assert (torch.bincount(tokens, minlength=50) / 5_000 - left.softmax(-1)[0]).abs().max() < 1e-3


def test_a_model_with_other_states_than_keys_and_values_is_generated_and_that_is_said(folders: dict[str, Path]) -> None:
    model = {"name": str(folders["lfm2"]), "load_in_4bit": False}
    loaded = with_adapter(
        Recipe.from_data({"model": model, "data": {"path": "none.jsonl"}, "lora": {"target_modules": "all"}})
    )
    told: list[str] = []
    decoder = decoder_of(loaded, [5, 6, 7, 8], told.append)
    assert isinstance(decoder, Generating) and "lfm2 has layers of the kind conv" in told[0]
    decoded = decode(decoder, [[5, 6, 7], [8, 9]], seeds=[1, 2], max_new_tokens=4)
    assert all(1 <= len(result.ids) == len(result.logprobs) <= 4 for result in decoded)
