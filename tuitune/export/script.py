"""Export the run as a standalone training script: Unsloth's own calls, the recipe's values, the very rows."""

import ast
from collections.abc import Sequence
from pathlib import Path
from string import Template

from tuitune.errors import UnusableInput
from tuitune.export.notebook import notebook
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run
from tuitune.text import safe_text
from tuitune.train.arguments import settled_arguments
from tuitune.train.methods import learner_of

_LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes")

_SCRIPT = Template('''\
"""Train the adapter of the run $title again, without tuitune.

    pip install -r requirements.txt
    python train.py

Reads rows.parquet beside it: $rows.
Writes the adapter to ./adapter. $libraries
"""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")

$unsloth

from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import $auto_class, AutoTokenizer, BitsAndBytesConfig
$imports

HERE = Path(__file__).parent
MODEL, REVISION = $model, $revision
LOAD_IN_4BIT, LOAD_IN_8BIT = $load_in_4bit, $load_in_8bit
CHAT_TEMPLATE = $chat_template  # for a tokenizer that has none$new_tokens
GRADIENT_CHECKPOINTING = $gradient_checkpointing
LORA = dict(
    r=$r,
    lora_alpha=$lora_alpha,
    lora_dropout=$lora_dropout,
    target_modules=$target_modules,
    bias=$bias,
    use_rslora=$use_rslora,
    use_dora=$use_dora,
    modules_to_save=$modules_to_save,
)

on_gpu = torch.cuda.is_available()
bf16 = on_gpu and torch.cuda.get_device_capability()[0] >= 8
tokenizer = AutoTokenizer.from_pretrained(MODEL, revision=REVISION, trust_remote_code=False)
if CHAT_TEMPLATE is not None:
    tokenizer.chat_template = CHAT_TEMPLATE
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
$add_tokens
if FastLanguageModel is not None:
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every new length
    model, _ = FastLanguageModel.from_pretrained(
        MODEL,
        revision=REVISION,
        max_seq_length=$max_length,
        load_in_4bit=LOAD_IN_4BIT,
        load_in_8bit=LOAD_IN_8BIT,
        load_in_16bit=not (LOAD_IN_4BIT or LOAD_IN_8BIT),
        use_exact_model_name=True,
        trust_remote_code=False,
        random_state=$seed,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        **LORA,
        use_gradient_checkpointing="unsloth" if GRADIENT_CHECKPOINTING else False,
        random_state=$seed,
        max_seq_length=$max_length,
    )
else:
    if on_gpu:
        dtype = torch.bfloat16 if bf16 else torch.float16
    else:  # unquantised weights stay as exact as they are trained
        dtype = torch.bfloat16 if LOAD_IN_4BIT and torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    quantization = {}
    if LOAD_IN_4BIT:
        quantization["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if LOAD_IN_8BIT:
        quantization["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    model = $auto_class.from_pretrained(
        MODEL,
        revision=REVISION,
        dtype=dtype,
        device_map={"": "cuda:0" if on_gpu else "cpu"},
        use_safetensors=True,
        trust_remote_code=False,
        **quantization,
    )
$add_rows    if quantization:
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=GRADIENT_CHECKPOINTING,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    torch.manual_seed($seed)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA$trained_rows))
$head
rows = load_dataset("parquet", data_files=str(HERE / "rows.parquet"), split="train")
arguments = $config(
    output_dir=str(HERE / "checkpoints"),
$arguments
    optim=$optim if on_gpu else "adamw_torch",
    use_cpu=not on_gpu,
    bf16=bf16,
    fp16=on_gpu and not bf16,
    gradient_checkpointing=GRADIENT_CHECKPOINTING,
    save_strategy="no",
)
$definitions
trainer = $trainer
for parameter in model.parameters():  # TRL turns a quantised base's adapter to bf16, which rounds updates away
    if parameter.requires_grad:
        parameter.data = parameter.data.float()
if FastLanguageModel is not None:
    FastLanguageModel.for_training(model, use_gradient_checkpointing="unsloth" if GRADIENT_CHECKPOINTING else False)
trainer.train()
model.save_pretrained(HERE / "adapter"$saving)
tokenizer.save_pretrained(HERE / "adapter")
''')


_UNSLOTH = """\
try:
    from unsloth import FastLanguageModel  # before transformers, trl and peft, which it patches
except (ImportError, NotImplementedError):
    FastLanguageModel = None"""
_NO_UNSLOTH = "FastLanguageModel = None  # the rows of new tokens are trained by PEFT's own layers"
_ADD_TOKENS = """\
parts = [tokenizer.encode(text, add_special_tokens=False) for text in NEW_TOKENS]
tokenizer.add_tokens([AddedToken(text, normalized=False) for text in NEW_TOKENS])
new_ids = tokenizer.convert_tokens_to_ids(NEW_TOKENS)
"""
_ADD_ROWS = """\
    if max(new_ids) >= len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(max(new_ids) + 1, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):  # each begins as the mean of its parts
        means = torch.stack([layer.weight[part].float().mean(0) for part in parts])
        layer.weight.data[new_ids] = means.to(layer.weight.dtype)
"""
_HEAD = """\
    model.get_output_embeddings().bias = None  # TRL's loss asks for it
"""


