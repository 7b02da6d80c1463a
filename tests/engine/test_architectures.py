"""Every architecture the whole way on a CPU: trained with padding, chatted with, saved, merged and opened again."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.architectures import ARCHITECTURES, architecture
from tests.conftest import DEMO
from tests.engine.exporting import export
from tuitune import backends
from tuitune.backends.loaded import LoadedModel
from tuitune.chat.reply import reply
from tuitune.chat.sampling import Sampling
from tuitune.data.prepare import prepare
from tuitune.errors import TuituneError, UnusableInput
from tuitune.export import Exported, answers, llama_cpp
from tuitune.model.config import reads_other_than_text
from tuitune.plan.proven import proof
from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Notice, Step
from tuitune.runs.folder import Run, create_run
from tuitune.train.batching import IGNORED, Padded
from tuitune.train.control import Control
from tuitune.train.run import train

MULTIMODAL = {"gemma3", "gemma4", "mistral3", "qwen3_5"}


@dataclass
class Walk:
    """One architecture's run, and the model it left in memory."""

    name: str
    recipe: Recipe
    run: Run
    rows: list[dict[str, Any]]
    """`input_ids` and `labels` of four rows of different lengths."""
    loss_together: float
    losses_alone: list[float]
    base: LoadedModel
    """The model as it was before, loaded by itself."""
    loaded: LoadedModel
    events: list[Event] = field(default_factory=list)

    @property
    def notices(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Notice)]

    def merged(self, out: Path) -> Exported:
        """The merged model, exported into `out`."""
        (exported,) = export(self.run, ["merged_16bit"], out, lambda *_: None, lambda _: False, lambda: False)
        return exported


