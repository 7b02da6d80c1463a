"""The model that is trained as transformers' own modules on the same weights, for steps that must be short.

Training code (Unsloth's kernels, PEFT's wrappers, weights in 4-bit) is made for long rows. A decoder computes one token
a sequence thousands of times, so it wants plain matrix products, whose kernels a CUDA graph can hold.
"""

import contextlib
import copy
import functools
import importlib.util
import sys
from types import ModuleType
from typing import Any

import torch
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn import functional as F

from tuitune.backends.loaded import LoadedModel
from tuitune.errors import TuituneError
from tuitune.text import one_line

_ATTENTION = "tuitune"
_SHARE_FOR_COPIES = 0.5
"""Of the free GPU memory, what 16-bit copies of 4-bit weights may take."""


class NotPlain(TuituneError):
    """The model cannot be decoded by its plain modules; the message says why."""


class PlainModel:
    """A causal language model on the weights of `loaded.model`, its adapter beside them and never merged.

    `module` is called like any transformers model. The base's weights are shared, or where they are in 4-bit copied
    once in the dtype that they are computed in; the adapter's are copied into the same place by `refresh`.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        """Raises NotPlain for an architecture whose layers hold other states than keys and values."""
        base = loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model
        self.config = base.config
        self.windows = _windows(base)
        self.device: torch.device = loaded.model.device
        self.own_modules = False
        """Whether some layers are the training's own modules, which need its autocast and its adapter switch."""
        self.dtype = _computed_in(base)
        self._loaded = loaded
        self._linears: list[_Linear] = []
        self._copies = self.device.type != "cuda" or _copies_fit(base)
        with _without_weights():
            self.module: Any = _plain_class(base, replaced=loaded.backend.name == "unsloth")(
                _attending_here(base.config)
            )
        self._fill(base)
        self.module.eval()
        self.module.requires_grad_(False)

    def refresh(self, *, adapter: bool = True) -> None:
        """Take over the adapter's weights of this moment, or none of them."""
        for linear in self._linears:
            linear.refresh(adapter)

    def _fill(self, base: Any) -> None:
        """Give each module of the plain model the weights of its twin."""
        for path, module in list(self.module.named_modules()):
            if isinstance(module, nn.Linear):
                self._replace(path, self._linear(base.get_submodule(path)))
                continue
            if not module._parameters and not module._buffers:
                continue
            twin = base.get_submodule(path)
            if isinstance(twin, AuxiliaryTrainingWrapper):
                self.own_modules = True
                self._replace(path, twin)
                continue
            for name in module._parameters:
                module._parameters[name] = twin._parameters[name] if name in twin._parameters else getattr(twin, name)
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(self.device)

    def _linear(self, twin: Any) -> nn.Module:
        linear = _Linear.of(twin, self.dtype, copies=self._copies, on_gpu=self.device.type == "cuda")
        if linear is None:
            self.own_modules = True
            return twin
        self._linears.append(linear)
        return linear

    def _replace(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        self.module.get_submodule(parent)._modules[name] = module


class _Linear(nn.Module):  # type: ignore[misc]  # torch is untyped
    """A frozen linear layer with its LoRA adapter beside it: y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ."""

    def __init__(self, weight: Tensor, bias: Tensor | None, lora: tuple[Tensor, Tensor, float] | None, dtype: Any):
        super().__init__()
        self._weight, self._bias = weight, bias
        self._source = lora
        if lora is not None:
            self._a = torch.empty_like(lora[0], dtype=dtype)
            self._b = torch.empty_like(lora[1], dtype=dtype)
            self._scale = lora[2]
        self.refresh(True)

    @classmethod
    def of(cls, twin: Any, dtype: Any, *, copies: bool, on_gpu: bool) -> "_Linear | None":
        """The layer of the training's module; None where that one does more than this class can."""
        lora = None
        layer = twin
        if hasattr(twin, "lora_A"):
            names = list(twin.active_adapters)
            if len(names) != 1 or twin.use_dora.get(names[0]) or twin.lora_bias.get(names[0]):
                return None
            layer = twin.get_base_layer()
            if names[0] in twin.lora_A:
                a, b = twin.lora_A[names[0]].weight, twin.lora_B[names[0]].weight
                lora = (a.detach(), b.detach(), float(twin.scaling[names[0]]))
        weight = getattr(layer, "weight", None)
        if weight is None or isinstance(twin, AuxiliaryTrainingWrapper):
            return None
        if getattr(weight, "quant_state", None) is not None:
            if not copies:
                return None
            from bitsandbytes.functional import dequantize_4bit

            weight = dequantize_4bit(weight.data, weight.quant_state).to(dtype)
        elif not weight.is_floating_point() or weight.element_size() == 1:
            return None
        elif on_gpu and weight.dtype != dtype:
            weight = weight.detach().to(dtype)
        bias = getattr(layer, "bias", None)
        return cls(weight.detach(), None if bias is None else bias.detach(), lora, dtype if on_gpu else torch.float32)

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is untyped
    def refresh(self, adapter: bool) -> None:
        if self._source is not None:
            self._a.copy_(self._source[0])
            self._b.copy_(self._source[1]) if adapter else self._b.zero_()

    @property
    def weight(self) -> Tensor:
        """What models read to learn the dtype and device."""
        return self._weight

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(self._weight.dtype)
        bias = None if self._bias is None else self._bias.to(rows.dtype)
        y = F.linear(rows, self._weight, bias)
        if self._source is not None:
            if y.dtype == self._a.dtype:
                y = torch.addmm(y, F.linear(rows, self._a), self._b.t(), alpha=self._scale)
            else:  # an adapter in fp32 on a base that is computed in bf16
                low = F.linear(x.reshape(-1, x.shape[-1]).to(self._a.dtype), self._a)
                y = torch.addmm(y.to(self._a.dtype), low, self._b.t(), alpha=self._scale)
        return y.view(*x.shape[:-1], -1).to(x.dtype)


def _windows(base: Any) -> list[int | None]:
    """Each layer's sliding window, None for all that was before. Raises NotPlain."""
    config = base.config
    name = one_line(getattr(config, "model_type", type(base).__name__), max_length=60)
    if config.get_text_config() is not config:
        raise NotPlain("{name} is a model of more than text", name=name)
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    other = set(kinds) - {"full_attention", "sliding_attention"}
    if other:
        raise NotPlain("{name} has layers of the kind {kind}", name=name, kind=one_line(min(other), max_length=60))
    if not type(base)._supports_sdpa:
        raise NotPlain("{name} attends in a way of its own", name=name)
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _plain_class(base: Any, *, replaced: bool) -> Any:
    """transformers' class of the model; read anew from its file where a library has `replaced` parts of it."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    folder = model_type_to_module_name(base.config.model_type)
    name = f"transformers.models.{folder}.modeling_{folder}"
    try:
        module = _read_anew(name) if replaced else importlib.import_module(name)
        return getattr(module, type(base).__name__)
    except (ImportError, AttributeError) as error:
        raise NotPlain(
            "transformers has no {kind} in {module} ({reason})",
            kind=type(base).__name__,
            module=name,
            reason=one_line(error),
        ) from error


def _read_anew(name: str) -> ModuleType:
    alias = f"{name}_as_published"
    if alias in sys.modules:
        return sys.modules[alias]
    published = importlib.util.find_spec(name)
    if published is None or published.origin is None:
        raise ImportError(f"there is no {name}")
    spec = importlib.util.spec_from_file_location(alias, published.origin)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise
    return module


def _attending_here(config: Any) -> Any:
    """The config with attention as `attend` does it, which transformers then knows by its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, attend)
    config = copy.deepcopy(config)
    config._attn_implementation = _ATTENTION
    config.use_cache = True
    return config


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, with a mask of booleans; (rows, tokens, heads, width) and no weights.

    One token's queries go to their group of keys without these being copied for each query head.
    """
    rows, heads, tokens, width = query.shape
    groups = key.shape[1]
    if tokens > 1:
        key, value = (x.repeat_interleave(heads // groups, dim=1) for x in (key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
        return attended.transpose(1, 2).contiguous(), None
    scale = width**-0.5 if scaling is None else scaling
    folded = query.reshape(rows * groups, heads // groups, width)
    scores = _products_in_fp32(folded, key.reshape(rows * groups, -1, width).transpose(1, 2))
    scores = scores.view(rows, groups, heads // groups, -1) * scale
    weights = scores.masked_fill(~attention_mask, -torch.inf).softmax(-1).to(value.dtype)
    return (weights @ value).reshape(rows, 1, heads, value.shape[-1]), None


def _products_in_fp32(left: Tensor, right: Tensor) -> Tensor:
    """Batched matrix products, neither of whose sums is rounded to 16 bits."""
    if left.is_cuda and left.dtype != torch.float32 and _bmm_widens(left.dtype):
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())


@functools.cache
def _bmm_widens(dtype: Any) -> bool:
    """Whether torch multiplies matrices of that dtype into fp32 on this card."""
    try:
        square = torch.ones(1, 8, 8, dtype=dtype, device="cuda")
        return bool(torch.bmm(square, square, out_dtype=torch.float32).dtype == torch.float32)
    except (NotImplementedError, RuntimeError, TypeError):
        return False


def _without_weights() -> Any:
    """Modules made inside have buffers, and parameters that take no memory."""
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    stack = contextlib.ExitStack()
    stack.enter_context(no_init_weights())
    stack.enter_context(init_empty_weights(include_buffers=False))
    return stack


def _computed_in(base: Any) -> Any:
    """The dtype of the base's matrix products."""
    for module in base.modules():
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        if state is not None:
            return getattr(module, "compute_dtype", None) or state.dtype
    dtype = base.get_input_embeddings().weight.dtype
    if base.device.type == "cuda" and dtype == torch.float32:
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return dtype


def _copies_fit(base: Any) -> bool:
    """Whether 16-bit copies of all 4-bit weights find room beside what training needs."""
    needed = 0
    for module in base.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            needed += 2 * state.shape.numel()
    free_bytes: int = torch.cuda.mem_get_info()[0]
    return needed < _SHARE_FOR_COPIES * free_bytes
