"""The losses of replies are those of TRL, and a reply counts the same padded, end to end and alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters import draw_adapter
from tests.conftest import DEMO
from tuitune import backends, method_sections
from tuitune.backends.loaded import LoadedModel
from tuitune.data.prepare import prepare
from tuitune.recipe import Recipe
from tuitune.train.batching import Padded, PaddingFree
from tuitune.train.methods import learner_of
from tuitune.train.methods.losses import Replies, kto_loss, orpo_loss
from tuitune.train.methods.pairs import PairLoss
from tuitune.train.methods.replies import CollateReplies, reply_logps


@pytest.fixture(scope="module")
def begun() -> tuple[LoadedModel, list[dict[str, Any]]]:
    """The demo model in fp32 with an adapter that is not nothing, and four tokenised pairs."""
    recipe = Recipe.load(DEMO / "demo_dpo.yaml", ["load_in_4bit=false", "lora.r=4", "data.eval_share=0"])
    loaded = backends.load(recipe, print, lambda text, done, total: None)
    loaded.backend.attach(loaded)
    draw_adapter(loaded.model, std=0.05)
    loaded.model.eval()
    rows = prepare(recipe, loaded.tokenizer).train
    return loaded, [rows[place] for place in range(4)]


def test_a_reply_counts_the_same_padded_end_to_end_and_alone(begun: tuple[LoadedModel, list[dict[str, Any]]]) -> None:
    loaded, rows = begun
    learner: Any = learner_of(loaded.recipe)
    sequences = [sequence for row in rows for sequence in learner.sequences(row)]
    pad = loaded.tokenizer.pad_token_id

    def logps(collate: Any, chosen: list[Any]) -> list[float]:
        with torch.no_grad():
            return list(reply_logps(loaded, CollateReplies(collate, takes_lengths=False)(chosen)).tolist())

    alone = [logps(Padded(pad), [sequence])[0] for sequence in sequences]
    assert logps(Padded(pad), sequences) == pytest.approx(alone, abs=1e-3)
    assert logps(PaddingFree(pad), sequences) == pytest.approx(alone, abs=1e-3)


def test_gradients_end_to_end_are_those_of_padded_pairs(begun: tuple[LoadedModel, list[dict[str, Any]]]) -> None:
    from tuitune.train.isolation import _cosine

    loaded, rows = begun
    learner: Any = learner_of(loaded.recipe)
    loss, gradients = learner.loss(loaded.recipe), []
    for padding_free in (False, True):
        loaded.padding_free = padding_free
        batch = learner.collator(loaded)(rows)
        loaded.padding_free = False
        loss.outcome(loaded, batch, loss.totals(loaded, [batch])).loss.backward()
        named = loaded.model.named_parameters()
        gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        loaded.model.zero_grad()
    assert _cosine(*gradients) >= 0.9999


def test_every_loss_of_pairs_is_the_one_of_trl(begun: tuple[LoadedModel, list[dict[str, Any]]], tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    loaded, rows = begun
    learner: Any = learner_of(loaded.recipe)
    batch = learner.collator(loaded)(rows)
    theirs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    theirs["completion_mask"] = (batch["labels"] != -100).long()

    class AsTokenised(DPOTrainer):  # type: ignore[misc]  # trl is untyped
        def _prepare_dataset(self, dataset: Any, *arguments: Any, **options: Any) -> Any:
            return dataset

    trainer = AsTokenised(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        train_dataset=prepare(loaded.recipe, loaded.tokenizer).train,
        args=DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", label_smoothing=0.1, beta=0.1),
    )
    loaded.model.delete_adapter("ref")  # the reference is the adapter switched off
    loaded.model.eval()
    kinds = ("sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down", "sigmoid_norm", "sft")
    for kind in kinds:
        trainer.loss_types, trainer.loss_weights = [kind], [1.0]
        section = method_sections.DPO(name="dpo", loss_type=[kind], label_smoothing=0.1)
        ours = PairLoss(learner, section)
        with torch.no_grad():
            expected = float(trainer._compute_loss(loaded.model, dict(theirs), False))
            assert float(ours.outcome(loaded, batch, ours.totals(loaded, [batch])).loss) == pytest.approx(
                expected, rel=2e-4
            ), kind


def test_a_certain_reply_makes_no_loss_infinite() -> None:
    certain = Replies(torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([3.0]))
    hopeless = Replies(torch.tensor([-2000.0]), torch.tensor([0.0]), torch.tensor([3.0]))
    orpo = method_sections.ORPO(name="orpo")
    for chosen, rejected in ((certain, hopeless), (hopeless, certain)):
        assert orpo_loss(orpo, chosen, rejected).isfinite().all()


def test_kto_weighs_good_and_bad_replies_as_the_recipe_says() -> None:
    replies = Replies(torch.tensor([-5.0, -5.0]), torch.tensor([-5.0, -5.0]), torch.tensor([4.0, 4.0]))
    section = method_sections.KTO(name="kto", desirable_weight=2.0, undesirable_weight=3.0)
    losses = kto_loss(section, replies, torch.tensor([True, False]), torch.zeros(()))
    assert losses.tolist() == pytest.approx([1.0, 1.5])


def test_the_reference_asked_of_several_batches_at_once_is_that_of_each(
    begun: tuple[LoadedModel, list[dict[str, Any]]],
) -> None:
    from tuitune.train.methods.replies import ask_base, base_logps

    loaded, rows = begun
    learner: Any = learner_of(loaded.recipe)
    collate = CollateReplies(PaddingFree(loaded.tokenizer.pad_token_id), takes_lengths=True)
    batches = [
        collate([sequence for row in part for sequence in learner.sequences(row)]) for part in (rows[:1], rows[1:])
    ]
    references = [base_logps(loaded, batch) for batch in batches]
    ask_base(loaded, batches)
    for batch, alone in zip(batches, references, strict=True):
        assert batch["reference"].tolist() == pytest.approx(alone.tolist(), abs=1e-3)
