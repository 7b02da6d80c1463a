"""Frozen weights shared out to two processes: the same values to the bit, with half of the weights in each."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import DEMO
from tuitune import backends
from tuitune.backends.loaded import LoadedModel
from tuitune.errors import UnusableInput
from tuitune.plan.memory import NF4_BYTES, memory_of, shape_of
from tuitune.recipe import Recipe
from tuitune.train.check import check
from tuitune.train.ranks import SOCKETS, Ranks, join

PROMPT = torch.arange(40, 100)[None]


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ThreadPoolExecutor, list[Ranks]]]:
    """Two threads that stand in for the processes, and how each of them is joined to the other."""
    for name, interface in SOCKETS.items():
        monkeypatch.setenv(name, interface)
    with ThreadPoolExecutor(2) as threads:

        def joined(rank: int) -> Ranks:
            return join(rank, 2, str(tmp_path / "meeting"), has_own_card=False)

        yield threads, list(threads.map(joined, range(2)))


def recipe_of(*changes: str) -> Recipe:
    return Recipe.load(DEMO / "demo.yaml", changes=["model.backend=transformers", *changes])


def loaded_with_adapter(recipe: Recipe, peers: Ranks | None = None) -> LoadedModel:
    """The demo model with an adapter that changes something."""
    loaded = backends.load(recipe, lambda text: None, peers=peers)
    loaded.backend.attach(loaded)
    values = torch.Generator().manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=values))
    return loaded


def passes(loaded: LoadedModel) -> tuple[list[float], dict[str, Any]]:
    """The losses of two passes in a row, and the gradients that they leave."""
    loaded.backend.for_training(loaded)
    losses = []
    for ids in (PROMPT, PROMPT + 1):
        loss = loaded.model(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids)).loss
        loss.backward()
        losses.append(float(loss.detach()))
    return losses, {name: p.grad for name, p in loaded.model.named_parameters() if p.grad is not None}


def bytes_of(loaded: LoadedModel) -> int:
    """What the parameters hold at this moment, and the parts of those that are shared out."""
    storages = {
        id(storage): storage.nbytes() for storage in map(torch.Tensor.untyped_storage, loaded.model.parameters())
    }
    parts = loaded.shards.shared_bytes // 2 if loaded.shards is not None else 0
    return int(sum(storages.values()) + parts)


@pytest.mark.parametrize("in_4bit", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_that_share_the_weights_compute_what_one_does(
    pair: tuple[ThreadPoolExecutor, list[Ranks]], in_4bit: bool, checkpointing: bool
) -> None:
    threads, ranks = pair
    recipe = recipe_of(f"model.load_in_4bit={in_4bit}", f"train.gradient_checkpointing={checkpointing}")
    whole = loaded_with_adapter(recipe)
    expected_losses, expected_gradients = passes(whole)
    shares = [loaded_with_adapter(recipe, peers) for peers in ranks]
    whole_bytes, layers = shares[0].shards.shared_bytes, recipe_layers(whole)
    assert whole_bytes > 0
    assert bytes_of(shares[0]) == bytes_of(whole) - whole_bytes // 2

    for losses, gradients in threads.map(passes, shares):
        assert losses == expected_losses
        assert gradients.keys() == expected_gradients.keys()
        assert all(torch.equal(gradients[name], expected) for name, expected in expected_gradients.items())
    assert bytes_of(shares[0]) <= bytes_of(whole) - whole_bytes // 2 + 2 * whole_bytes // layers

    def reply(loaded: LoadedModel) -> Any:
        loaded.backend.for_inference(loaded)
        return loaded.model.generate(input_ids=PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=6)

    def by_first(rank: int) -> Any:
        with shares[rank].shards.by_first_alone():
            return reply(shares[rank]) if rank == 0 else None

    assert torch.equal(next(threads.map(by_first, range(2))), reply(whole))
    assert bytes_of(shares[1]) == bytes_of(whole) - whole_bytes // 2


def recipe_layers(loaded: LoadedModel) -> int:
    layers: int = loaded.model.config.num_hidden_layers
    return layers


def test_where_the_first_fails_alone_the_others_go_on(pair: tuple[ThreadPoolExecutor, list[Ranks]]) -> None:
    threads, ranks = pair
    shares = [loaded_with_adapter(recipe_of(), peers) for peers in ranks]

    def fail(rank: int) -> None:
        with shares[rank].shards.by_first_alone():
            if rank == 0:
                shares[rank].model(input_ids=PROMPT)
                raise ValueError("of the first alone")

    first, second = (threads.submit(fail, rank) for rank in range(2))
    assert second.result() is None
    with pytest.raises(ValueError, match="of the first alone"):
        first.result()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["model.load_in_4bit=false", "model.load_in_8bit=true"], "8-bit"),
        (["model.backend=unsloth"], "Unsloth reads weights past the layers"),
        (["lora.use_dora=true"], "computed from whole weights"),
        (["lora.init_lora_weights=loftq"], "computed from whole weights"),
        (["lora.modules_to_save=[q_proj]"], "trained whole are copied whole"),
    ],
)
def test_what_needs_whole_weights_is_refused_before_the_run(changes: list[str], reason: str) -> None:
    with pytest.raises(UnusableInput, match=f"cannot be shared out, because .*{reason}.*set train.shard to false"):
        check(recipe_of("train.shard=true", *changes))


def test_weights_are_not_shared_over_a_network() -> None:
    with pytest.raises(UnusableInput, match="a network between hosts is too slow"):
        check(recipe_of("train.shard=true"), hosts=2)


def test_a_card_of_several_is_estimated_with_its_share_and_two_layers() -> None:
    recipe = recipe_of()
    shape = shape_of(recipe)

    def weights_bytes(cards: int) -> int:
        return memory_of(recipe, shape, 100, backend="transformers", card_bytes=2**34, shared_by=cards).weights_bytes

    decoder_bytes = int(NF4_BYTES * shape.linear_parameters)
    for cards in (4, 8):
        kept = decoder_bytes * (1 - 1 / cards - 2 / shape.layers)
        assert weights_bytes(1) - weights_bytes(cards) == pytest.approx(kept, abs=2)
