"""Names inside libraries that are no promise of theirs, and what breaks where a new version drops one."""

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest


def _attribute(path: str) -> Any:
    """What a dotted path names: `package.module:Class.attribute`."""
    module, _, names = path.partition(":")
    member = importlib.import_module(module)
    for name in names.split("."):
        member = getattr(member, name)
    return member


@pytest.mark.parametrize(
    ("path", "breaks"),
    [
        ("transformers.modeling_utils:log_state_dict_report", "weights missing from a model's files are not noticed"),
        ("transformers.utils.loading_report:LoadStateDictInfo.missing_and_mismatched", "the same"),
        ("transformers.utils.logging:set_tqdm_hook", "loading weights shows no progress, and draws on the terminal"),
        ("transformers.utils.chat_template_utils:_compile_jinja_template", "chat templates run without our limits"),
        ("transformers.utils.chat_template_utils:render_jinja_template", "the same"),
        ("transformers.modeling_utils:PreTrainedModel._tied_weights_keys", "a merge with tied weights is refused"),
        ("transformers.core_model_loading:set_param_for_module", "cards that share weights load them whole first"),
        ("transformers.modeling_utils:caching_allocator_warmup", "the same"),
        ("torch:_C._current_graph_task_id", "shared weights are gone where a backward pass computes a layer again"),
        ("torch.distributed:ProcessGroupGloo._allgather_base", "weights cannot be shared by several processes"),
        ("torch.compiler:set_stance", "architectures without Unsloth's own kernels compile for minutes"),
        ("torch:ops.mkldnn._is_mkldnn_bf16_supported", "4-bit models on a CPU compute in the wrong type"),
        ("torch:ops.aten._flash_attention_forward", "rows laid end to end lose their kernel on torch before 2.12"),
        ("torch:ops.aten._flash_attention_backward", "the same"),
        ("bitsandbytes.functional:dequantize_4bit", "LoftQ cannot tell what 4-bit loses"),
        ("transformers:Trainer._prepare_inputs", "each pass waits until its rows are on the GPU"),
        ("transformers:Trainer._clip_grad_norm", "the whole model is gone through in each step"),
        ("transformers:Trainer.floating_point_ops", "the whole model is gone through in each pass"),
        ("transformers:Trainer._track_num_input_tokens", "counting a pass's tokens waits for the GPU"),
        ("transformers:Trainer._save_checkpoint", "a full disk ends a run although old checkpoints could give way"),
        ("textual.app:App._driver", "titles and notifications do not reach the terminal"),
    ],
)
def test_a_name_inside_a_library_is_there(path: str, breaks: str) -> None:
    try:
        _attribute(path)
    except AttributeError:
        if path != "textual.app:App._driver":  # it is set when an app is made
            pytest.fail(f"{path} is gone: {breaks}.")
        from textual.app import App

        assert hasattr(App(), "_driver"), breaks


@pytest.mark.parametrize(
    ("path", "parameter", "breaks"),
    [
        ("transformers.modeling_utils:log_state_dict_report", "loading_info", "missing weights are not noticed"),
        ("trl:SFTConfig", "router_aux_loss_coef", "mixtures of experts are trained on a second loss"),
        ("trl:SFTConfig", "dataset_kwargs", "rows are masked a second time"),
        ("transformers:TrainingArguments", "train_sampling_strategy", "padded rows are not grouped by length"),
        ("transformers:TrainingArguments", "include_num_input_tokens_seen", "no speed is told"),
        ("transformers:Trainer._maybe_log_save_evaluate", "tr_loss", "the GPU stands still while a loss is told"),
        ("transformers:Trainer._maybe_log_save_evaluate", "grad_norm", "the same"),
    ],
)
def test_a_parameter_inside_a_library_is_there(path: str, parameter: str, breaks: str) -> None:
    assert parameter in inspect.signature(_attribute(path)).parameters, breaks


def test_the_trainer_knows_the_step_that_it_has_logged_last() -> None:
    """By it the loss that it adds up is begun anew; else a step's loss would be told with those before it."""
    from transformers import Trainer

    source = inspect.getsource(Trainer._maybe_log_save_evaluate)
    assert "_globalstep_last_logged" in source and "tr_loss -= tr_loss" in source


def test_a_4_bit_layer_on_a_cpu_can_be_kept_as_it_was_loaded() -> None:
    """Else bitsandbytes rewrites the weights at the first reply, and training goes on from others."""
    from bitsandbytes.nn import Linear4bit

    assert hasattr(Linear4bit(64, 64), "support_avx512bf16_for_cpu")


_UNSLOTH: list[tuple[str, str, str]] = [
    ("unsloth/utils/attention_dispatch.py", "_TORCH_VARLEN_ATTN", "rows end to end attend one by one on older torch"),
    ("unsloth/utils/attention_dispatch.py", "def _torch_varlen_packed(", "the notice names the wrong kernel"),
    ("unsloth/utils/attention_dispatch.py", "def _sdpa_packed_segments(", "the notice names the wrong kernel"),
    ("unsloth/utils/hf_packed_attention.py", "HF_PACKED_ATTENTION_STATS", "the notice names the wrong kernel"),
    ("unsloth/utils/hf_packed_attention.py", "def enable_hf_packed_attention(", "rows attend through a dense mask"),
    ("unsloth/utils/packing.py", "def patch_hybrid_linear_attention_varlen(", "Qwen 3.5 is padded"),
    ("unsloth/trainer.py", "PADDING_FREE_BLOCKLIST", "models known to mix rows are tried end to end first"),
    ("unsloth/models/vision.py", "torch_compiler_set_stance", "the trainer sets compiling back on"),
    ("unsloth/models/vision.py", "def post_patch_model(", "saved adapters of many architectures do not load"),
    ("unsloth/models/vision.py", '"UNSLOTH_USE_NEW_MODEL"', "saved adapters are patched for another architecture"),
    ("unsloth/models/_block_compile.py", '"UNSLOTH_BLOCK_COMPILE"', "whole layers compile for minutes"),
    ("unsloth/models/_utils.py", '"UNSLOTH_FLEX_ATTENTION_FOR_LARGE_HEAD_DIM"', "attention is held in memory whole"),
    ("unsloth/models/rl.py", "def _patch_trl_rl_trainers(", "all trainers are rewritten, which takes a minute"),
]


@pytest.mark.parametrize(("file", "text", "breaks"), _UNSLOTH, ids=lambda value: value if len(value) < 60 else "")
def test_a_name_inside_unsloth_is_there(file: str, text: str, breaks: str) -> None:
    """Its source is read, as it can be imported beside an NVIDIA GPU alone."""
    spec = importlib.util.find_spec("unsloth")
    if spec is None or spec.origin is None:
        pytest.skip("Unsloth is not installed")
    source = (Path(spec.origin).parents[1] / file).read_text(encoding="utf-8")
    assert text in source, f"{text} is gone from {file}: {breaks}."
