"""On a GPU: rows laid end to end train exactly as rows alone do, and a whole run works through Unsloth."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.card import require_card
from tuitune.conversation import Conversation
from tuitune.machine.environment import warm_up
from tuitune.recipe import Recipe

pytestmark = pytest.mark.gpu
torch = require_card(unsloth=True)
warm_up()

Report = dict[str, Any]
SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"


@pytest.fixture(scope="module")
def report() -> Report:
    from benchmarks.gpu_equivalence import compare, load

    loaded, rows = load(SAMPLE_DATA / "demo_model", SAMPLE_DATA / "pirate.jsonl")
    return compare(loaded, rows)


def test_attention_is_truly_variable_length(report: Report) -> None:
    assert "varlen" in report["attention"] or report["attention"] == "xformers"


def test_each_token_has_the_loss_it_has_alone(report: Report) -> None:
    assert report["token_loss_mean_difference"] <= 1e-3


def test_changing_one_row_leaves_the_others_bit_identical(report: Report) -> None:
    assert report["other_rows_bit_identical"]
    assert report["changed_row_differs"]


def test_gradients_point_the_same_way(report: Report) -> None:
    assert report["gradient_cosine_padding_free_padded"] >= 0.9999
    assert report["gradient_cosine_padding_free_alone"] >= 0.9999
    assert report["gradient_norm_ratio"] == pytest.approx(1, abs=2e-3)


def test_the_same_labels_are_trained(report: Report) -> None:
    assert report["trained_labels_padding_free"] == report["trained_labels_padded"]


def test_the_loss_falls_along_the_same_curve(report: Report) -> None:
    assert report["curve_padding_free"][-1] < report["curve_padding_free"][0]
    assert report["curve_largest_difference"] <= 0.02


@pytest.mark.parametrize("window", [(-1, 0), (63, 0)])
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)])
def test_the_varlen_kernel_computes_attention(heads: tuple[int, int], window: tuple[int, int]) -> None:
    """Against plain attention in fp32, row by row, forward and backward, with and without a sliding window."""
    from tuitune.backends.attention import flash_varlen

    torch.manual_seed(0)
    lengths = [1, 7, 130, 64, 300]
    cu = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    q, k, v = (
        torch.randn(sum(lengths), n, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for n in (heads[0], heads[1], heads[1])
    )
    out = flash_varlen(q, k, v, cu, cu, max(lengths), max(lengths), window_size=window, enable_gqa=True)
    direction = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), direction)
    exact = [t.detach().float().requires_grad_() for t in (q, k, v)]
    rows = []
    for row in zip(*(t.split(lengths) for t in exact), strict=True):
        place = torch.arange(len(row[0]), device="cuda")
        seen = place[None] <= place[:, None]
        if window[0] >= 0:
            seen &= place[None] >= place[:, None] - window[0]
        heads_first = [t.transpose(0, 1)[None] for t in row]
        attended = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=seen, enable_gqa=True)
        rows.append(attended[0].transpose(0, 1))
    expected = torch.cat(rows)
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)
    for gradient, wanted in zip(grads, torch.autograd.grad(expected, exact, direction.float()), strict=True):
        torch.testing.assert_close(gradient.float(), wanted, atol=6e-2, rtol=6e-2)


def test_a_whole_run_trains_and_chats_through_unsloth(tmp_path: Path) -> None:
    """The demo recipe's data for 60 steps: fitted, loss falls, adapter saved and answering in its style."""
    from tuitune import backends
    from tuitune.chat.reply import reply
    from tuitune.chat.sampling import Sampling
    from tuitune.commands.parser import run_command
    from tuitune.runs.folder import find_run

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{name: {SAMPLE_DATA / 'demo_model'}, backend: unsloth}}\n"
        f"data: {{path: {SAMPLE_DATA / 'pirate.jsonl'}}}\n"
        "train: {max_steps: 60, learning_rate: 2.0e-3}\n"
        "samples: {prompts: ['What is the capital of France?'], max_new_tokens: 24}\n"
    )
    assert run_command(["run", str(recipe), "--runs", str(tmp_path / "runs"), "--name", "gpu", "--json"]) == 0
    events = [json.loads(line) for line in (tmp_path / "runs" / "gpu" / "events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    plan = next(event for event in events if event["event"] == "plan")
    assert plan["backend"] == "unsloth"
    assert steps[-1]["loss"] < steps[0]["loss"] / 2
    assert any("attention: torch flash varlen" in e["text"] for e in events if e["event"] == "notice")
    replies = {event["step"]: event["reply"] for event in events if event["event"] == "reply"}
    assert replies[0] != replies[max(replies)]
    run = find_run("gpu", tmp_path / "runs")
    assert run.recipe().train.fit and not run.resolved().train.fit
    reloaded = backends.load(run.resolved(), tell=pytest.fail)
    reloaded.backend.attach_saved(reloaded, str(run.adapter))
    question: Conversation = [{"role": "user", "content": "What is the capital of France?"}]
    assert reply(reloaded, question, Sampling(max_new_tokens=24)).text == replies[max(replies)]
    assert reply(reloaded, question, Sampling(max_new_tokens=24), adapter=False).text == replies[0]


def recipe_of(**changes: Any) -> Recipe:
    """The demo's data and model in short steps; `changes` are of the sections."""
    sections: dict[str, dict[str, Any]] = {
        "model": {"name": str(SAMPLE_DATA / "demo_model"), "backend": "unsloth"},
        "data": {"path": str(SAMPLE_DATA / "pirate.jsonl"), "eval_share": 0},
        "train": {"max_steps": 8, "learning_rate": 2.0e-3, "fit": False},
        "samples": {"prompts": ["hello"], "max_new_tokens": 2},
    }
    return Recipe.from_data({name: {**sections.get(name, {}), **changes.get(name, {})} for name in sections | changes})


def events_of(recipe: Recipe, folder: Path) -> list[Any]:
    """Train in this process; everything that was told."""
    from tuitune.runs.folder import create_run
    from tuitune.train.control import Control
    from tuitune.train.run import train

    told: list[Any] = []
    writer = create_run(recipe, folder, "run")
    try:
        train(recipe, writer.run, Control(), told.append)
    finally:
        writer.close()
    return told


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"load_in_4bit": False, "load_in_8bit": True}},
        {"lora": {"init_lora_weights": "loftq"}},
        {"lora": {"use_dora": True, "use_rslora": True, "bias": "all", "lora_dropout": 0.1}},
        {"lora": {"modules_to_save": ["embed_tokens", "lm_head"]}},
        {"train": {"gradient_checkpointing": True}},
    ],
    ids=lambda changes: "-".join(name for section in changes.values() for name in section),
)
def test_each_way_to_load_and_attach_trains(changes: dict[str, Any], tmp_path: Path) -> None:
    told = events_of(recipe_of(**changes), tmp_path)
    losses = [event.loss for event in told if event.kind == "step"]
    assert len(losses) == 8
    assert losses[-1] < 0.8 * losses[0]


