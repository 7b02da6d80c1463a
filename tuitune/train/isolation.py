"""Before the first step, prove on the user's own model and rows that rows laid end to end train as each does alone."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tuitune.backends.loaded import LoadedModel
from tuitune.backends.loading import explained
from tuitune.errors import explain
from tuitune.language import N_, _
from tuitune.machine.precision import compute_dtype
from tuitune.text import one_line
from tuitune.train.batching import IGNORED, Padded, Row, collator, pad_of

# The rows compared are cut to these lengths (tokens): different, and no multiples of a kernel's block.
_LENGTHS = (193, 251, 127)
# Two ways to compute the same gradient in bf16 agree to this cosine, unless rounding alone moves this model further.
_COSINE = 0.9995
_LOSS = 2e-3
# Rounding is measured by moving the embeddings once, while each layer of the real pass rounds anew.
_ROUNDINGS = 4.0
_BF16_STEP = 2.0**-8
# One move alone can leave the loss where it was by chance, and would make the floor too low.
_MOVES = 3
# Where a model does not compute the same batch twice alike, a leak must stand out from that.
_REPEATS = 4.0


@dataclass(frozen=True, slots=True)
class Isolation:
    """How far rows in one batch are from the same rows alone: losses in nats a token, gradients of the adapter."""

    rows: int
    tokens: int
    leak: float
    """Change of the other rows' loss when one row's tokens are reversed: exactly 0 where rows are kept apart."""
    repeat: float
    """The same change when nothing is reversed: 0 where the model computes a batch the same way each time."""
    loss_difference: float
    """Loss of the batch less the loss of its rows alone."""
    loss_floor: float
    """Largest change of the loss, over a few draws, when each value of the embeddings is moved by one step of bf16."""
    gradient_cosine: float
    """Between the batch's gradient and the sum of the gradients of its rows alone."""
    cosine_floor: float
    """Between the batch's gradient and the one after the embeddings were moved."""
    seconds: float
    """What the comparison took, without the first pass, which compiles."""
    warm_up_seconds: float

    @property
    def holds(self) -> bool:
        """Whether training with this batch is training on its rows."""
        return self.problem is None

    @property
    def problem(self) -> str | None:
        """What is wrong, in words for a user; None where nothing is."""
        if not abs(self.leak) <= _REPEATS * abs(self.repeat):
            return _("a row's tokens change the loss of other rows, by {leak:.2g}", leak=abs(self.leak))
        if not abs(self.loss_difference) <= max(_LOSS, _ROUNDINGS * abs(self.loss_floor)):
            return _(
                "their loss differs from that of each row alone by {difference:.2g}",
                difference=abs(self.loss_difference),
            )
        if not 1 - self.gradient_cosine <= max(1 - _COSINE, _ROUNDINGS * (1 - self.cosine_floor)):
            return _(
                "their gradient differs from that of each row alone (cosine {cosine:.4f})", cosine=self.gradient_cosine
            )
        return None

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Batches:
    """How the run's rows are put into batches, and what was measured of it."""

    kind: Literal["end to end", "padded"]
    attention: str
    """The attention kernels that ran, in words for the user."""
    isolation: Isolation
    notice: str | None
    """What the user should know of it; None where rows are laid end to end as they should be."""


@dataclass(frozen=True, slots=True)
class SequencePass:
    """How a method makes batches of sequences for a model, and computes the loss of one over a number of labels."""

    collator: Callable[[LoadedModel], Callable[[Sequence[Row]], dict[str, Any]]]
    loss: Callable[[LoadedModel, dict[str, Any], int], Any]


