"""The frozen weights of a model shared out to several processes: each holds a part, and gets the rest as it computes.

It is what ZeRO-3 (Rajbhandari et al. 2020) and FSDP (Zhao et al. 2023) do, for the weights that are not trained. These
have neither gradients nor an optimizer's state, so all that is trained stays whole in every process: adapters,
checkpoints and the sum of gradients are those of a model that each process holds, and so is every value, to the bit.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

_NONE = -1
_READ_IN_ORDER = "HF_DEACTIVATE_ASYNC_LOAD"


class Peers(Protocol):
    """The processes that share a model's weights; all must call each method, in the same order."""

    rank: int
    world: int

    @property
    def is_first(self) -> bool: ...

    def gather(self, whole: Any, part: Any) -> Any:
        """Begin to set `whole` (n) to the parts (n / world) of all by rank; what is returned has a `wait`."""
        ...

    def highest(self, *numbers: float) -> tuple[float, ...]: ...


class _Layer:
    """A decoder layer: the parts of its weights that this process holds, and their whole values while it computes."""

    def __init__(self, name: str, module: Any) -> None:
        self.module = module
        self.siblings = name.rpartition(".")[0]
        """The name of the list of layers that it stands in."""
        self.parts: list[tuple[Any, Any]] = []
        """Each weight's storage, empty unless gathered, and the part of its bytes that is held here (n / world,)."""
        self.is_gathered = False
        self.arriving: list[Any] = []
        """What to wait for before the whole values can be read."""

    def take(self, parameter: Any, rank: int, world: int) -> None:
        """Keep this process's part of a weight; it must be contiguous, and its bytes divisible by `world`."""
        values = parameter.data.reshape(-1).view(torch.uint8)
        size = len(values) // world
        part = values[rank * size : (rank + 1) * size].clone()
        if parameter.data.untyped_storage().nbytes() != len(values):  # it shares its storage with others
            parameter.data = torch.empty_like(parameter.data)
        storage = parameter.data.untyped_storage()
        storage.resize_(0)
        self.parts.append((storage, part))

    def gather(self, peers: Peers) -> None:
        """Begin to bring the whole values here. Shapes stay as they are all the time: it is storages that empty."""
        for storage, part in self.parts:
            storage.resize_(len(part) * peers.world)
            # A tensor of its own: written through the parameter, a pass that reads it would seem to be disturbed.
            whole = torch.empty(0, dtype=torch.uint8, device=part.device).set_(storage)
            self.arriving.append(peers.gather(whole, part))
        self.is_gathered = True

    def wait(self) -> None:
        for work in self.arriving:
            work.wait()
        self.arriving.clear()

    def release(self) -> None:
        self.wait()
        for storage, _part in self.parts:
            storage.resize_(0)
        self.is_gathered = False


