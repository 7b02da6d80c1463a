"""On a GPU: a pass that is replayed from a CUDA graph trains exactly as the same pass run kernel by kernel."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.engine.training import trained
from tests.gpu.card import require_card
from tuitune.backends.loaded import LoadedModel
from tuitune.machine.environment import warm_up
from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Step
from tuitune.train.control import Control

pytestmark = pytest.mark.gpu
torch = require_card(unsloth=True)
warm_up()

SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"
MODEL, CHATS = SAMPLE_DATA / "demo_model", SAMPLE_DATA / "pirate.jsonl"


@pytest.fixture(scope="module")
def loaded_and_rows() -> tuple[LoadedModel, Any]:
    from benchmarks.gpu_pass import load

    return load(MODEL, CHATS, [])


@pytest.fixture(scope="module")
def report(loaded_and_rows: tuple[LoadedModel, Any]) -> dict[str, Any]:
    from benchmarks.gpu_pass import compare

    return compare(*loaded_and_rows, 32)


def test_a_replayed_pass_has_the_loss_and_gradients_of_the_same_pass(report: dict[str, Any]) -> None:
    assert report["graph"]["captured"] == 1
    assert report["graph_against_itself_eager"]["loss_difference"] == 0
    assert report["graph_against_itself_eager"]["gradient_cosine"] >= 0.99999


def test_leaving_out_untrained_tokens_changes_neither_loss_nor_gradients(report: dict[str, Any]) -> None:
    assert report["head_places"] < report["filled_up_to"]
    for way in ("trained head", "dequantised once", "graph"):
        assert abs(report[way]["loss_difference"]) <= 1e-4
        assert report[way]["gradient_cosine"] >= 0.99999


def test_weights_that_are_dequantised_once_have_the_same_values(report: dict[str, Any]) -> None:
    assert report["dequantised once"]["loss"] == report["trained head"]["loss"]


def test_each_replay_draws_its_own_dropout() -> None:
    from benchmarks.gpu_pass import load, pass_graphs
    from tuitune.train.batching import IGNORED, collator
    from tuitune.train.sizes import pass_sizes

    loaded, rows = load(MODEL, CHATS, ["lora_dropout=0.5"])
    lengths = [len(ids) for ids in rows["input_ids"]]
    loaded.pass_sizes = pass_sizes(lengths, 8)
    batch = collator(loaded)([rows[i] for i in range(8)])
    graphs = pass_graphs(loaded, 8, max(lengths))
    items = int((batch["labels"] != IGNORED).sum())
    losses = [graphs.run(batch, [items])[0].item() for _ in range(6)]
    assert graphs.captured == 1
    assert len(set(losses)) == 6

    torch.manual_seed(5)
    first = [graphs.run(batch, [items])[0].item() for _ in range(2)]
    torch.manual_seed(5)
    assert [graphs.run(batch, [items])[0].item() for _ in range(2)] == first


def test_passes_of_other_rows_and_fewer_rows_are_replayed_right(loaded_and_rows: tuple[LoadedModel, Any]) -> None:
    """Row lengths change between replays of one graph, and the last pass of an epoch has fewer rows."""
    from benchmarks.gpu_pass import pass_graphs
    from tuitune.train.batching import IGNORED, PaddingFree
    from tuitune.train.isolation import loss_of

    loaded, rows = loaded_and_rows
    loaded.backend.for_training(loaded)
    loaded.pass_sizes = (2048,)
    collate = PaddingFree(loaded.tokenizer.pad_token_id, loaded.pass_sizes, trained_places=True)
    graphs = pass_graphs(loaded, 8, 2048)
    captured = 0
    for begin, count in ((0, 8), (0, 8), (8, 8), (16, 8), (100, 5), (200, 1), (300, 8)):
        batch = collate([rows[begin + i] for i in range(count)])
        items = int((batch["labels"] != IGNORED).sum())
        captured = graphs.captured
        replayed = graphs.run(batch, [items])[0].item()
        assert replayed == pytest.approx(loss_of(loaded, batch, items).item(), abs=1e-5)
    assert captured >= 1
    assert graphs.drop() and not graphs.drop()
    assert math.isfinite(graphs.run(batch, [items])[0].item())


@pytest.mark.parametrize(("heads", "size"), [((32, 8), 64), ((32, 8), 128), ((14, 2), 64), ((24, 8), 96)])
def test_rotary_positions_are_those_of_unsloths_kernel_bit_for_bit(heads: tuple[int, int], size: int) -> None:
    from unsloth.kernels import rope_embedding

    from tuitune.backends import rotary

    rotary.turn_in_one_pass()
    unsloths = rope_embedding._fast_rope_embedding_eager.of_unsloth
    torch.manual_seed(0)
    query, key = (
        torch.randn(1, 500, n, size, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for n in heads
    )
    angles = torch.randn(2048, size // 2, device="cuda").repeat(1, 2)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    positions = torch.randint(0, 2048, (1, 500), device="cuda", dtype=torch.int32)
    ours, theirs = (
        way(query.clone(), key.clone(), cos, sin, positions) for way in (rotary._function().apply, unsloths)
    )
    directions = [torch.randn_like(tensor) for tensor in ours]
    gradients = [torch.autograd.grad(way, (query, key), directions) for way in (ours, theirs)]
    for one, other in zip((*ours, *gradients[0]), (*theirs, *gradients[1]), strict=True):
        assert torch.equal(one, other)


def test_a_chat_before_any_training_leaves_the_check_to_the_training() -> None:
    from unsloth.kernels import rope_embedding

    from tuitune.backends import rotary

    rotary.turn_in_one_pass()
    before = dict(rotary._equal)
    query, key = (torch.randn(1, n, 9, 80, device="cuda", dtype=torch.bfloat16) for n in (6, 3))
    table, positions = torch.randn(32, 80, device="cuda", dtype=torch.bfloat16), torch.arange(9, device="cuda")[None]
    with torch.inference_mode():
        rope_embedding.fast_rope_embedding(query, key, table, table, positions)
    assert rotary._equal == before


def test_a_model_turns_its_positions_in_one_pass(loaded_and_rows: tuple[LoadedModel, Any]) -> None:
    from tuitune.backends import rotary

    assert rotary._equal and all(rotary._equal.values())


@pytest.mark.parametrize("window", [None, 64])
def test_attention_without_copies_is_that_of_unsloth(window: int | None) -> None:
    from unsloth.utils import attention_dispatch as dispatch

    from tuitune.backends.attention import varlen_kernel

    varlen_kernel()
    torch.manual_seed(0)
    lengths = torch.tensor([100, 3, 197], dtype=torch.int32, device="cuda")
    ends = torch.tensor([0, 100, 103, 300], dtype=torch.int32, device="cuda")
    inputs = [
        torch.randn(1, 300, n, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for n in (8, 2, 2)
    ]
    options = {"n_groups": 4, "is_causal": True, "sliding_window": window, "scale": None}
    ours, theirs = (
        attend(*inputs, (lengths, ends, 197), **options)
        for attend in (dispatch._torch_varlen_packed, dispatch._torch_varlen_packed.of_unsloth)
    )
    assert torch.equal(ours, theirs)
    direction = torch.randn_like(ours)
    gradients = [torch.autograd.grad(out, inputs, direction) for out in (ours, theirs)]
    for one, other, tensor in zip(*gradients, inputs, strict=True):
        assert torch.nn.functional.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0) > 0.99999
        assert one.stride()[1:] == tensor.stride()[1:]


def test_a_pass_that_cannot_be_captured_is_run_as_it_is(
    loaded_and_rows: tuple[LoadedModel, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading back from the GPU ends a capture; training and what is drawn at random go on."""
    from benchmarks.gpu_pass import pass_graphs
    from tuitune.train.batching import IGNORED, PaddingFree
    from tuitune.train.graphs import PassGraphs

    loaded, rows = loaded_and_rows
    loaded.backend.for_training(loaded)
    loaded.pass_sizes = (2048,)
    batch = PaddingFree(loaded.tokenizer.pad_token_id, loaded.pass_sizes, trained_places=True)(
        [rows[i] for i in range(8)]
    )
    items = int((batch["labels"] != IGNORED).sum())
    graphs = pass_graphs(loaded, 8, 2048)
    expected = graphs.run(batch, [items])[0].item()
    plain = PassGraphs._pass

    def reading_back(self: Any, inputs: Any, longest: int) -> Any:
        told = plain(self, inputs, longest)
        self._loss.item()
        return told

    monkeypatch.setattr(PassGraphs, "_pass", reading_back)
    losses = [graphs.run(batch, [items])[0].item() for _ in range(4)]
    assert graphs.captured == 0
    assert losses == [expected] * 4
    assert torch.rand(3, device="cuda").unique().numel() == 3
    assert torch.nn.functional.dropout(torch.ones(1000, device="cuda"), 0.5).mean() > 0.5


