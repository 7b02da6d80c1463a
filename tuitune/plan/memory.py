"""How much memory a run takes at its peak, by part, computed from the sizes of its model."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tuitune.language import N_
from tuitune.methods import method_of
from tuitune.model.targets import Targets, resolve
from tuitune.plan.optimizer import optimizer_name
from tuitune.recipe import Recipe

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


def memory_of(
    recipe: Recipe, shape: Shape, batch_tokens: int, *, backend: str, card_bytes: int | None, shared_by: int = 1
) -> Memory:
    """The peak's parts for a micro-batch of `batch_tokens` tokens on a card of `card_bytes`, or on the CPU (None).

    Where the frozen weights are `shared_by` several cards, each has its share of the decoder's and two whole layers.
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
    decoder = a_weight * shape.linear_parameters
    weights = decoder * min(1.0, 1 / shared_by + (2 / shape.layers if shared_by > 1 else 0)) + half * rest
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


def holds_whole(
    recipe: Recipe, shape: Shape, rows: Rows | None, *, backend: str, card_bytes: int, free_bytes: int
) -> bool:
    """Whether a card holds all weights beside a pass of a single row; what is larger is made to fit in other ways."""
    smallest = {"per_device_train_batch_size": 1, "gradient_checkpointing": True}
    one_row = recipe.model_copy(update={"train": recipe.train.model_copy(update=smallest)})
    tokens = longest_batch_tokens(one_row, rows)
    return memory_of(one_row, shape, tokens, backend=backend, card_bytes=card_bytes).total_bytes <= free_bytes


def verdict(needed_bytes: int, available_bytes: int) -> Verdict:
    """`tight` from nine tenths of what is free on: another program, or a longer row, would end the run."""
    if needed_bytes > available_bytes:
        return "does not fit"
    return "tight" if needed_bytes > 0.9 * available_bytes else "fits"