def write_script(run: Run, folder: Path, *, as_notebook: bool = False) -> None:
    """Write train.py or train.ipynb, rows.parquet, requirements.txt, recipe.yaml and what the method needs.

    `folder` is made. Raises UnusableInput where the data or the tokenizer can no longer be read.
    """
    from tuitune.data.prepare import prepare
    from tuitune.model.config import load_tokenizer

    recipe = run.resolved()
    require_repeatable(recipe)
    part = learner_of(recipe).script_part(recipe)
    rows = prepare(recipe, load_tokenizer(recipe.model)).train
    folder.mkdir()
    rows.to_parquet(str(folder / "rows.parquet"))
    for name, source in part.files.items():
        (folder / name).write_text(source, encoding="utf-8")
    text = script(recipe, run.name)
    if as_notebook:
        (folder / "train.ipynb").write_text(notebook(text, safe_text(run.name)), encoding="utf-8")
    else:
        (folder / "train.py").write_text(text, encoding="utf-8")
    (folder / "requirements.txt").write_text(requirements(run, part.libraries))
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")


def require_repeatable(recipe: Recipe) -> None:
    """Refuse a run that the script could not repeat. Raises UnusableInput."""
    if recipe.lora.init_lora_weights == "loftq":
        raise UnusableInput(
            "A script cannot repeat a run with lora.init_lora_weights: loftq; `tuitune run` with its recipe can."
        )
    if recipe.lora.init_adapter is not None:
        raise UnusableInput(
            "A script cannot repeat a run that begins with an adapter (lora.init_adapter); "
            "`tuitune run` with its recipe can."
        )
    if recipe.model.new_tokens and recipe.lora.modules_to_save:
        raise UnusableInput(
            "A script cannot repeat a run with new tokens and layers that are trained whole (lora.modules_to_save); "
            "`tuitune run` with its recipe can."
        )
    from tuitune.model.config import load_config, training_config

    own, trained = load_config(recipe.model).get_text_config(), training_config(recipe).get_text_config()
    if own.to_dict() != trained.to_dict():
        raise UnusableInput(
            "A script cannot repeat a run whose data.max_length is beyond the model's own context; "
            "`tuitune run` with its recipe can."
        )


def script(recipe: Recipe, title: str) -> str:
    """The text of train.py; values are written as Python literals, so that none of them is ever run as code."""
    from tuitune.backends.new_rows import trained_rows
    from tuitune.backends.transformers import uses_checkpointing
    from tuitune.chat_template.named import TEMPLATES
    from tuitune.model.config import auto_class, load_config
    from tuitune.model.targets import resolve
    from tuitune.plan.memory import empty_model

    model, lora, train = recipe.model, recipe.lora, recipe.train
    empty = empty_model(recipe)
    values = {
        **lora.model_dump(),
        **train.model_dump(),
        "model": model.name,
        "revision": model.revision or "main",
        "load_in_4bit": model.load_in_4bit,
        "load_in_8bit": model.load_in_8bit,
        "chat_template": TEMPLATES[model.chat_template] if model.chat_template else None,
        "max_length": recipe.data.max_length,
        "target_modules": resolve(empty, recipe).as_unsloth(),
        "modules_to_save": list(lora.modules_to_save) or None,
        "gradient_checkpointing": uses_checkpointing(recipe, empty.num_parameters()),
        "optim": "adamw_torch_fused" if train.optim == "auto" else train.optim,
    }
    literals = {name: repr(value) for name, value in values.items()}
    literals["auto_class"] = auto_class(load_config(model)).__name__
    literals |= _new_tokens(recipe, list(trained_rows(empty, recipe) or ()))
    part = learner_of(recipe).script_part(recipe)
    arguments = {**settled_arguments(recipe), **part.arguments}
    literals["arguments"] = "\n".join(f"    {name}={value!r}," for name, value in arguments.items())
    for name in ("imports", "definitions", "config", "trainer", "rows", "saving"):
        literals[name] = getattr(part, name)
    if model.new_tokens:
        literals["imports"] = f"from transformers import AddedToken\n{literals['imports']}"
        literals["saving"] += ", save_embedding_layers=False"
    shown = safe_text(title).replace("\\", "/").replace('"', "'")
    text = _SCRIPT.substitute(literals, title=shown)
    ast.parse(text)
    return text


def _new_tokens(recipe: Recipe, layers: list[str]) -> dict[str, str]:
    """The parts of the script that new tokens change; their rows are trained in the layers of these names."""
    names = ("new_tokens", "add_tokens", "add_rows", "trained_rows", "head")
    if not recipe.model.new_tokens:
        libraries = "On an NVIDIA GPU it uses Unsloth; without one, plain transformers and PEFT."
        return {**dict.fromkeys(names, ""), "unsloth": _UNSLOTH, "libraries": libraries}
    indices = ", ".join(f"{layer!r}: new_ids" for layer in layers)
    texts = f"\nNEW_TOKENS = {list(recipe.model.new_tokens)!r}"
    parts = (texts, _ADD_TOKENS, _ADD_ROWS, f", trainable_token_indices={{{indices}}}", _HEAD)
    return {
        **dict(zip(names, parts, strict=True)),
        "unsloth": _NO_UNSLOTH,
        "libraries": "It uses plain transformers and PEFT.",
    }


def requirements(run: Run, further: Sequence[str] = ()) -> str:
    """The versions that the run was made with, from its environment.json, else those installed here."""
    from importlib.metadata import PackageNotFoundError, version

    recorded = run.libraries()
    lines = []
    for name in (*_LIBRARIES, *further):
        try:
            installed = recorded.get(name) or version(name)
        except PackageNotFoundError:
            continue
        lines.append(f"{name}=={str(installed).partition('+')[0]}")
    if unsloth := recorded.get("unsloth"):
        lines.append(f"unsloth=={unsloth}")
    return "\n".join(lines) + "\n"
