"""What a recipe will train, in how many steps and how much memory, before any weight is read."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size

from tuitune.language import N_, _
from tuitune.machine.hardware import Gpu, chosen_gpu, disk_free_bytes, visible_gpus
from tuitune.methods import method_of
from tuitune.plan import sharding
from tuitune.plan.advice import offer_of_16bit, warnings
from tuitune.plan.memory import (
    GIB,
    NF4_BYTES,
    VERDICTS,
    Memory,
    Rows,
    Shape,
    Verdict,
    holds_whole,
    longest_batch_tokens,
    memory_of,
    shape_of,
    verdict,
)
from tuitune.plan.proven import proof
from tuitune.plan.scaling import ETHERNET, Scaled, Step, scaled
from tuitune.recipe import Recipe
from tuitune.recipe_sections import HUB
from tuitune.runs.folder import default_runs_folder
from tuitune.runs.machine_warnings import CHECKPOINT_BYTES_A_PARAMETER, CHECKPOINTS_AT_ONCE
from tuitune.units import size

# Data files up to this size are read and tokenised for exact counts; a larger one only when a run starts.
_READ_UP_TO_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Estimate:
    """What `tuitune estimate` tells. `rows` and `tokens` are None for data too large to read beforehand."""

    model: str
    backend: str
    device: str
    total_parameters: int
    """Of the base model."""
    trainable_parameters: int
    rows: int | None
    tokens: int | None
    trained_tokens: int | None
    steps: int | None
    longest_batch_tokens: int
    """Tokens in the largest micro-batch, padding included: it decides the peak."""
    memory: Memory
    available_bytes: int
    verdict: Verdict
    warnings: list[str]
    """Settings that are likely to spoil the run, one sentence each."""
    targets: dict[str, int] = field(default_factory=dict)
    """Name of each target of the adapter to its LoRA parameters."""
    left_out: tuple[str, ...] = ()
    """What gets no adapter although a user may expect one there, one sentence each."""
    bytes_in_16bit: int | None = None
    """The peak with the base in 16-bit, where the recipe quantises it for a GPU on which 16-bit would fit too."""
    disk_bytes: int = 0
    """The most that checkpoints and adapter take at once in the run's folder."""
    disk_free_bytes: int = 0
    """Free where the run's folder would be."""
    scaling: tuple[Scaled, ...] = ()
    """A step on as many cards and hosts as were asked about, if each card were an H200; hosts by each kind of link."""
    cards_here: tuple[Scaled, ...] = ()
    """The same for numbers of this machine's cards from one to all, where there are several that the method can use."""

    shared_by: int = 1
    """How many cards share the frozen weights; `memory` is that of each."""

    @property
    def trainable_share(self) -> float:
        """Of all parameters in memory, the adapter's included, as PEFT counts it."""
        return self.trainable_parameters / max(1, self.total_parameters + self.trainable_parameters)

    def as_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["memory"]["total_bytes"] = self.memory.total_bytes
        return {**data, "trainable_share": self.trainable_share}

    def as_text(self) -> str:
        """A few lines for a terminal."""
        lines = [(_(label), text) for label, text in self._lines()]
        width = 1 + max(cell_len(label) for label, _text in lines)
        return "\n".join(
            (*(set_cell_size(label, width) + text for label, text in lines), *(f"! {text}" for text in self.warnings))
        )

    def _lines(self) -> Iterator[tuple[str, str]]:
        """What is told, each with its label, empty where it goes on with what is above."""
        memory = self.memory
        parts = [
            f"{_(name)} {_gib(size)}"
            for name, size in (
                (N_("weights"), memory.weights_bytes),
                (N_("adapter"), memory.adapter_bytes),
                (N_("optimizer"), memory.optimizer_bytes),
                (N_("activations"), memory.activations_bytes),
                (N_("logits"), memory.logits_bytes),
                (N_("overhead"), memory.overhead_bytes),
            )
        ]
        yield N_("Model:"), _("{model}, {parameters:,} parameters", model=self.model, parameters=self.total_parameters)
        yield (
            N_("Trained:"),
            _(
                "{parameters:,} parameters ({share:.2%})",
                parameters=self.trainable_parameters,
                share=self.trainable_share,
            ),
        )
        yield "", _("on {targets}", targets=[f"{name} {count:,}" for name, count in self.targets.items()])
        for text in self.left_out:
            yield "", text
        yield N_("Data:"), self._data_text()
        yield N_("Steps:"), _("known once the data is read") if self.steps is None else f"{self.steps:,}"
        yield N_("Memory:"), _("{peak} at the peak ({parts})", peak=_gib(memory.total_bytes), parts=parts)
        yield (
            "",
            _(
                "{verdict} in {available} free on {device}, with {backend}",
                verdict=_(VERDICTS[self.verdict]),
                available=_gib(self.available_bytes),
                device=self.device,
                backend=self.backend,
            ),
        )
        if self.shared_by > 1:
            yield "", _("each of {cards} cards that share the frozen weights", cards=self.shared_by)
        if self.bytes_in_16bit:
            yield "", offer_of_16bit(self.bytes_in_16bit)
        yield (
            N_("Disk:"),
            _(
                "{needed} for checkpoints and adapter, {free} free",
                needed=size(self.disk_bytes),
                free=size(self.disk_free_bytes),
            ),
        )
        for way in self.scaling:
            yield N_("Cards:"), _("{scaled} (computed, for H200s)", scaled=way.as_text())

    def _data_text(self) -> str:
        if self.rows is None:
            return _("not read yet (large file)")
        if self.trained_tokens is None:
            return _("{rows:,} rows, {tokens:,} tokens", rows=self.rows, tokens=self.tokens)
        return _(
            "{rows:,} rows, {tokens:,} tokens, {trained:,} of them trained",
            rows=self.rows,
            tokens=self.tokens,
            trained=self.trained_tokens,
        )


