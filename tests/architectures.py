"""Tiny models of every architecture that tuitune is tried on, made in seconds with the demo model's tokenizer.

    from tests.architectures import ARCHITECTURES, build
    folder = build("qwen3_5", tmp_path)

Two to ten million random weights each, large enough (standard deviation 0.1) that attention decides what comes out, so
that a row which sees another row's tokens shows. Widths are multiples of 64, as 4-bit weights and GPU kernels like.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import sample_data

_DECODER: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
_HEAD = {"head_dim": 64}
_WINDOW = {**_HEAD, "sliding_window": 64}
_GEMMA = {**_WINDOW, "query_pre_attn_scalar": 64}
_GEMMA_4 = {**_WINDOW, "global_head_dim": 128, "hidden_size_per_layer_input": 64, "num_kv_shared_layers": 0}
_GATED_DELTA = {
    **_HEAD,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "full_attention_interval": 4,
}
_EXPERTS = {**_HEAD, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
_PATCHES = {**_TOWER, "image_size": 56, "patch_size": 14}
_GEMMA_4_PATCHES = {**_TOWER, "num_key_value_heads": 2, "head_dim": 32, "global_head_dim": 32, "patch_size": 14}
_PIXTRAL = {"vision_config": {"model_type": "pixtral", **_PATCHES, "head_dim": 32}, "spatial_merge_size": 2}

# Name to the class of its config, the decoder's own sizes, and what stands beside the decoder in a multimodal config.
_CONFIGS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "llama": ("LlamaConfig", {}, None),
    "mistral": ("MistralConfig", {**_HEAD, "sliding_window": None}, None),
    "mistral_window": ("MistralConfig", _WINDOW, None),
    "ministral3": ("Ministral3Config", _HEAD, None),
    "mistral3": ("Mistral3Config", {"model_type": "mistral", **_HEAD, "sliding_window": None}, _PIXTRAL),
    "qwen2": ("Qwen2Config", {}, None),
    "qwen3": ("Qwen3Config", _HEAD, None),
    "qwen3_moe": ("Qwen3MoeConfig", _EXPERTS, None),
    "qwen3_5_text": ("Qwen3_5TextConfig", _GATED_DELTA, None),
    "qwen3_5": (
        "Qwen3_5Config",
        _GATED_DELTA,
        {
            "vision_config": {
                "depth": 2,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_heads": 2,
                "out_hidden_size": 256,
            }
        },
    ),
    "gemma2": ("Gemma2Config", _GEMMA, None),
    "gemma3_text": ("Gemma3TextConfig", _GEMMA, None),
    "gemma3": ("Gemma3Config", _GEMMA, {"vision_config": _PATCHES, "mm_tokens_per_image": 4}),
    "gemma4_text": ("Gemma4TextConfig", _GEMMA_4, None),
    "gemma4": ("Gemma4Config", {"model_type": "gemma4_text", **_GEMMA_4}, {"vision_config": _GEMMA_4_PATCHES}),
    "phi3": ("Phi3Config", {}, None),
    "gpt_oss": ("GptOssConfig", {**_WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}, None),
    "smollm3": ("SmolLM3Config", {}, None),
    "granite": (
        "GraniteConfig",
        {"attention_multiplier": 0.125, "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0},
        None,
    ),
    "olmo3": ("Olmo3Config", {"sliding_window": 64}, None),
    "cohere2": ("Cohere2Config", _WINDOW, None),
    "glm4": ("Glm4Config", _HEAD, None),
    "falcon_h1": (
        "FalconH1Config",
        {"mamba_d_ssm": 256, "mamba_n_heads": 4, "mamba_d_head": 64, "mamba_d_state": 16, "mamba_chunk_size": 64},
        None,
    ),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"] * 2}, None),
}
ARCHITECTURES: tuple[str, ...] = tuple(_CONFIGS)


def architecture(name: str) -> str:
    """The `model_type` of the tiny model `name`, by which proven.yaml and models.yaml in tuitune/plan call it."""
    return name.removesuffix("_window")


def build(name: str, folder: Path, *, seed: int = 0, sizes: dict[str, Any] | None = None, device: str = "cpu") -> Path:
    """Write the tiny model `name` (one of ARCHITECTURES) with its tokenizer into `folder`; gives the folder.

    `sizes` are fields of the decoder's config to make it another size, `device` is where the weights are drawn.
    """
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(sample_data.__file__).parent / "demo_model")
    config = _config(name, tokenizer, sizes or {})
    kind = (
        transformers.AutoModelForImageTextToText
        if hasattr(config, "text_config")
        else transformers.AutoModelForCausalLM
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = kind.from_config(config, dtype=torch.bfloat16)
        with torch.no_grad():
            for weight_name, weight in model.named_parameters():
                if weight.dim() >= 2 and "norm" not in weight_name:
                    weight.normal_(std=0.08 if weight_name.endswith(("embed_tokens.weight", "lm_head.weight")) else 0.1)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _config(name: str, tokenizer: Any, sizes: dict[str, Any]) -> Any:
    import transformers

    kind, own, around = _CONFIGS[name]
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    decoder = {**_DECODER, "vocab_size": -(-len(tokenizer) // 64) * 64, **tokens, **own, **sizes}
    if name.startswith("gemma4"):
        decoder["vocab_size_per_layer_input"] = decoder["vocab_size"]
    config: Callable[..., Any] = getattr(transformers, kind)
    return config(**decoder) if around is None else config(text_config=decoder, **around)
