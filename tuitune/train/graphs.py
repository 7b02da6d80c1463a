"""Forward and backward passes captured as CUDA graphs: a small pass is then launched at once, not kernel by kernel."""

import gc
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tuitune.backends.loaded import LoadedModel
from tuitune.machine.precision import compute_dtype, gpu_has_bf16
from tuitune.train.batching import ALIGNED

log = logging.getLogger(__name__)

_MOST_FAILURES = 2
_MOST_DROPS = 2
_MOST_AMOUNTS = 2
"""Numbers that a step's loss is divided by: its labels, or its pairs and the labels of their chosen replies."""

Figures = dict[str, tuple[Any, Any]]
"""Of each figure of a pass the sum of its values and how many those are, each a number or a tensor ()."""
Compute = Callable[[dict[str, Any], Any], tuple[Any, Figures]]
"""From a batch on the GPU and what its step's loss is divided by, a tensor (amounts,) in fp32: the pass's share of the
loss (), with gradients, and its figures. It must not read back from the GPU."""


def can_capture(loaded: LoadedModel) -> bool:
    """Whether passes of this model can be captured: Unsloth's own kernels, rows end to end, nothing computed again.

    `loaded` has its adapter. Whether it pays is for `fit` to measure. 8-bit weights, DoRA and layers that are trained
    whole go through code that reads back from the GPU, or is not known not to.
    """
    model, lora = loaded.recipe.model, loaded.recipe.lora
    if loaded.shards is not None or model.load_in_8bit or lora.use_dora or lora.modules_to_save or lora.bias != "none":
        return False
    return (
        loaded.model.device.type == "cuda"
        and loaded.backend.name == "unsloth"
        and loaded.padding_free
        and loaded.trained_head
        and "varlen" in loaded.attention
        and not loaded.gradient_checkpointing
        and gpu_has_bf16()
    )


@dataclass(frozen=True)
class _Capture:
    """A captured pass: what it reads on the GPU, and what it is replayed by."""

    inputs: dict[str, Any]
    """What `Compute` takes, and the rows' ends."""
    graph: Any
    names: tuple[str, ...]
    """Of its figures."""
    figures: Any
    """Their sums and their counts, (2, figures) in fp32."""