def estimate(recipe: Recipe, *, runs_folder: Path | None = None, gpus: int = 1, hosts: int = 1) -> Estimate:
    """What the recipe will train here; reads config, tokenizer and data but no weights. Raises UnusableInput.

    `runs_folder` is where the run will be kept, the default one if None; `gpus` in each of `hosts` hosts are what is
    told of beside this machine.
    """
    import psutil

    from tuitune import backends

    shape = shape_of(recipe)
    rows = _rows_of(recipe)
    card, backend = chosen_gpu(), backends.choose(recipe).name
    available = card.free_bytes if card else psutil.virtual_memory().available
    shared_by = _shared_by(recipe, shape, rows, backend, card) if card else 1
    if shared_by > 1:
        backend = sharding.BACKEND
    longest = longest_batch_tokens(recipe, rows, padding_free=_lays_end_to_end(recipe, backend))
    memory = memory_of(
        recipe, shape, longest, backend=backend, card_bytes=card.total_bytes if card else None, shared_by=shared_by
    )
    steps = steps_of(recipe, rows.count if rows else None)
    needed, room = disk_bytes(recipe, shape, steps), disk_free_bytes(runs_folder or default_runs_folder())
    advice = list(warnings(recipe, rows.count if rows else None, shape.total_parameters))
    if needed > room:
        advice.append(
            _(
                "Checkpoints and adapter take {needed} on the disk, where {free} are free: make room, or keep runs on "
                "another disk with --runs.",
                needed=size(needed),
                free=size(room),
            )
        )
    if card and verdict(memory.total_bytes, available) == "does not fit":
        advice += _offer_of_cards(recipe, shape, rows, backend, card)
    in_16bit = _bytes_in_16bit(recipe, shape, longest, backend, card.total_bytes) if card else None
    return Estimate(
        model=recipe.model.name,
        backend=backend,
        device=card.name if card else _("the CPU"),
        total_parameters=shape.total_parameters,
        trainable_parameters=shape.adapter_parameters,
        rows=rows.count if rows else None,
        tokens=rows.tokens if rows else None,
        trained_tokens=rows.trained_tokens if rows else None,
        steps=steps,
        longest_batch_tokens=longest,
        memory=memory,
        available_bytes=available,
        verdict=verdict(memory.total_bytes, available),
        warnings=advice,
        targets=shape.targets.parameters(recipe.lora.r) if shape.targets else {},
        left_out=shape.targets.left_out if shape.targets else (),
        bytes_in_16bit=in_16bit if in_16bit and verdict(in_16bit, available) == "fits" else None,
        disk_bytes=needed,
        disk_free_bytes=room,
        scaling=_scaling(recipe, shape, rows, gpus, hosts, shared_by > 1) if rows and gpus * hosts > 1 else (),
        cards_here=_cards_here(recipe, shape, rows, shared_by > 1) if rows else (),
        shared_by=shared_by,
    )


def _shared_by(recipe: Recipe, shape: Shape, rows: Rows | None, backend: str, card: Gpu) -> int:
    """How many cards share the frozen weights of the recipe's run; 1 where each holds them whole."""
    gpus = recipe.train.gpus
    cards = 1 if gpus == "auto" else len(visible_gpus()) if gpus == "all" else len(gpus)
    if cards == 1 or recipe.train.shard is False or sharding.why_not_sharded(recipe) is not None:
        return 1
    if recipe.train.shard is True:
        return cards
    is_held = holds_whole(recipe, shape, rows, backend=backend, card_bytes=card.total_bytes, free_bytes=card.free_bytes)
    return 1 if is_held else cards


