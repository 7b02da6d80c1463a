"""Frozen weights shared out to two processes: the same values to the bit, with half of the weights in each."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import DEMO
from tuitune import backends
from tuitune.backends.loaded import LoadedModel
from tuitune.errors import TuituneError, UnusableInput
from tuitune.plan.memory import NF4_BYTES, memory_of, shape_of
from tuitune.recipe import Recipe
from tuitune.runs.folder import create_run
from tuitune.runs.history import History
from tuitune.session.ranks import train_on_ranks
from tuitune.train.check import check
from tuitune.train.control import Control
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


FAILS_ONCE = """
import threading

class NVMLError(Exception): pass

planted = threading.Event()

def nvmlInit():
    import torch
    from torch.nn.modules import module as modules

    has_trained, under_way, parts, whole = False, 0, 0, torch.UntypedStorage.resize_

    def fail():
        try:
            open(__file__ + ".once", "x").close()
        except FileExistsError:
            return
        raise getattr(torch, error, RuntimeError)("CUDA error: of this process alone")

    def before(module, arguments):
        nonlocal has_trained, under_way
        under_way += 1
        has_trained = has_trained or module.training
        if has_trained and not module.training and type(module).__name__ == "LlamaMLP":
            is_reply, rows = torch.is_inference_mode_enabled(), len(arguments[0])
            if where == ("reply" if is_reply else "held-out" if rows == 2 else ""):  # the second of two passes
                fail()

    def after(module, arguments, output):
        nonlocal under_way
        under_way -= 1

    def resize(storage, size):
        nonlocal parts
        if has_trained and size > 0 and torch._C._current_graph_task_id() == -1:
            is_reply = torch.is_inference_mode_enabled()
            if where == ("weights" if is_reply else "" if under_way else "weights of another"):
                parts += 1
                if parts == 4:  # of a layer's seven
                    fail()
        return whole(storage, size)

    if not planted.is_set():
        planted.set()
        modules.register_module_forward_pre_hook(before)
        modules.register_module_forward_hook(after, always_call=True)
        torch.UntypedStorage.resize_ = resize
    raise NVMLError
"""
"""What stands in for a card that fails, in the place of NVML, which each process asks for its cards first.

It does so once, after training has begun: in the second process's pass of held-out rows, or in the first one's reply;
or in the middle of the weights that are gathered for a layer of it, in the first process or in one that follows it.
"""


def trained_with_a_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: str, steps: int = 2
) -> tuple[str, History]:
    """How a run in two processes that share the weights, measured after each step, ends; "stopped" if it hangs."""
    planted = folder / "planted"
    planted.mkdir()
    (planted / "pynvml.py").write_text(f"where, error = {where!r}, {error!r}\n{FAILS_ONCE}")
    monkeypatch.setenv("PYTHONPATH", str(planted), prepend=os.pathsep)
    changes = ["model.load_in_4bit=false", "train.shard=true", f"train.max_steps={steps}", "train.eval_steps=1"]
    changes += ["train.per_device_train_batch_size=6", "train.gradient_accumulation_steps=1", "data.eval_share=0.02"]
    recipe = recipe_of(*changes, 'samples.prompts=["Who are you?"]', "samples.max_new_tokens=2")
    writer, control = create_run(recipe, folder, "shared"), Control()
    hangs = threading.Timer(60, control.now.set)
    hangs.start()
    try:
        train_on_ranks(recipe, writer.run, control, writer.append, [None, None])
    finally:
        hangs.cancel()
        writer.close()
        assert (planted / "pynvml.py.once").exists()
    return writer.run.status(), writer.run.history()


PLACES = ["held-out", "weights", "weights of another"]


@pytest.mark.parametrize(("where", "steps"), [("held-out", 1), *((where, 2) for where in PLACES)])
def test_memory_that_runs_out_on_one_in_a_measurement_has_both_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, steps: int
) -> None:
    """With two steps it is in the measurement between them, with one in that of the trained model."""
    status, history = trained_with_a_failure(tmp_path, monkeypatch, where, "OutOfMemoryError", steps)
    assert status == "done"
    (ran_out,) = (notice.text for notice in history.notices if "Memory ran out" in notice.text)
    assert ran_out.endswith("with 3 × 2 rows a step.")
    assert [step.step for step in history.steps] == list(range(1, steps + 1))
    assert {evaluation.step for evaluation in history.evaluations} == set(range(steps + 1))
    assert {reply.step for reply in history.replies} == set(range(steps + 1))


@pytest.mark.parametrize("where", PLACES)
def test_what_one_raises_alone_in_a_measurement_ends_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with pytest.raises(TuituneError, match="CUDA error: of this process alone"):
        trained_with_a_failure(tmp_path, monkeypatch, where, "RuntimeError")


def test_a_reply_that_fails_ends_no_run_that_shares_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, history = trained_with_a_failure(tmp_path, monkeypatch, "reply", "RuntimeError")
    assert status == "done"
    assert any("at step 1 failed (RuntimeError: CUDA error" in notice.text for notice in history.notices)
    assert {reply.step for reply in history.replies} == {0, 2}


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