class PassGraphs:
    """Runs passes of one model without waiting for the GPU: passes of few sizes are captured and replayed.

    The first pass of each size is run as it is, and so is every pass where `loaded.pass_sizes` is empty. Gradients are
    added up in tensors that stay, since a graph writes where it wrote when it was captured. All graphs share one pool
    of memory: no two run at once, and what a pass leaves is its loss, its figures and its gradients.
    """

    def __init__(self, loaded: LoadedModel, compute: Compute, rows: int, longest: int) -> None:
        """`rows` is how many rows a pass has at most, `longest` the tokens of the longest row of all."""
        import torch

        self._loaded = loaded
        self._compute = compute
        self._rows = rows + 1  # and the filling
        self._longest = -(-longest // ALIGNED) * ALIGNED
        self._stream = torch.cuda.Stream()
        self._captures: dict[tuple[tuple[int, ...], ...], _Capture] = {}
        self._seen: set[tuple[tuple[int, ...], ...]] = set()
        self._failures = self._drops = 0
        self._draws = any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in loaded.model.modules())
        self._parameters: list[Any] = []
        self._gradients: list[Any] = []
        self._addresses: list[int] = []
        self._kept: dict[int, Any] = {}
        device = loaded.model.device
        self._amounts = torch.ones(_MOST_AMOUNTS, dtype=torch.float32, device=device)
        self._loss = torch.zeros((), dtype=torch.float32, device=device)
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def captured(self) -> int:
        """How many sizes are captured."""
        return len(self._captures)

    def run(self, batch: dict[str, Any], amounts: Sequence[Any]) -> tuple[Any, Figures]:
        """Forward and backward of a padding-free batch on the CPU; its loss () in fp32 on the GPU, until the next pass.

        `amounts` are what the step's loss is divided by: numbers, or tensors () on the CPU. Gradients are added to
        those of the passes before, or are new where `grad` is None. Nothing here waits for the GPU. Raises what the
        model does.
        """
        self._take_gradients()
        for place, amount in enumerate(amounts):
            self._amounts[place].fill_(float(amount))
        size = _size(batch)
        capture = self._captures.get(size)
        if capture is None and size in self._seen and self._may_capture(batch):
            capture = self._try_to_capture(size, batch)
        if capture is None:
            self._seen.add(size)
            names, figures = self._run_eagerly(batch)
            self._keep_gradients()
        else:
            self._fill(capture.inputs, batch)
            capture.graph.replay()
            names, figures = capture.names, capture.figures.clone()
        return self._loss, {name: (figures[0, place], figures[1, place]) for place, name in enumerate(names)}

    def forget_gradients(self) -> None:
        """Begin the next pass with gradients of zero."""
        for parameter in self._parameters:
            parameter.grad = None

    @property
    def can_run_ahead(self) -> bool:
        """Whether the next step's first pass may be queued before this step's end: nothing in it is drawn at random."""
        return bool(self._gradients) and not self._draws

    def drop(self) -> bool:
        """Give the graphs' memory back; False where there was none. Dropped often, no more are captured."""
        import torch

        if not self._captures:
            return False
        torch.cuda.synchronize()
        self._captures.clear()
        self._kept.clear()
        self._seen.clear()
        self._drops += 1
        self._pool = torch.cuda.graph_pool_handle()
        gc.collect()
        torch.cuda.empty_cache()
        return True

    def _may_capture(self, batch: dict[str, Any]) -> bool:
        return (
            bool(self._gradients)
            and batch["input_ids"].shape[1] in self._loaded.pass_sizes
            and len(batch["packed_seq_lengths"]) <= self._rows
            and int(batch["packed_seq_lengths"].max()) <= self._longest
            and self._failures < _MOST_FAILURES
            and self._drops < _MOST_DROPS
        )

    def _take_gradients(self) -> None:
        """Begin the gradients anew at the first pass of a step; forget all graphs where the weights have moved."""
        import torch

        if not self._gradients or self._parameters[0].grad is self._gradients[0]:
            return
        if self._captures and [parameter.data_ptr() for parameter in self._parameters] != self._addresses:
            self.drop()
        torch._foreach_zero_(self._gradients)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def _keep_gradients(self) -> None:
        """After the very first pass: the parameters that got a gradient keep its tensor from now on."""
        if not self._gradients:
            self._parameters = [
                parameter for parameter in self._loaded.model.parameters() if parameter.grad is not None
            ]
            self._gradients = [parameter.grad for parameter in self._parameters]

    def _inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch on the GPU, with so many rows as every pass has, the last ones empty."""
        import torch

        device = self._loaded.model.device
        inputs = {name: torch.empty_like(tensor, device=device) for name, tensor in batch.items()}
        rows = max(self._rows, len(batch["packed_seq_lengths"]))
        inputs["packed_seq_lengths"] = torch.zeros(rows, dtype=torch.int32, device=device)
        inputs["ends"] = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        self._fill(inputs, batch)
        return inputs

    def _fill(self, inputs: dict[str, Any], batch: dict[str, Any]) -> None:
        import torch

        lengths = torch.zeros(len(inputs["packed_seq_lengths"]), dtype=torch.int32, pin_memory=True)
        lengths[: len(batch["packed_seq_lengths"])] = batch["packed_seq_lengths"]
        ends = torch.zeros(len(lengths) + 1, dtype=torch.int32, pin_memory=True)
        torch.cumsum(lengths, 0, dtype=torch.int32, out=ends[1:])
        for name, tensor in {**batch, "packed_seq_lengths": lengths, "ends": ends}.items():
            inputs[name].copy_(tensor, non_blocking=True)

    def _run_eagerly(self, batch: dict[str, Any]) -> tuple[tuple[str, ...], Any]:
        """The pass kernel by kernel, on the stream that graphs are captured on: it warms up what a capture needs."""
        import torch

        if not self._loaded.pass_sizes:
            return self._pass(self._inputs(batch), int(batch["packed_seq_lengths"].max()))
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            told = self._pass(self._inputs(batch), max(self._longest, int(batch["packed_seq_lengths"].max())))
        current.wait_stream(self._stream)
        return told

    def _try_to_capture(self, size: tuple[tuple[int, ...], ...], batch: dict[str, Any]) -> _Capture | None:
        """The pass as a graph, not yet run. None where it cannot be captured, as where memory does not suffice."""
        import torch

        inputs = self._inputs(batch)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        if torch.cuda.mem_get_info()[0] < torch.cuda.memory_reserved():
            torch.cuda.empty_cache()  # what passes left would be taken once more
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    names, figures = self._pass(inputs, self._longest)
                finally:
                    graph.capture_end()
        except Exception as error:  # capturing forbids what kernels may do, and memory may run out: then as it is
            self._failures += 1
            self._seen.discard(size)
            log.warning("a pass of %s tokens could not be captured", batch["input_ids"].numel(), exc_info=error)
            del graph
            self._leave_failed_capture()
            return None
        self._addresses = [parameter.data_ptr() for parameter in self._parameters]
        self._kept |= {id(tensor): tensor for tensor in _tensors_beside_weights(self._loaded.model)}
        self._captures[size] = _Capture(inputs, graph, names, figures)
        return self._captures[size]

    def _leave_failed_capture(self) -> None:
        """Bring memory and random numbers back to what they are outside a capture: torch leaves both in the middle.

        The allocator would refuse to give memory back, and the generator to draw.
        """
        import torch

        device = torch.cuda.current_device()
        with suppress(RuntimeError):  # where the capture did end
            torch._C._cuda_endAllocateToPool(device, self._pool)
        self._pool = torch.cuda.graph_pool_handle()
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())
        gc.collect()
        torch.cuda.empty_cache()

    def _pass(self, inputs: dict[str, Any], longest: int) -> tuple[tuple[str, ...], Any]:
        """Run a pass; the names of its figures, and their sums and counts, (2, figures) in fp32."""
        import torch

        from tuitune.backends.attention import tell_row_ends

        model_inputs = {name: tensor for name, tensor in inputs.items() if name != "ends"}
        tell_row_ends(model_inputs["packed_seq_lengths"], inputs["ends"], longest, model_inputs["input_ids"].shape[1])
        # Casts of the weights that were kept from before the capture would be read when they are long gone.
        with torch.autocast("cuda", dtype=compute_dtype(load_in_4bit=False), cache_enabled=False):
            loss, figures = self._compute(model_inputs, self._amounts)
        loss.backward()
        self._loss.copy_(loss.detach())
        with torch.no_grad():
            values = [value for figure in zip(*figures.values(), strict=True) for value in figure]
            table = self._loss.new_empty(len(values))
            for place, value in enumerate(values):
                if torch.is_tensor(value):
                    table[place].copy_(value)
                else:
                    table[place].fill_(value)
        return tuple(figures), table.view(2, len(figures))


def _size(batch: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    """The shapes of a batch but for its number of rows, which is filled up: its tokens come first."""
    return tuple(tuple(tensor.shape) for name, tensor in batch.items() if name != "packed_seq_lengths")


def _tensors_beside_weights(model: Any) -> list[Any]:
    """Tensors that modules hold in plain attributes, as tables of positions: a graph reads them where they were."""
    import torch

    tensors: list[Any] = []
    for module in model.modules():
        for value in vars(module).values():
            values = value if isinstance(value, list | tuple) else (value,)
            tensors += [item for item in values if torch.is_tensor(item)]
    return tensors
