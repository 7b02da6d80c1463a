"""What goes beside every export: a model card for people and a mark that says what it was made from."""

import hashlib
import json
import textwrap
from pathlib import Path
from typing import Any

from tuitune.atomic import write_atomic
from tuitune.errors import UnusableInput
from tuitune.model.config import auto_class, load_config, training_config
from tuitune.paths import open_file
from tuitune.recipe import Recipe
from tuitune.runs.events import Finished
from tuitune.runs.folder import Run
from tuitune.text import one_line, safe_text

MARK = "tuitune_export.json"

_USE = {
    "adapter": """\
        from peft import PeftModel
        from transformers import {auto_class}, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(".")
        {config}base = {auto_class}.from_pretrained({base!r}{given}, dtype="auto")
        {rows}model = PeftModel.from_pretrained(base, ".")
    """,
    "merged_16bit": """\
        from transformers import {auto_class}, AutoTokenizer

        model = {auto_class}.from_pretrained(".", dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(".")
    """,
}
_USE["merged_4bit"] = _USE["merged_16bit"]
_WHAT = {
    "adapter": "A LoRA adapter for",
    "merged_16bit": "A merged 16-bit model, fine-tuned with LoRA from",
    "merged_4bit": "A merged model in 4-bit (nf4, by bitsandbytes), fine-tuned with LoRA from",
}
# An adapter that began with LoftQ belongs to the 4-bit weights.
_IN_4BIT = """\
        import torch
        from peft import PeftModel
        from transformers import {auto_class}, AutoTokenizer, BitsAndBytesConfig

        in_4bit = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        tokenizer = AutoTokenizer.from_pretrained(".")
        {config}base = {auto_class}.from_pretrained({base!r}{given}, quantization_config=in_4bit)
        {rows}model = PeftModel.from_pretrained(base, ".")
"""
# An adapter with new tokens has their rows; the base has no place for them yet.
_ROWS = """\
rows = max(len(base.get_input_embeddings().weight), 1 + max(tokenizer.get_vocab().values()))
base.resize_token_embeddings(rows, mean_resizing=False)
"""
_REPLY = """\

        messages = [{"role": "user", "content": "Hello!"}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        reply = model.generate(**prompt, max_new_tokens=128)[0, prompt["input_ids"].shape[1] :]
        print(tokenizer.decode(reply, skip_special_tokens=True))
"""


def model_card(run: Run, kind: str) -> str:
    """The README.md of an exported folder: base model, how to load it, and the whole recipe."""
    recipe = run.resolved()
    front = {
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lora", recipe.method.name, "tuitune"],
    }
    base = one_line(recipe.model.name)
    description = _WHAT[kind]
    loftq = kind == "adapter" and recipe.lora.init_lora_weights == "loftq"
    config = _longer_context(recipe) if kind == "adapter" else ""
    use = textwrap.dedent(_IN_4BIT if loftq else _USE[kind]).format(
        base=recipe.model.name,
        auto_class=_auto_class(recipe),
        config=config,
        rows=_ROWS if recipe.model.new_tokens else "",
        given=_revision(recipe) + (", config=config" if config else ""),
    ) + textwrap.dedent(_REPLY)
    # JSON is YAML, and cannot be broken out of by what a name holds.
    return "\n".join(
        [
            "---",
            *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
            "---",
            "",
            f"# {one_line(run.name)}",
            "",
            f"{description} `{base.replace('`', ' ')}`, made with tuitune{_weights_of(run)}.",
            "",
            "## Use",
            "",
            "In this folder:",
            "",
            textwrap.indent(safe_text(use), "    "),
            *_adapted(run),
            *_batched(run),
            "## Recipe",
            "",
            textwrap.indent(safe_text(recipe.to_yaml()), "    "),
        ]
    )


def _weights_of(run: Run) -> str:
    """Which step's weights these are, where they are not those of the run's end."""
    ending = run.history().ended
    adapter_step = ending.adapter_step if isinstance(ending, Finished) else None
    step = run.checkpoint.removeprefix("checkpoint-") or adapter_step
    return f" (the weights after {step} steps)" if step else ""


def _adapted(run: Run) -> list[str]:
    """The layers that the adapter was on, where the run's record names them."""
    plan = run.history().plan
    if plan is None or not plan.target_modules:
        return []
    names = ", ".join(f"`{one_line(name)}`" for name in plan.target_modules)
    return ["## Adapted layers", "", names, ""]


def _auto_class(recipe: Recipe) -> str:
    try:
        return str(auto_class(load_config(recipe.model)).__name__)
    except UnusableInput:  # the base can no longer be read here
        return "AutoModelForCausalLM"