def settle_batches(
    loaded: LoadedModel,
    rows: Any,
    progress: Callable[[str], None] = lambda text: None,
    sequence_pass: SequencePass | None = None,
) -> Batches:
    """Lay rows end to end where that is proven on this model, else pad them; `loaded` is set accordingly.

    `loaded` has its adapter; `rows` are sequences that are trained on; `sequence_pass` is the model's own loss by
    default. `progress` gets what is being done, in words. Raises TuituneError where a pass cannot be run at all.
    """
    import torch

    loaded.backend.for_training(loaded)
    problem = None
    with explained(loaded.recipe, N_("running a first pass of")):
        if loaded.padding_free:
            try:
                isolation, attention = _proven(loaded, rows, progress, sequence_pass)
                problem = isolation.problem
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a kernel that refuses the rows' ends raises whatever it likes
                problem = _("this model refuses them ({reason})", reason=one_line(explain(error), max_length=200))
            if problem is None:
                return Batches("end to end", attention, isolation, None)
            loaded.padding_free = False
        isolation, attention = _proven(loaded, rows, progress, sequence_pass)
    loaded.attention = attention
    notice = None
    if problem is not None:
        notice = _("Rows are padded and grouped by length, because laid end to end {problem}.", problem=problem)
    elif loaded.backend.name == "unsloth" and loaded.recipe.train.padding_free is not False:
        notice = _(
            "Rows are padded and grouped by length, because no kernel here keeps this model's rows apart end to end."
        )
    if isolation.problem is not None:
        advice = _(
            "Even padded, {problem}: train.per_device_train_batch_size: 1 trains each row alone.",
            problem=isolation.problem,
        )
        notice = _("{first} {second}", first=notice, second=advice) if notice else advice
    return Batches("padded", attention, isolation, notice)


def _proven(
    loaded: LoadedModel, rows: Any, progress: Callable[[str], None], sequence_pass: SequencePass | None
) -> tuple[Isolation, str]:
    if loaded.backend.name != "unsloth":
        return prove_isolation(loaded, rows, progress, sequence_pass), loaded.attention
    from tuitune.backends.attention import watched

    with watched(loaded.model) as kernels:
        isolation = prove_isolation(loaded, rows, progress, sequence_pass)
    loaded.attention = " and ".join(kernels)
    return isolation, loaded.attention


def prove_isolation(
    loaded: LoadedModel,
    rows: Any,
    progress: Callable[[str], None] = lambda text: None,
    sequence_pass: SequencePass | None = None,
) -> Isolation:
    """Compare a few of the training rows in the model's own kind of batch with the same rows alone.

    `loaded` has its adapter; `rows` is the training dataset (`input_ids`, `labels`). Weights and the random state are
    left as they were, dropout is off meanwhile. Raises what the model raises, as torch.OutOfMemoryError.
    """
    import torch

    chosen = _chosen(rows)
    sequence_pass = sequence_pass or SequencePass(collator, loss_of)
    collate, collate_alone = sequence_pass.collator(loaded), Padded(pad_of(loaded))
    middle = len(chosen) // 2
    unlabelled = {**chosen[middle], "labels": [IGNORED] * len(chosen[middle]["labels"])}
    reversed_row = {**unlabelled, "input_ids": list(unlabelled["input_ids"])[::-1]}
    batch = collate(chosen)
    trained = int((batch["labels"] != IGNORED).sum())
    device = loaded.model.device
    random_of = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=random_of), _without_dropout(loaded.model):
        began = time.monotonic()
        progress(_("Compiling kernels, once; the next run finds them"))
        _pass(loaded, sequence_pass, [batch, collate_alone(chosen[:1])], trained)
        progress(_("Checking that the rows of a batch are kept apart"))
        warm = time.monotonic()
        loss, gradient = _pass(loaded, sequence_pass, [batch], trained)
        loss_alone, gradient_alone = _pass(loaded, sequence_pass, [collate_alone([row]) for row in chosen], trained)
        with _moved_embeddings(loaded.model, seed=0):
            loss_moved, gradient_moved = _pass(loaded, sequence_pass, [batch], trained)
        moves = [loss_moved - loss]
        for seed in range(1, _MOVES):
            with _moved_embeddings(loaded.model, seed=seed):
                moves.append(_loss(loaded, sequence_pass, batch, trained) - loss)
        original, with_reversed_row = (collate(_with(chosen, middle, row)) for row in (unlabelled, reversed_row))
        loss_before, loss_repeated, loss_after = (
            _loss(loaded, sequence_pass, batch, trained) for batch in (original, original, with_reversed_row)
        )
        done = time.monotonic()
    for parameter in loaded.model.parameters():
        parameter.grad = None
    return Isolation(
        rows=len(chosen),
        tokens=sum(len(row["input_ids"]) for row in chosen),
        leak=loss_after - loss_before,
        repeat=loss_repeated - loss_before,
        loss_difference=loss - loss_alone,
        loss_floor=max(map(abs, moves)),
        gradient_cosine=_cosine(gradient, gradient_alone),
        cosine_floor=_cosine(gradient, gradient_moved),
        seconds=done - warm,
        warm_up_seconds=warm - began,
    )