def recipe_of(**train: Any) -> Recipe:
    return Recipe.from_data(
        {
            "model": {"name": str(MODEL), "backend": "unsloth"},
            "data": {"path": str(CHATS), "eval_share": 0.02},
            "train": {"max_steps": 40, "learning_rate": 2.0e-3, "fit": False, "gradient_checkpointing": False, **train},
            "samples": {"prompts": ["hello"], "max_new_tokens": 4},
        }
    )


def test_a_whole_run_with_graphs_is_the_run_without_them(tmp_path: Path) -> None:
    """Evaluations, replies and checkpoints come between its steps, and it is stopped and resumed."""
    from tuitune.runs.folder import Run
    from tuitune.train.resume import resumption_of
    from tuitune.train.run import train

    (_, plain), (_, captured) = (
        trained(recipe_of(cuda_graphs=on, dequantize_once=on, eval_steps=7, save_steps=10), tmp_path, str(on))
        for on in (False, True)
    )
    assert [step.loss for step in captured.steps] == pytest.approx([step.loss for step in plain.steps], rel=2e-2)
    assert [step.tokens for step in captured.steps] == [step.tokens for step in plain.steps]
    assert captured.evaluations[-1].loss == pytest.approx(plain.evaluations[-1].loss, rel=1e-2)

    def stop_after_twenty(event: Event, control: Control) -> None:
        if isinstance(event, Step) and event.step == 20:
            control.stop.set()

    run, stopped = trained(recipe_of(cuda_graphs=True), tmp_path, "stopped", stop_after_twenty)
    assert len(stopped.steps) == 20
    told: list[Any] = []
    train(run.recipe(), Run(run.folder), Control(), told.append, resumed=resumption_of(run, told.append))
    resumed = [event.loss for event in told if event.kind == "step"]
    assert resumed == pytest.approx([step.loss for step in captured.steps[20:]], rel=2e-2)


def test_fit_times_graphs_and_takes_them_for_a_long_run(loaded_and_rows: tuple[LoadedModel, Any]) -> None:
    from tuitune.train.autotune import fit

    loaded, rows = loaded_and_rows
    before = loaded.recipe
    try:
        loaded.recipe = recipe_of(max_steps=20_000, fit=True)
        fitted = fit(loaded, rows)
        assert fitted is not None
        assert fitted.recipe.train.cuda_graphs is True
        assert "CUDA graphs" in fitted.describe(loaded.attention)
        print(fitted.describe(loaded.attention))
        loaded.recipe = recipe_of(max_steps=5, fit=True)
        short = fit(loaded, rows)
        assert short is not None and short.recipe.train.cuda_graphs is False
    finally:
        loaded.recipe = before