def _batched(run: Run) -> list[str]:
    """How rows were put into batches and what was measured of it before the first step, where the record tells."""
    plan = run.history().plan
    if plan is None or not plan.batches or not plan.isolation:
        return []
    isolation = plan.isolation
    leak = abs(isolation.get("leak", 0.0))
    effect = (
        "left the loss of the others as it was, to the last bit" if not leak else f"changed the others' by {leak:.2g}"
    )
    text = (
        f"Rows were {'laid ' if plan.batches == 'end to end' else ''}{plan.batches} "
        f"(attention: {one_line(plan.attention)}). Checked on this model and its own rows before the first step: "
        f"changing one row {effect}; the gradient of a batch had a cosine of "
        f"{isolation.get('gradient_cosine', float('nan')):.5f} with that of its rows alone."
    )
    return ["## Batches", "", *textwrap.wrap(text, 110), ""]


def _longer_context(recipe: Recipe) -> str:
    """Python that gives the base the context it was trained with, where that is longer than its own."""
    try:
        text = training_config(recipe).get_text_config()
    except UnusableInput:  # the base can no longer be read here
        return ""
    if (getattr(text, "rope_parameters", None) or {}).get("rope_type") != "linear":
        return ""
    return (
        "from transformers import AutoConfig\n\n"
        f"config = AutoConfig.from_pretrained({recipe.model.name!r}{_revision(recipe)})\n"
        f"config.rope_parameters = {text.rope_parameters!r}\n"
        f"config.max_position_embeddings = {text.max_position_embeddings}\n"
    )


def _revision(recipe: Recipe) -> str:
    """The argument for the base's revision, where the run has one."""
    return f", revision={recipe.model.revision!r}" if recipe.model.revision else ""


def fingerprint(run: Run) -> str:
    """SHA-256 over the adapter's weights and configuration: what an export of this run is an export of."""
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        digest.update((run.adapter / name).read_bytes())
    return digest.hexdigest()


def gguf_card(run: Run, kind: str, file: str, proof: str) -> str:
    """The README.md that goes with a GGUF file to the Hub."""
    base = one_line(run.resolved().model.name)
    front = {"library_name": "gguf", "pipeline_tag": "text-generation", "tags": ["gguf", "lora", "tuitune"]}
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
        "---",
        "",
        f"# {one_line(run.name)}",
        "",
        f"A GGUF ({kind.partition(':')[2]}) of `{base.replace('`', ' ')}`, fine-tuned with LoRA, made with tuitune.",
        "",
        f"    llama-cli --jinja -m {file}",
        "",
        *(["## Compared with the adapter", "", *textwrap.wrap(safe_text(proof), 110), ""] if proof else []),
        "## Recipe",
        "",
        textwrap.indent(safe_text(run.resolved().to_yaml()), "    "),
    ]
    return "\n".join(lines)


def beside_gguf(path: Path) -> list[Path]:
    """What lies beside an exported GGUF file and belongs to it: its mark and its figures."""
    return [file for file in (_mark_of(path), path.with_name(f"{path.name}.parity.json")) if file.is_file()]


def say_in_card(folder: Path, proof: str) -> None:
    """Add to the model card of an exported folder, where it has one, how the export was proven."""
    card = folder / "README.md"
    if proof and card.is_file():
        section = "\n".join(["", "## Compared with the adapter", "", *textwrap.wrap(safe_text(proof), 110), ""])
        card.write_text(card.read_text(encoding="utf-8") + section, encoding="utf-8")


def mark(export: Path, run: Run, kind: str, proof: str = "") -> None:
    """Write into an exported folder, or beside a GGUF file, what it is, which adapter it was made from, and how it
    compares with that."""
    model = run.resolved().model
    fields: dict[str, Any] = {"kind": kind, "run": run.name, "base": model.name, "adapter_sha256": fingerprint(run)}
    fields["proof"] = proof
    if model.new_tokens:
        fields["new_tokens"] = list(model.new_tokens)
    if export.suffix == ".gguf":
        fields["bytes"] = str(export.stat().st_size)
    write_atomic(_mark_of(export), json.dumps(fields, indent=2) + "\n")


def marked(export: Path) -> dict[str, Any] | None:
    """What `mark` wrote, or None where it is not an export."""
    try:
        with open_file(_mark_of(export)) as file:
            fields = json.load(file)
    except (OSError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None


def is_ours(export: Path) -> bool:
    """Whether what lies there, a file, folder or link, is an export: the mark beside a GGUF also knows its size."""
    fields = marked(export)
    try:
        bytes_now = str(export.stat().st_size)
    except OSError:
        return False
    return fields is not None and (export.suffix != ".gguf" or fields.get("bytes", bytes_now) == bytes_now)


def _mark_of(export: Path) -> Path:
    return export.with_name(f".{export.name}.{MARK}") if export.suffix == ".gguf" else export / MARK
