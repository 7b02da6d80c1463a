"""Named chat templates, for tokenizers that come without one."""

from typing import Any

from tuitune.errors import UnusableInput
from tuitune.language import N_

_TURNS = "{% for m in messages %}"
_END = "{% endfor %}"


def _by_role(system: str, user: str, assistant: str, prompt: str, start: str = "{{ bos_token }}") -> str:
    """A template that writes each role's turn in one way; `%` stands for the content."""

    def written(text: str) -> str:
        prefix, _percent, suffix = text.partition("%")
        return f"{prefix}{{{{ m['content'] }}}}{suffix}"

    return (
        f"{start}{_TURNS}{{% if m['role'] == 'system' %}}{written(system)}"
        f"{{% elif m['role'] == 'assistant' %}}{written(assistant)}{{% else %}}{written(user)}{{% endif %}}{_END}"
        f"{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    )


_HEADER = "<|start_header_id|>{role}<|end_header_id|>\n\n%<|eot_id|>"

TEMPLATES = {
    "chatml": _by_role(
        "<|im_start|>system\n%<|im_end|>\n",
        "<|im_start|>user\n%<|im_end|>\n",
        "<|im_start|>assistant\n%<|im_end|>\n",
        "<|im_start|>assistant\n",
        start="",
    ),
    "llama-3": _by_role(
        _HEADER.format(role="system"),
        _HEADER.format(role="user"),
        _HEADER.format(role="assistant"),
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "gemma": _by_role(
        "<start_of_turn>user\n%<end_of_turn>\n",
        "<start_of_turn>user\n%<end_of_turn>\n",
        "<start_of_turn>model\n%<end_of_turn>\n",
        "<start_of_turn>model\n",
    ),
    "mistral": _by_role("[INST] %[/INST]", "[INST] %[/INST]", " %{{ eos_token }}", ""),
    "phi-3": _by_role(
        "<|system|>\n%<|end|>\n", "<|user|>\n%<|end|>\n", "<|assistant|>\n%<|end|>\n", "<|assistant|>\n", start=""
    ),
    "phi-4": _by_role(
        "<|im_start|>system<|im_sep|>%<|im_end|>",
        "<|im_start|>user<|im_sep|>%<|im_end|>",
        "<|im_start|>assistant<|im_sep|>%<|im_end|>",
        "<|im_start|>assistant<|im_sep|>",
        start="",
    ),
    "zephyr": _by_role(
        "<|system|>\n%{{ eos_token }}\n",
        "<|user|>\n%{{ eos_token }}\n",
        "<|assistant|>\n%{{ eos_token }}\n",
        "<|assistant|>\n",
        start="",
    ),
    "vicuna": _by_role("% ", "USER: % ", "ASSISTANT: %{{ eos_token }}", "ASSISTANT:"),
    "alpaca": _by_role("%\n\n", "### Instruction:\n%\n\n", "### Response:\n%{{ eos_token }}\n\n", "### Response:\n"),
    "deepseek": _by_role("%", "<｜User｜>%", "<｜Assistant｜>%{{ eos_token }}", "<｜Assistant｜>"),
}

FOR = {
    "chatml": N_("Qwen, Yi, Hermes and many others; a good choice for any base model"),
    "llama-3": N_("Llama 3"),
    "gemma": N_("Gemma 2 and 3"),
    "mistral": N_("Mistral and Mixtral"),
    "phi-3": N_("Phi 3"),
    "phi-4": N_("Phi 4"),
    "zephyr": N_("Zephyr, TinyLlama"),
    "vicuna": N_("Vicuna; marks turns in plain words, USER and ASSISTANT"),
    "alpaca": N_("Alpaca; marks turns in plain words, ### Instruction"),
    "deepseek": N_("DeepSeek"),
}
"""Each template's models, in words for whoever has to choose one."""
"""Written from the formats' public descriptions; `assistant` turns end in a marker that the tokenizer must know."""


def require_template(tokenizer: Any) -> None:
    """Raises UnusableInput for a tokenizer that has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise UnusableInput(
            "The tokenizer has no chat template: set model.chat_template to one of {templates}.",
            templates=", ".join(TEMPLATES),
        )


def give_template(tokenizer: Any, name: str) -> None:
    """Give a tokenizer without a chat template the named one. Raises UnusableInput where that does not fit."""
    if getattr(tokenizer, "chat_template", None):
        raise UnusableInput(
            "The tokenizer has a chat template of its own, which the model was trained with: remove "
            "model.chat_template from the recipe."
        )
    if "eos_token" in TEMPLATES[name] and not tokenizer.eos_token:
        raise UnusableInput(
            "The chat template {name} ends replies with the tokenizer's end token, and it has none: set "
            "model.chat_template to another, for example chatml.",
            name=name,
        )
    tokenizer.chat_template = TEMPLATES[name]
