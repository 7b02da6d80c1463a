"""What a recipe will train, in how many steps and how much memory, before any weight is read."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.cells import cell_len, set_cell_size

from tuitune.language import N_, _
from tuitune.machine.hardware import chosen_gpu, disk_free_bytes, visible_gpus
from tuitune.methods import method_of
from tuitune.model.targets import Targets, resolve
from tuitune.plan.advice import offer_of_16bit, warnings
from tuitune.plan.optimizer import optimizer_name
from tuitune.plan.proven import proof
from tuitune.plan.scaling import ETHERNET, Scaled, Step, scaled
from tuitune.recipe import Recipe
from tuitune.recipe_sections import HUB
from tuitune.runs.folder import default_runs_folder
from tuitune.runs.machine_warnings import CHECKPOINT_BYTES_A_PARAMETER, CHECKPOINTS_AT_ONCE
from tuitune.units import size

GIB = 2**30

# Fitted to what an H200 held in the 26 configurations of benchmarks/results/memory_estimate.json; the whole runs there
# were not fitted, and test these.
NF4_BYTES = 0.516  # nf4 with double quantisation: 4 bits, an 8-bit scale per 64 weights, an fp32 one per 256 scales
ADAPTER_BYTES = 4 + 4  # fp32 weight and gradient
CAST_BYTES = 4  # two 16-bit copies of each adapter weight, made on the way forward and kept for the way back
OVERHEAD_BYTES = int(0.82 * GIB)  # CUDA context, kernels, and what the allocator cannot use
HALF_BYTES = int(0.21 * GIB)  # what Unsloth holds beside unquantised weights
EIGHT_BIT_BYTES = int(0.30 * GIB)  # what runs with the 8-bit optimizer hold beyond its states, whatever the model
LOGIT_BYTES = 4.4  # a logit of the pieces in which the loss is computed …
LOSS_BYTES = int(0.54 * GIB)  # … up to this much
# Of a layer's activations, in its backward pass: with checkpointing it is computed again; without, layers that are
# done have given back what they kept.
LAYER_SHARES = {True: 1.26, False: 0.37}
# Embeddings and head with the rows of new tokens put in, and the gradients of both, of which peft keeps those rows:
# measured on a CPU, with embeddings and head tied and apart.
NEW_ROWS_COPIES = 4
HOST_BYTES = int(1.0 * GIB)  # Python with torch, transformers and trl imported
# Data files up to this size are read and tokenised for exact counts; a larger one only when a run starts.
_READ_UP_TO_BYTES = 16 * 2**20


Verdict = Literal["fits", "tight", "does not fit"]
VERDICTS: dict[Verdict, str] = {"fits": N_("fits"), "tight": N_("tight"), "does not fit": N_("does not fit")}
"""As they are shown."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The parts of a run's peak, in bytes, on the card that trains (or in the process, on a CPU)."""

    weights_bytes: int
    adapter_bytes: int
    """Weights that are trained, and their gradients."""
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    overhead_bytes: int
    """CUDA context and what the allocator cannot use; on a CPU the imported libraries."""
    rollouts_bytes: int = 0
    """Where the model answers prompts itself: keys and values of the answers, and weights as they are computed with."""

    @property
    def total_bytes(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder that memory depends on, counted on torch's meta device from config.json."""

    hidden: int
    intermediate: int
    key_value: int
    layers: int
    vocabulary: int
    total_parameters: int
    linear_parameters: int
    """Weights of the decoder's linear layers: what 4-bit loading quantises."""
    adapter_parameters: int
    """Everything that is trained: LoRA, layers that are trained whole, and rows of new tokens."""
    targets: Targets | None = None
    """Where the adapter goes; None where the model itself was not counted."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What is known of the data: counts, and how many tokens its longest rows have."""

    count: int
    tokens: int
    trained_tokens: int
    longest: tuple[int, ...]
    """Lengths of the longest rows in tokens, the longest first; enough of them for one batch."""


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
    longest = longest_batch_tokens(recipe, rows, padding_free=_lays_end_to_end(recipe, backend))
    memory = memory_of(recipe, shape, longest, backend=backend, card_bytes=card.total_bytes if card else None)
    available = card.free_bytes if card else psutil.virtual_memory().available
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
        scaling=_scaling(recipe, shape, rows, gpus, hosts) if rows and gpus * hosts > 1 else (),
        cards_here=_cards_here(recipe, shape, rows) if rows else (),
    )