def _offer_of_cards(recipe: Recipe, shape: Shape, rows: Rows | None, backend: str, card: Gpu) -> Iterator[str]:
    """A sentence, where several cards that share the weights hold the run of which one does not hold a single row."""
    needed = sharding.cards_needed(recipe, shape, rows, backend=backend, card=card, cards=len(visible_gpus()))
    if needed is not None and (recipe.train.gpus == "auto" or recipe.train.shard is False):
        cards, memory = needed
        yield _(
            "One card does not hold it, but {cards} that share its weights do, {peak} each: set train.gpus to "
            "all, and leave train.shard at auto.",
            cards=cards,
            peak=_gib(memory.total_bytes),
        )


def disk_bytes(recipe: Recipe, shape: Shape, steps: int | None) -> int:
    """The most that checkpoints and adapter take at once: weights in fp32, and in checkpoints Adam's moments."""
    at_once = CHECKPOINTS_AT_ONCE if steps is None else min(CHECKPOINTS_AT_ONCE, steps // recipe.train.save_steps + 1)
    return shape.adapter_parameters * (at_once * CHECKPOINT_BYTES_A_PARAMETER + 4)


def _scaling(recipe: Recipe, shape: Shape, rows: Rows, gpus: int, hosts: int, are_shared: bool) -> tuple[Scaled, ...]:
    """The recipe's step on the cards; over hosts, by each kind of link between them."""
    step = _step(recipe, shape, rows, are_shared)
    return tuple(scaled(step, gpus, hosts, link) for link in (ETHERNET if hosts > 1 else ("",)))


def _cards_here(recipe: Recipe, shape: Shape, rows: Rows, are_shared: bool) -> tuple[Scaled, ...]:
    there = len(visible_gpus())
    if there < 2 or recipe.method.answer_tokens:  # decoding answers is most of such a step, and not computed here
        return ()
    step = _step(recipe, shape, rows, are_shared)
    return tuple(scaled(step, gpus) for gpus in sorted({1, 2, 4, 8, there}) if gpus <= there)


def _step(recipe: Recipe, shape: Shape, rows: Rows, are_shared: bool) -> Step:
    """`are_shared` are the frozen weights, over the cards."""
    a_weight = NF4_BYTES if recipe.model.load_in_4bit else 2
    return Step(
        parameters=shape.total_parameters,
        adapter_parameters=shape.adapter_parameters,
        layers=shape.layers,
        rows=recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps,
        tokens_a_row=rows.tokens / max(1, rows.count),
        graphs=recipe.train.cuda_graphs is not False and not are_shared,
        shared_bytes=int(a_weight * shape.linear_parameters) if are_shared else 0,
        rows_a_pass=recipe.train.per_device_train_batch_size,
    )


def _lays_end_to_end(recipe: Recipe, backend: str) -> bool:
    """Whether the run will lay rows end to end, as far as that is known before its own check."""
    from tuitune.model.config import load_config

    proven = proof(load_config(recipe.model).model_type, backend)
    padded = proven is not None and proven.rows == "padded"
    return backend == "unsloth" and recipe.train.padding_free is not False and not padded


def _bytes_in_16bit(recipe: Recipe, shape: Shape, batch_tokens: int, backend: str, card_bytes: int) -> int | None:
    """The peak with the base in 16-bit; None where it is so already, or stored quantised."""
    from tuitune.model.config import load_config

    model = recipe.model
    stored = getattr(load_config(model), "quantization_config", None) is not None
    if stored or not (model.load_in_4bit or model.load_in_8bit):
        return None
    whole = model.model_copy(update={"load_in_4bit": False, "load_in_8bit": False})
    changed = recipe.model_copy(update={"model": whole})
    return memory_of(changed, shape, batch_tokens, backend=backend, card_bytes=card_bytes).total_bytes


def steps_of(recipe: Recipe, rows: int | None) -> int | None:
    """Optimizer steps of the whole run; None where they depend on rows that were not read."""
    if rows is None and recipe.train.max_steps <= 0:
        return None
    return method_of(recipe).steps_of_run(recipe, rows or 0)


def _rows_of(recipe: Recipe) -> Rows | None:
    from tuitune.data.prepare import prepare
    from tuitune.model.config import load_tokenizer

    paths = [recipe.data.path, *(source.path for source in recipe.data.also)]
    if any(path.startswith(HUB) or _size(path) > _READ_UP_TO_BYTES for path in paths):
        return None
    prepared = prepare(recipe, load_tokenizer(recipe.model))
    lengths = sorted(method_of(recipe).lengths(prepared.train), reverse=True)
    return Rows(
        count=len(lengths),
        tokens=prepared.tokens,
        trained_tokens=prepared.trained_tokens,
        longest=tuple(lengths[: max(64, recipe.train.per_device_train_batch_size)]),
    )


def _size(path: str) -> int:
    """Bytes of a file, 0 where there is none: reading it will say so in better words."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.01 * GIB else f"{size / 2**20:.1f} MiB"
