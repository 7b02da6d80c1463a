"""The trainer of group relative policy optimization (Shao et al. 2024): answers are generated between its steps.

Importing this module imports transformers.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback

from tuitune.backends.loaded import LoadedModel
from tuitune.chat.decoder import decoder_of
from tuitune.chat.decoding import CanDecode
from tuitune.masking import IGNORED
from tuitune.method_sections import GRPO as Section
from tuitune.methods.prompts import section_of
from tuitune.recipe import Recipe
from tuitune.rewards.judge import Judge
from tuitune.runs.events import Completions, Notice
from tuitune.train.batching import collator, pad_of
from tuitune.train.control import Control, Emit, Stopped
from tuitune.train.dealing import passes_a_step
from tuitune.train.logprobs import label_logprobs
from tuitune.train.policy_loss import Tokens, policy_loss, token_weights
from tuitune.train.ranks import ALONE, Ranks
from tuitune.train.rollouts import Completion, Generation, Roller

_EVALUATED = 64
"""Held-out prompts that are answered to measure the model."""
_SHOWN_CHARACTERS = 2000
_NOTHING = -1
"""In place of a pass, where this process has none."""


class GroupSampler(Sampler):  # type: ignore[misc]  # torch is untyped
    """Places of prompts: each is repeated for every answer, and a generation for every time that it is trained on.

    Another order each epoch, drawn from the seed; prompts that fill no whole generation wait for the next epoch.
    """

    def __init__(self, rows: int, prompts: int, answers: int, iterations: int, seed: int) -> None:
        self._rows, self._prompts, self._answers, self._iterations = rows, prompts, answers, iterations
        self._seed, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._rows // self._prompts * self._prompts * self._answers * self._iterations

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._rows, generator=generator).tolist()
        for start in range(0, self._rows // self._prompts * self._prompts, self._prompts):
            for _ in range(self._iterations):
                for place in order[start : start + self._prompts]:
                    yield from [place] * self._answers


class WholeGenerations(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Saves and stops wait until a generation has been trained on as often as it should: only there is a run resumed
    as if nothing had been. Comes after the callbacks that ask for them."""

    def __init__(self, iterations: int) -> None:
        self._iterations = iterations
        self._waiting = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._wait(state, control)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._wait(state, control)

    def _wait(self, state: Any, control: Any) -> None:
        if state.global_step % self._iterations and state.global_step < state.max_steps:
            self._waiting = self._waiting or control.should_save
            control.should_save = control.should_training_stop = False
        elif self._waiting:
            self._waiting, control.should_save = False, True


class GRPOTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """Answers prompts with the weights of the moment, judges the answers, and learns from how they differ.

    A step is one pass over `batch × accumulation` answers; `num_iterations` steps learn from each generation. Each of
    several `ranks` generates its share of the answers, knows all of them, and learns from its share of the passes.
    """

    def __init__(
        self, loaded: LoadedModel, recipe: Recipe, control: Control, emit: Emit, ranks: Ranks, **options: Any
    ) -> None:
        section = section_of(recipe)
        self._loaded, self._recipe, self._section = loaded, recipe, section
        self._asked, self._emit, self._ranks = control, emit, ranks
        self._answers = recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps
        self._roller: Roller | None = None
        self._passes: list[_Pass] = []
        self._figures: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._began = time.monotonic()
        super().__init__(model=loaded.model, processing_class=loaded.tokenizer, **options)
        self.model_accepts_loss_kwargs = True  # the passes of a step are added, not averaged
        self.add_callback(WholeGenerations(section.num_iterations))

    # --- generations ---------------------------------------------------------------------------------------------

    @property
    def roller(self) -> Roller:
        if self._roller is None:
            self._roller = roller_of(self._loaded, self._section, self.train_dataset, self._emit, self._ranks)
        return self._roller

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The passes of a step: answers generated now, or those of the last generation once more."""
        self._began = time.monotonic()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        if not batches:
            return [], None
        step, group = self.state.global_step, self._section.num_generations
        if step % self._section.num_iterations == 0 or not self._passes:
            rows = [row for batch in batches for row in batch][::group]
            generation = self._generate(rows, group, hash_of(self._recipe.train.seed, step))
            self._figures = generation.figures()
            self._figures["generating_seconds"] = generation.seconds
            self._passes = self._passes_of(generation)
            self._tell(generation, step + 1)
        own = [{"place": place, **self._passes[place].inputs} for place in self._own_places()]
        nothing = {"place": _NOTHING, "input_ids": torch.tensor([[pad_of(self._loaded)]])}
        return own + [nothing] * (num_batches - len(own)), len(own)

    def _own_places(self) -> range:
        """Which passes of the step are this process's."""
        return range(self._ranks.rank, len(self._passes), self._ranks.world)

    def _generate(self, rows: list[Any], group: int, seed: int) -> Generation:
        try:
            return self.roller.generate(rows, group, seed=seed, cancelled=self._asked.is_asked_to_stop)
        except Stopped:
            self._asked.agree()
            raise

    def _passes_of(self, generation: Generation) -> "list[_Pass]":
        lengths = [len(completion.ids) for completion in generation.completions]
        weights = token_weights(self._section, lengths, [completion.ended for completion in generation.completions])
        train, world = self._recipe.train, self._ranks.world
        size = math.ceil(len(lengths) / (passes_a_step(train, world) * world))
        collate = collator(self._loaded)
        passes = []
        for start in range(0, len(lengths), size):
            part = slice(start, start + size)
            rows = [
                {
                    "input_ids": completion.prompt_ids + completion.ids,
                    "labels": [IGNORED] * len(completion.prompt_ids) + completion.ids,
                }
                for completion in generation.completions[part]
            ]
            passes.append(
                _Pass(
                    collate(rows),
                    lengths[part],
                    torch.tensor(generation.advantages[part], dtype=torch.float32),
                    torch.tensor(weights[part], dtype=torch.float32),
                    torch.tensor([value for c in generation.completions[part] for value in c.logprobs]),
                )
            )
        return passes

    def _tell(self, generation: Generation, step: int) -> None:
        """Send the best and the worst answer of a step to the viewers."""
        ranked = sorted(generation.completions, key=lambda completion: completion.reward)
        ends: tuple[tuple[Literal["best", "worst"], Completion], ...] = (("best", ranked[-1]), ("worst", ranked[0]))
        for rank, completion in ends:
            self._emit(
                Completions(
                    step=step,
                    rank=rank,
                    prompt=completion.prompt[:_SHOWN_CHARACTERS],
                    reply=completion.text[:_SHOWN_CHARACTERS],
                    reward=completion.reward,
                    values=completion.values,
                )
            )

    # --- learning ------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward over one pass; the loss is its part of the step's."""
        model.train()
        if inputs["place"] == _NOTHING:
            return torch.zeros((), device=self._loaded.model.device)
        batch = self._passes[inputs["place"]]
        device = self._loaded.model.device
        logprobs, entropies = label_logprobs(
            self._loaded, batch.inputs, temperature=self._section.temperature or 1.0, entropy=True
        )
        if batch.old is None:
            batch.old = logprobs.detach()
            batch.reference = self._reference(batch) if self._section.beta else None
            self._add("difference", float((batch.old.cpu() - batch.decoded).abs().sum()))
        loss, sums = policy_loss(
            self._section,
            Tokens(
                batch.lengths,
                logprobs,
                batch.old,
                batch.reference,
                batch.advantages.to(device),
                batch.weights.to(device),
            ),
        )
        for name, value in sums.items():
            self._add(name, value)
        self._add("tokens", float(sum(batch.lengths)))
        if entropies is not None:
            self._add("entropy", float(entropies.sum()))
        self.accelerator.backward(loss)
        return loss.detach()

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is untyped
    def _reference(self, batch: "_Pass") -> Tensor:
        """Log-probabilities by the adapter that the run began with."""
        with weights_of(self._loaded, self._loaded.begun):
            return label_logprobs(self._loaded, batch.inputs, temperature=self._section.temperature or 1.0)[0]

    def _add(self, name: str, value: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """TRL's names for what is logged beside the loss."""
        sums, self._sums = self._sums, {}
        if "loss" in logs:
            sums = self._ranks.totals_by_name(sums)
        tokens = sums.pop("tokens", 0.0)
        if "loss" in logs and tokens:
            names = {"entropy": "entropy", "kl": "kl", "clipped": "clip_ratio", "difference": "sampling_difference"}
            logs |= {names[name]: value / tokens for name, value in sums.items()}
            seconds = time.monotonic() - self._began
            generating = self._figures.pop("generating_seconds", 0.0)
            logs |= self._figures | {"step_seconds": seconds, "generating": generating / seconds}
        super().log(logs, *arguments, **options)

    # --- the trainer's own ---------------------------------------------------------------------------------------

    def train(self, *arguments: Any, **options: Any) -> Any:
        """As every trainer; a stop inside a generation ends it at the last step, with a checkpoint of it."""
        try:
            return super().train(*arguments, **options)
        except Stopped:
            if self._asked.now.is_set() or not self.state.global_step:
                raise
            self._save_checkpoint(self.model, trial=None)
            self.control: Any = self.callback_handler.on_save(self.args, self.state, self.control)
        finally:
            if self._roller is not None:
                self._roller.judge.close()

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Mean reward of one answer to each held-out prompt; minus it as the loss, since that is what falls."""
        rows = [self.eval_dataset[place] for place in range(min(_EVALUATED, len(self.eval_dataset)))]
        try:
            generation = self._generate(rows, 1, 0)
        finally:
            if not self.is_in_train:  # nothing may need the rewards again
                self.roller.judge.close()
        figures = generation.figures()
        return {"eval_loss": -figures["reward"], **{f"eval_{name}": value for name, value in figures.items()}}

    def _get_train_sampler(self, train_dataset: Any = None) -> GroupSampler:
        group = self._section.num_generations
        return GroupSampler(
            len(self.train_dataset),
            self._answers // group,
            group,
            self._section.num_iterations,
            self._recipe.train.seed,
        )


class _Pass:
    """The answers of a pass, with the log-probabilities of the weights that generated them."""

    def __init__(
        self, inputs: dict[str, Tensor], lengths: list[int], advantages: Tensor, weights: Tensor, decoded: Tensor
    ) -> None:
        self.inputs, self.lengths, self.advantages, self.weights = inputs, lengths, advantages, weights
        self.decoded = decoded
        self.old: Tensor | None = None
        self.reference: Tensor | None = None


def roller_of(loaded: LoadedModel, section: Section, rows: Any, emit: Emit, ranks: Ranks = ALONE) -> Roller:
    """What generates and judges for a model; tells where it is slow."""
    decoder: CanDecode = decoder_of(loaded, list(rows[0]["prompt_ids"]), lambda text: emit(Notice(text=text)))
    return Roller(loaded, section, decoder, Judge(section.rewards), ranks)


def hash_of(seed: int, step: int) -> int:
    """The seed of a generation: of the run's and of the step alone, so that a resumed run draws the same."""
    return seed * 1_000_003 + step


@contextlib.contextmanager
def weights_of(loaded: LoadedModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The trained parameters with other values for a while."""
    parameters = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    own_values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.data.copy_(weights[name])
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data.copy_(own_values[name])