class Shards:
    """The decoder layers of one model, whose weights are shared out; at most two have them whole at a time."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._model: Any = None
        self._layers: list[_Layer] = []
        self._by_name: dict[str, int] = {}
        self._alone = False
        self.has_broken_off = False
        """Whether gathering weights failed on the way: the others wait for the rest, so that this process must end."""

    def take(self, model: Any, name: str, *, quantized: bool) -> None:
        """Keep this process's part of the weight `name`, which has just been loaded, if it is one of a decoder layer.

        Vectors stay whole, and so does what is not quantised of a `quantized` model, as it is cast later on.
        """
        if model is not self._model:  # loading began anew, by another backend
            self._model, self._layers, self._by_name = model, [], {}
            for path, module in model.named_modules():
                if type(module).__name__ in (getattr(model, "_no_split_modules", None) or ()):
                    self._by_name[path] = len(self._layers)
                    self._layers.append(_Layer(path, module))
        parts = name.split(".")
        paths = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
        place = next((self._by_name[path] for path in paths if path in self._by_name), None)
        parameter = dict(model.get_submodule(".".join(parts[:-1])).named_parameters(recurse=False)).get(parts[-1])
        if place is None or parameter is None or parameter.dim() < 2:
            return
        if quantized and getattr(parameter, "quant_state", None) is None:
            return
        if parameter.data.nbytes % self._peers.world == 0 and parameter.data.is_contiguous():
            self._layers[place].take(parameter, self._peers.rank, self._peers.world)

    @property
    def shared_bytes(self) -> int:
        """Bytes of the weights that are shared out, of all processes together."""
        return sum(len(part) for layer in self._layers for _storage, part in layer.parts) * self._peers.world

    def hook(self) -> None:
        """Have each layer's weights gathered before it computes, forward and backward, and released after it."""
        self._layers = [layer for layer in self._layers if layer.parts]
        for place, layer in enumerate(self._layers):
            layer.module.register_forward_pre_hook(self._before(place), with_kwargs=True)
            layer.module.register_forward_hook(self._after(place), always_call=True)

    @contextmanager
    def by_first_alone(self) -> Iterator[None]:
        """Inside, the first process alone computes; the others enter it at the same time, and leave once it has left.

        Whatever it computes, and however often: it tells them which weights it needs. What it raises does not reach
        them, and they leave as ever, unless it `has_broken_off`.
        """
        self._release_all_but()
        if not self._peers.is_first:
            while (place := self._told(_NONE)) != _NONE:
                self._layers[place].gather(self._peers)
                self._layers[place].release()
            yield
            return
        self._alone = True
        try:
            yield
        finally:
            self._alone = False
            if not self.has_broken_off:
                self._release_all_but()
                self._told(_NONE)

    def _told(self, place: int) -> int:
        """The layer that the first process needs next."""
        (told,) = self._peers.highest(float(place))
        return int(told)

    def _begin(self, place: int) -> None:
        if not self._layers[place].is_gathered:
            if self._alone:
                self._told(place)
            self.has_broken_off = True
            self._layers[place].gather(self._peers)
            self.has_broken_off = False

    def _gather(self, place: int) -> None:
        """Have a layer's weights here, and those of the layer that comes next on their way."""
        following = place + (-1 if _is_backward() else 1)
        layer = self._layers[place]
        if not (0 <= following < len(self._layers) and self._layers[following].siblings == layer.siblings):
            following = place
        self._release_all_but(place, following)
        self._begin(place)
        self._begin(following)
        layer.wait()

    def _release_all_but(self, *places: int) -> None:
        for place, layer in enumerate(self._layers):
            if layer.is_gathered and place not in places:
                layer.release()

    def _before(self, place: int) -> Callable[..., Any]:
        def before(module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
            self._gather(place)
            # The way back leaves the layer here.
            if arguments:
                return (_BeforeLayer.apply(arguments[0], self._layers[place]), *arguments[1:]), options
            hidden = _BeforeLayer.apply(options["hidden_states"], self._layers[place])
            return arguments, {**options, "hidden_states": hidden}

        return before

    def _after(self, place: int) -> Callable[..., Any]:
        def after(module: Any, arguments: Any, output: Any) -> Any:
            if not _is_backward():  # else the layer was computed again, and its way back begins now
                self._layers[place].release()
            if isinstance(output, tuple):
                return (_AfterLayer.apply(output[0], self, place), *output[1:])
            return output if output is None else _AfterLayer.apply(output, self, place)

        return after


class _BeforeLayer(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped
    """Passes a layer's input on; on the way back the layer's weights are released, as it needs them no more."""

    @staticmethod
    def forward(context: Any, hidden: Any, layer: _Layer) -> Any:
        context.layer = layer
        return hidden.view_as(hidden)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        context.layer.release()
        return gradients[0], None


class _AfterLayer(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped
    """Passes a layer's output on; on the way back the layer's weights are gathered."""

    @staticmethod
    def forward(context: Any, hidden: Any, shards: Shards, place: int) -> Any:
        context.shards, context.place = shards, place
        return hidden.view_as(hidden)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        context.shards._gather(context.place)
        return gradients[0], None, None


def _is_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


@contextmanager
def shared_as_loaded(peers: Peers) -> Iterator[Shards]:
    """Of a model that transformers loads inside, each process keeps its part of the weights as soon as they are read.

    None ever holds more than one weight whole. `Shards.hook` must follow before the model computes.
    """
    from transformers import core_model_loading, modeling_utils

    shards = Shards(peers)
    set_parameter, warm_up = core_model_loading.set_param_for_module, modeling_utils.caching_allocator_warmup

    def set_part(model: Any, name: str, value: Any, loading_info: Any, quantizer: Any) -> None:
        set_parameter(model, name, value, loading_info, quantizer)
        shards.take(model, name, quantized=quantizer is not None)

    earlier = os.environ.get(_READ_IN_ORDER)
    core_model_loading.set_param_for_module = set_part
    # It would take room for the whole model.
    modeling_utils.caching_allocator_warmup = lambda *_arguments, **_options: None
    os.environ[_READ_IN_ORDER] = "1"  # or weights are read ahead, onto the card
    try:
        yield shards
    finally:
        core_model_loading.set_param_for_module = set_parameter
        modeling_utils.caching_allocator_warmup = warm_up
        os.environ.pop(_READ_IN_ORDER)
        if earlier is not None:
            os.environ[_READ_IN_ORDER] = earlier