def test_only_the_trainer_in_use_was_rewritten() -> None:
    import trl

    assert trl.SFTTrainer.__name__ == "UnslothSFTTrainer"
    assert trl.DPOTrainer.__name__ == "DPOTrainer"


def test_memory_that_runs_out_halves_the_pass_and_the_run_goes_on(tmp_path: Path) -> None:
    def peak(batch: int, accumulation: int) -> tuple[int, list[Any]]:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 4}
        told = events_of(
            recipe_of(train={**split, "save_steps": 2}), tmp_path / f"{batch}-{torch.cuda.memory_reserved()}"
        )
        return torch.cuda.max_memory_reserved(), told

    whole, told = peak(256, 1)
    half, _ = peak(128, 2)
    assert half < 0.9 * whole
    torch.cuda.set_per_process_memory_fraction((whole + half) / 2 / torch.cuda.mem_get_info()[1])
    try:
        _, cut = peak(256, 1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("Memory ran out at step 1" in event.text for event in cut if event.kind == "notice")
    losses, expected = ([event.loss for event in events if event.kind == "step"] for events in (cut, told))
    assert losses == pytest.approx(expected, rel=0.02)


_LOGITS = """
import sys, torch
from transformers import AutoModelForCausalLM
from tuitune.model.config import training_config
from tuitune.recipe import Recipe
recipe = Recipe.load(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(recipe.model.name, config=training_config(recipe), dtype=torch.float32)
torch.save(model(torch.load(sys.argv[2])).logits[0, -64:], sys.argv[3])
"""


def test_positions_beyond_the_models_context_are_those_of_an_export(tmp_path: Path) -> None:
    """Unsloth's model at twice the context against plain transformers with the config that exports carry."""
    import subprocess
    import sys

    from tuitune.backends.unsloth import UnslothBackend

    recipe = recipe_of(model={"load_in_4bit": False}, data={"max_length": 4096})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 3000, (1, 3000), generator=generator)
    torch.save(ids, tmp_path / "ids.pt")
    arguments = [str(tmp_path / name) for name in ("recipe.yaml", "ids.pt", "logits.pt")]
    subprocess.run([sys.executable, "-c", _LOGITS, *arguments], check=True, timeout=120)
    expected = torch.load(tmp_path / "logits.pt").log_softmax(-1)
    loaded = UnslothBackend().load(recipe)
    with torch.inference_mode():
        measured = loaded.model(ids.cuda()).logits[0, -64:].float().cpu().log_softmax(-1)
    assert (measured - expected).abs().mean() < 0.05
    assert (measured.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9