@pytest.fixture(scope="module", params=ARCHITECTURES)
def walk(request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Walk:
    recipe = Recipe.from_data(
        {
            "model": {"name": str(folders[request.param]), "load_in_4bit": False, "backend": "transformers"},
            "data": {"path": str(DEMO / "pirate.jsonl"), "split": "train[:4]", "max_length": 128},
            "lora": {"r": 8},
            "train": {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
            | {"learning_rate": 5e-3, "warmup_steps": 0},
            "samples": {"prompts": ["Who are you?"], "max_new_tokens": 2},
        }
    )
    events: list[Event] = []
    writer = create_run(recipe, tmp_path_factory.mktemp("runs"), request.param)
    base = backends.load(recipe, lambda text: None)
    rows = list(prepare(recipe, base.tokenizer).train)
    together, alone = _loss(base, rows), [_loss(base, [row]) for row in rows]
    loaded = train(recipe, writer.run, Control(), events.append)
    writer.close()
    assert loaded is not None
    return Walk(request.param, recipe, writer.run, rows, together, alone, base, loaded, events)


def _loss(loaded: LoadedModel, rows: list[dict[str, Any]]) -> float:
    """The sum over the trained tokens of the rows, side by side with padding."""
    import torch

    batch = Padded(loaded.tokenizer.pad_token_id)(rows)
    with torch.inference_mode():
        loss = loaded.model(**batch).loss
    return float(loss) * int((batch["labels"][:, 1:] != IGNORED).sum())


def _logits(model: Any, rows: list[dict[str, Any]]) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([rows[0]["input_ids"]])).logits.float()


def test_padding_changes_no_row(walk: Walk) -> None:
    assert len({len(row["input_ids"]) for row in walk.rows}) > 1
    assert walk.loss_together == pytest.approx(sum(walk.losses_alone), rel=1e-4)


def test_what_is_trained_ends_with_the_end_of_the_turn(walk: Walk) -> None:
    end = walk.loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for row in walk.rows:
        trained = [label for label in row["labels"] if label != IGNORED]
        assert trained and end in trained[-2:]
        assert row["labels"][0] == IGNORED


def test_the_loss_falls(walk: Walk) -> None:
    losses = [event.loss for event in walk.events if isinstance(event, Step)]
    assert len(losses) == 3
    assert losses[0] > losses[2]
    assert losses[0] == pytest.approx(sum(walk.losses_alone) / _trained(walk), rel=1e-3)


def _trained(walk: Walk) -> int:
    return sum(label != IGNORED for row in walk.rows for label in row["labels"])


def test_what_reads_images_is_frozen_and_that_is_said(walk: Walk) -> None:
    trained = [name for name, weight in walk.loaded.model.named_parameters() if weight.requires_grad]
    assert not any(reads_other_than_text(name) for name in trained)
    assert any("images" in text for text in walk.notices) == (walk.name in MULTIMODAL)


def test_attention_that_no_kernel_does_is_said(walk: Walk) -> None:
    proven = proof(architecture(walk.name), "transformers")
    assert proven is not None and (proven.rows, proven.attention) == ("padded", walk.loaded.attention)
    assert any("attention kernel" in text for text in walk.notices) == (walk.name == "gpt_oss")


def test_it_replies_and_its_adapter_does_so_again(walk: Walk) -> None:
    """The adapter is loaded onto a fresh base, as chat with an old run does."""
    import torch

    answer = reply(walk.loaded, [{"role": "user", "content": "Who are you?"}], Sampling(max_new_tokens=2))
    assert answer.tokens
    expected, before = _logits(walk.loaded.model, walk.rows), _logits(walk.base.model, walk.rows)
    walk.base.backend.attach_saved(walk.base, str(walk.run.adapter))
    walk.base.backend.for_inference(walk.base)
    adapted = _logits(walk.base.model, walk.rows)
    assert torch.equal(adapted, expected)
    assert (adapted - before).abs().max() > 0.1


@pytest.fixture
def short_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an export is compared with its adapter by: weights drawn at random end no reply, however long it is, and
    answer every prompt alike."""
    monkeypatch.setattr(answers, "REPLY_TOKENS", 8)
    monkeypatch.setattr(answers, "PROMPTS", 1)


def test_the_merged_model_is_base_and_adapter(walk: Walk, tmp_path: Path, short_replies: None) -> None:
    """Every adapted weight up to its rounding to bf16, every other one byte for byte, a vision tower's too."""
    import torch

    exported = walk.merged(tmp_path)
    stored, kept = (load_file(folder / "model.safetensors") for folder in (Path(walk.recipe.model.name), exported.path))
    assert stored.keys() == kept.keys()
    assert any(map(reads_other_than_text, kept)) == (walk.name in MULTIMODAL)
    expected = {}
    for module in walk.loaded.model.modules():
        if getattr(module, "lora_A", None):
            weight = module.get_base_layer().weight
            expected[_checksum(weight)] = weight + module.get_delta_weight("default")
    changed = [name for name in stored if not torch.equal(stored[name], kept[name])]
    assert len(changed) == len(expected)
    for name in changed:
        torch.testing.assert_close(kept[name].float(), expected[_checksum(stored[name])], rtol=2**-7, atol=2**-9)


def _checksum(weight: Any) -> float:
    """Tells weights apart whatever their names on disk."""
    return float(weight.detach().double().sum())


@pytest.fixture
def published(folders: dict[str, Path], tmp_path: Path) -> Recipe:
    """A Qwen 3.5 as it is published: with a vision tower, and a layer that predicts the token after the next one."""
    import torch

    model = tmp_path / "model"
    shutil.copytree(folders["qwen3_5"], model)
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["mtp_num_hidden_layers"] = 1
    (model / "config.json").write_text(json.dumps(config))
    weights = load_file(model / "model.safetensors")
    save_file({**weights, "mtp.fc.weight": torch.ones(4, 4)}, model / "model.safetensors", {"format": "pt"})
    (model / "tokenizer.model").write_bytes(b"of the base")
    return Recipe.from_data(
        {
            "model": {"name": str(model), "load_in_4bit": False, "backend": "transformers"},
            "data": {"path": str(DEMO / "pirate.jsonl"), "split": "train[:4]", "max_length": 64},
            "train": {"max_steps": 1, "learning_rate": 5e-3, "warmup_steps": 0},
            "samples": {"prompts": ["Hi"], "max_new_tokens": 1},
        }
    )


def test_a_gguf_of_a_multimodal_model_holds_its_text(published: Recipe, tmp_path: Path, short_replies: None) -> None:
    if llama_cpp.find() is None:
        try:
            llama_cpp.obtain(lambda question: True, lambda done, total: None, lambda: False)
        except TuituneError as error:
            pytest.skip(str(error))
    writer = create_run(published, tmp_path, "published")
    train(published, writer.run, Control(), lambda event: None)
    writer.close()
    kinds = ["merged_16bit", "gguf:f16"]
    merged, gguf = export(writer.run, kinds, None, lambda *_: None, lambda _: False, lambda: False)
    assert (merged.path / "tokenizer.model").read_bytes() == b"of the base"
    assert any("mtp.fc.weight" in text for text in merged.notices)
    assert any("text model alone" in text for text in gguf.notices)
    from gguf import GGUFReader

    reader = GGUFReader(gguf.path)
    assert reader.get_field("qwen35.block_count").contents() == 4
    assert not any("vis" in tensor.name or "nextn" in tensor.name for tensor in reader.tensors)


def test_an_adapter_for_other_layers_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """peft would load what matches, here nothing, and answer as the base does."""
    recipe = Recipe.from_data(
        {
            "model": {"name": str(folders["llama"]), "load_in_4bit": False, "backend": "transformers"},
            "data": {"path": "unused.jsonl"},
        }
    )
    loaded = backends.load(recipe, lambda text: None)
    loaded.backend.attach(loaded)
    loaded.model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    moved = {name.replace(".layers.", ".text.layers."): weight for name, weight in weights.items()}
    save_file(moved, tmp_path / "adapter_model.safetensors")
    fresh = backends.load(recipe, lambda text: None)
    with pytest.raises(UnusableInput, match="is for other layers than the model's"):
        fresh.backend.attach_saved(fresh, str(tmp_path))