def disk_bytes(recipe: Recipe, shape: Shape, steps: int | None) -> int:
    """The most that checkpoints and adapter take at once: weights in fp32, and in checkpoints Adam's moments."""
    at_once = CHECKPOINTS_AT_ONCE if steps is None else min(CHECKPOINTS_AT_ONCE, steps // recipe.train.save_steps + 1)
    return shape.adapter_parameters * (at_once * CHECKPOINT_BYTES_A_PARAMETER + 4)


def _scaling(recipe: Recipe, shape: Shape, rows: Rows, gpus: int, hosts: int) -> tuple[Scaled, ...]:
    """The recipe's step on the cards; over hosts, by each kind of link between them."""
    step = _step(recipe, shape, rows)
    return tuple(scaled(step, gpus, hosts, link) for link in (ETHERNET if hosts > 1 else ("",)))


def _cards_here(recipe: Recipe, shape: Shape, rows: Rows) -> tuple[Scaled, ...]:
    there = len(visible_gpus())
    if there < 2 or method_of(recipe).why_one_card:
        return ()
    step = _step(recipe, shape, rows)
    return tuple(scaled(step, gpus) for gpus in sorted({1, 2, 4, 8, there}) if gpus <= there)


def _step(recipe: Recipe, shape: Shape, rows: Rows) -> Step:
    return Step(
        parameters=shape.total_parameters,
        adapter_parameters=shape.adapter_parameters,
        layers=shape.layers,
        rows=recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps,
        tokens_a_row=rows.tokens / max(1, rows.count),
        graphs=recipe.train.cuda_graphs is not False,
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


def shape_of(recipe: Recipe) -> Shape:
    """Count in a model without values. Raises UnusableInput."""
    import torch

    model = empty_model(recipe)
    targets = resolve(model, recipe)
    text = model.config.get_text_config()
    head = model.get_output_embeddings()
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    layers = list(getattr(text, "per_layer_config", None) or [text])  # Gemma 4's layers differ in their heads
    return Shape(
        hidden=text.hidden_size,
        intermediate=max(getattr(layer, "intermediate_size", None) or 4 * text.hidden_size for layer in layers),
        key_value=max(map(_key_value, layers)),
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        total_parameters=sum(p.numel() for p in model.parameters()),
        linear_parameters=sum(m.weight.numel() for m in linears),
        adapter_parameters=recipe.lora.r * sum(targets.features.values()) + _trained_beside_lora(model, recipe),
        targets=targets,
    )


def _trained_beside_lora(model: Any, recipe: Recipe) -> int:
    """Parameters of layers that are trained whole, and of the rows of new tokens."""
    from tuitune.backends.new_rows import trained_rows, trained_whole

    modules = [module for name, module in model.named_modules() if trained_whole(name, recipe)]
    whole: dict[int, int] = {id(weight): weight.numel() for module in modules for weight in module.parameters()}
    rows = trained_rows(model, recipe) or {}
    of_rows: list[int] = [len(ids) * model.get_submodule(name).weight.shape[1] for name, ids in rows.items()]
    return sum(whole.values()) + sum(of_rows)


def _key_value(layer: Any) -> int:
    """Width of the keys, and of the values, in the config of one layer."""
    heads = getattr(layer, "num_attention_heads", 1)
    head_size: int = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    return head_size * (getattr(layer, "num_key_value_heads", None) or heads)


def empty_model(recipe: Recipe) -> Any:
    """The recipe's base model with its new rows, on torch's meta device: shapes and no values. Raises TuituneError."""
    import torch

    from tuitune.backends.loading import explained
    from tuitune.backends.new_rows import add_rows
    from tuitune.model.config import auto_class, training_config

    config = training_config(recipe)
    config.quantization_config = None
    with explained(recipe, N_("reading the shape of")), torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=False)
        add_rows(model, recipe.model)
        return model


def memory_of(recipe: Recipe, shape: Shape, batch_tokens: int, *, backend: str, card_bytes: int | None) -> Memory:
    """The peak's parts for a micro-batch of `batch_tokens` tokens on a card of `card_bytes`, or on the CPU (None).

    Per token and layer a decoder keeps 2·(6H + 2K + 2M) bytes in 16-bit (hidden size H, key and value width K, MLP
    width M); with gradient checkpointing 2·H, which Unsloth moves to host memory, and one layer's worth while that
    layer is computed again.
    """
    on_gpu, unsloth = card_bytes is not None, backend == "unsloth"
    in_4bit, in_8bit = recipe.model.load_in_4bit, recipe.model.load_in_8bit
    rest = shape.total_parameters - shape.linear_parameters
    # prepare_model_for_kbit_training holds in fp32 what is not quantised, and a CPU computes in fp32.
    half = 2 if on_gpu and (unsloth or not (in_4bit or in_8bit)) else 4
    a_weight = NF4_BYTES if in_4bit else 1 if in_8bit else half
    weights = a_weight * shape.linear_parameters + half * rest
    if unsloth and a_weight == half:
        weights += HALF_BYTES
    adapter = ADAPTER_BYTES * shape.adapter_parameters
    eight = optimizer_name(recipe, shape.adapter_parameters, card_bytes) == "adamw_8bit"
    optimizer = 2 * shape.adapter_parameters + EIGHT_BIT_BYTES if eight else 8 * shape.adapter_parameters
    width = 2 if on_gpu else 4
    layer = width * batch_tokens * (6 * shape.hidden + 2 * shape.key_value + 2 * shape.intermediate)
    recomputed = checkpoints(recipe, shape, backend=backend)
    activations = LAYER_SHARES[recomputed] * layer + (CAST_BYTES * shape.adapter_parameters if on_gpu else 0)
    if not recomputed:
        activations += shape.layers * layer
    elif not unsloth:
        activations += width * batch_tokens * shape.hidden * shape.layers
    if recipe.model.new_tokens:
        activations += NEW_ROWS_COPIES * half * shape.vocabulary * shape.hidden
    # Both ways to train compute the loss in pieces of the batch.
    logits: float | None = method_of(recipe).logits_bytes(shape.vocabulary, batch_tokens)
    if logits is None:
        logits = min(LOGIT_BYTES * shape.vocabulary * batch_tokens, LOSS_BYTES)
    return Memory(
        weights_bytes=int(weights),
        adapter_bytes=adapter,
        optimizer_bytes=optimizer,
        activations_bytes=int(activations),
        logits_bytes=int(logits),
        overhead_bytes=OVERHEAD_BYTES if on_gpu else HOST_BYTES,
        rollouts_bytes=_rollouts_bytes(recipe, shape, batch_tokens, width),
    )


def _rollouts_bytes(recipe: Recipe, shape: Shape, batch_tokens: int, width: int) -> int:
    """Of the decoder beside the training; 0 for a method that generates nothing."""
    if not recipe.method.answer_tokens:
        return 0
    train = recipe.train
    answers = train.per_device_train_batch_size * train.gradient_accumulation_steps
    columns = batch_tokens // train.per_device_train_batch_size
    cache = 2 * shape.layers * shape.key_value * width * columns * answers
    return cache + (width * shape.linear_parameters if recipe.model.load_in_4bit else 0)


def checkpoints(recipe: Recipe, shape: Shape, *, backend: str) -> bool:
    """Whether activations are computed again in the backward pass, where nothing has been timed yet."""
    wanted = recipe.train.gradient_checkpointing
    if wanted != "auto":
        return wanted
    return backend == "unsloth" or shape.total_parameters >= 500_000_000


def longest_batch_tokens(recipe: Recipe, rows: Rows | None, *, padding_free: bool = False) -> int:
    """Tokens of the largest micro-batch with its padding; `data.max_length` each where the rows are not known."""
    batch = recipe.train.per_device_train_batch_size
    answers = batch * recipe.method.answer_tokens
    if rows is None or not rows.longest:
        return batch * recipe.data.max_length * method_of(recipe).sequences_a_row + answers
    if answers:  # to the longest prompt, in the worst case
        return batch * rows.longest[0] + answers
    return method_of(recipe).batch_tokens(rows.longest[:batch], padding_free=padding_free)


def steps_of(recipe: Recipe, rows: int | None) -> int | None:
    """Optimizer steps of the whole run; None where they depend on rows that were not read."""
    if rows is None and recipe.train.max_steps <= 0:
        return None
    return method_of(recipe).steps_of_run(recipe, rows or 0)


def verdict(needed_bytes: int, available_bytes: int) -> Verdict:
    """`tight` from nine tenths of what is free on: another program, or a longer row, would end the run."""
    if needed_bytes > available_bytes:
        return "does not fit"
    return "tight" if needed_bytes > 0.9 * available_bytes else "fits"


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