def _chosen(rows: Any) -> list[Row]:
    """As many rows as _LENGTHS, from all over the dataset, each cut to its length around its first trained token."""
    places = [(2 * i + 1) * len(rows) // (2 * len(_LENGTHS)) for i in range(len(_LENGTHS))]
    chosen: list[Row] = []
    for place, length in zip(places, _LENGTHS, strict=True):
        row = rows[place]
        ids, labels = list(row["input_ids"]), list(row["labels"])
        trained = next((i for i, label in enumerate(labels) if i and label != IGNORED), 0)
        start = max(0, min(trained - length // 2, len(ids) - length))
        chosen.append({"input_ids": ids[start : start + length], "labels": labels[start : start + length]})
    return chosen


def _with(rows: Sequence[Row], place: int, row: Row) -> list[Row]:
    return [row if i == place else other for i, other in enumerate(rows)]


def _pass(
    loaded: LoadedModel, sequence_pass: SequencePass, batches: list[dict[str, Any]], trained: int
) -> tuple[float, dict[str, Any]]:
    """The loss over `trained` labels and the adapter's gradients, by parameter, after all batches."""
    for parameter in loaded.model.parameters():
        parameter.grad = None
    loss = 0.0
    for batch in batches:
        part = sequence_pass.loss(loaded, batch, trained)
        part.backward()
        loss += part.item()
    parameters = loaded.model.named_parameters()
    return loss, {name: p.grad for name, p in parameters if p.grad is not None and "lora_" in name}


def _loss(loaded: LoadedModel, sequence_pass: SequencePass, batch: dict[str, Any], trained: int) -> float:
    """With gradients on: without them other kernels run."""
    return float(sequence_pass.loss(loaded, batch, trained).item())


def loss_of(loaded: LoadedModel, batch: dict[str, Any], trained: int) -> Any:
    """The training loss of a batch as the trainer computes it: the sum over its labels, divided by `trained`."""
    import torch

    device = loaded.model.device
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    on_gpu = device.type == "cuda"
    dtype = compute_dtype(load_in_4bit=False)
    with torch.autocast(device.type, dtype=dtype if on_gpu else None, enabled=on_gpu):
        return loaded.model(**inputs, use_cache=False, num_items_in_batch=trained).loss


def _cosine(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The cosine between two sets of gradients by parameter, each taken as one vector; NaN where one is zero."""
    dot = first_square = second_square = 0.0
    for name in first | second:
        x, y = (side[name].double().flatten() if name in side else None for side in (first, second))
        dot += float(x @ y) if x is not None and y is not None else 0.0
        first_square += float(x @ x) if x is not None else 0.0
        second_square += float(y @ y) if y is not None else 0.0
    length = (first_square * second_square) ** 0.5
    return dot / length if length else float("nan")


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    import torch

    active = [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.training]
    for module in active:
        module.eval()
    try:
        yield
    finally:
        for module in active:
            module.train()


@contextmanager
def _moved_embeddings(model: Any, *, seed: int) -> Iterator[None]:
    """Move each value of the input embeddings by one step of bf16, up or down as the seed draws."""
    import torch

    def move(module: Any, inputs: Any, output: Any) -> Any:
        generator = torch.Generator(device=output.device).manual_seed(seed)
        signs = torch.randint(0, 2, output.shape, generator=generator, device=output.device) * 2 - 1
        return (output * (1 + _BF16_STEP * signs)).to(output.dtype)

    hook = model.get_input_embeddings().register_forward_hook(move)
    try:
        yield
    finally:
        hook.remove()
