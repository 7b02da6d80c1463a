"""The recipe: everything one run needs, as validated data that is read from and written to YAML."""

import difflib
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from tuitune.errors import UnusableInput
from tuitune.method_sections import METHODS, SFT, MethodSection, Section, fields_of
from tuitune.paths import expanded
from tuitune.reward_sections import REWARDS
from tuitune.text import one_line

TARGET_WORDS = ("auto", "attention", "all")


ChatTemplateName = Literal[
    "chatml", "llama-3", "gemma", "mistral", "phi-3", "phi-4", "zephyr", "vicuna", "alpaca", "deepseek"
]


class ModelSection(Section):
    """Which base model, and how its weights are held in memory."""

    name: str = Field(min_length=1)
    """A model folder or a Hugging Face Hub id."""
    load_in_4bit: bool = True
    """Hold the frozen base weights in 4-bit nf4 (QLoRA): about a quarter of the memory of 16-bit."""
    load_in_8bit: bool = False
    """Hold them in 8-bit instead (LLM.int8): set load_in_4bit to false with it."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    chat_template: ChatTemplateName | None = None
    """Named chat template, only for a tokenizer that has none."""
    backend: Literal["auto", "unsloth", "transformers"] = "auto"
    """What loads and trains the model: Unsloth on an NVIDIA GPU where it is installed, else plain transformers."""

    @model_validator(mode="after")
    def _one_precision(self) -> Self:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other: set one of them to false")
        return self


HUB = "hub:"


class SourceSection(Section):
    """One more dataset mixed into the training data."""

    path: str = Field(min_length=1)
    """The dataset file, or `hub:` and a Hugging Face dataset id."""
    weight: float = Field(1.0, gt=0, le=100)
    """How often each row is taken: 2 twice, 0.5 a seeded half of the rows."""
    columns: dict[str, str] | None = None
    """Role to column name, only where the format is not recognised."""
    config: str | None = None
    """Configuration of a Hub dataset."""
    split: str = Field("train", min_length=1)
    """Split of a Hub dataset; `train[:10%]` and `train[100:200]` take a part of one, or of a file."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""


class DataSection(Section):
    """Which conversations, and which of their tokens are trained."""

    path: str = Field(min_length=1)
    """The dataset file (JSONL, JSON, CSV, TSV, Parquet, Arrow), or `hub:` and a Hugging Face dataset id."""
    weight: float = Field(1.0, gt=0, le=100)
    """How often each row is taken: 2 twice, 0.5 a seeded half of the rows."""
    also: list[SourceSection] = Field([], max_length=64)
    """Further datasets mixed in, each with a path, weight, columns, config, split and revision of its own."""
    config: str | None = None
    """Configuration of a Hub dataset."""
    split: str = Field("train", min_length=1)
    """Split of a Hub dataset; `train[:10%]` and `train[100:200]` take a part of one, or of a file."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    columns: dict[str, str] | None = None
    """Role to column name (`user: question`), only where the format is not recognised."""
    max_length: int = Field(2048, ge=8, le=10_000_000)
    """Longest row in tokens."""
    over_length: Literal["cut", "drop", "split"] = "cut"
    """What becomes of a longer row: its end is cut, the row is left out, or it is split between its turns."""
    bad_rows: Literal["skip", "refuse"] = "skip"
    """Whether a row that cannot be used is left out and counted, or stops the run before training."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Which tokens are trained: every assistant reply, only the last one, or everything."""
    eval_share: float = Field(0.0, ge=0.0, le=0.5)
    """Share of the rows held out from training and used to measure the loss."""
    eval_path: str | None = Field(None, min_length=1)
    """A dataset file of its own to measure the loss on; its rows that are also in the training data are left out."""
    eval_split: str | None = Field(None, min_length=1)
    """Split of the Hub dataset, or part of the file (`train[90%:]`), to measure the loss on, treated like eval_path."""
    eval_revision: str | None = None
    """Branch, tag or commit of the Hub dataset that eval_path names, where that is another than path."""


class LoraSection(Section):
    """The adapter: the only weights that are trained."""

    r: int = Field(16, ge=1, le=4096)
    """Rank of the two small matrices added to each target module."""
    lora_alpha: float = Field(16, gt=0)
    """Scale of the adapter: its output is multiplied by lora_alpha / r."""
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of adapter inputs dropped during training."""
    target_modules: Literal["auto", "attention", "all"] | list[str] = "auto"
    """Linear layers that get an adapter: `auto` (those usual for the architecture), `attention`, `all`, or names."""
    bias: Literal["none", "lora_only", "all"] = "none"
    """Which biases are trained beside the adapter: none, those of the adapted layers, or all."""
    use_rslora: bool = False
    """Scale the adapter by lora_alpha / √r instead, which keeps high ranks learning (Kalajdzievski 2023)."""
    use_dora: bool = False
    """Train a magnitude beside the direction of each weight: slower, often better at low rank (Liu et al. 2024)."""
    init_lora_weights: Literal[True, "loftq"] = True
    """How the adapter begins: true changes nothing at first, loftq makes up for what 4-bit loses (Li et al. 2023)."""
    init_adapter: str | None = Field(None, min_length=1)
    """Folder of a saved adapter to begin with, of the same base model, layers and rank; `run --from RUN` sets it."""
    modules_to_save: list[str] = Field([])
    """Layers trained whole beside the adapter, such as embed_tokens and lm_head for a new language."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _word_or_names(cls, value: Any) -> Any:
        names = isinstance(value, list | tuple) and value and all(isinstance(name, str) and name for name in value)
        if not names and value not in TARGET_WORDS:
            raise ValueError(f"should be {', '.join(TARGET_WORDS)}, or a list of names such as [q_proj, v_proj]")
        return value


class TrainSection(Section):
    """How long and how fast to train."""

    max_steps: int = Field(60, ge=-1)
    """Optimizer steps; -1 trains for `num_train_epochs` instead."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the data, where `max_steps` is -1."""
    per_device_train_batch_size: int = Field(2, ge=1)
    """Rows in one forward pass."""
    gradient_accumulation_steps: int = Field(4, ge=1)
    """Forward passes in one optimizer step."""
    learning_rate: float = Field(2.0e-4, gt=0, le=1)
    """Peak step size of the optimizer; left out, it is the method's own (5e-6 for dpo)."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate changes over the run."""
    warmup_steps: int = Field(5, ge=0)
    """Steps over which the learning rate rises from 0."""
    weight_decay: float = Field(0.01, ge=0)
    """Pull of the adapter weights towards 0."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients longer than this are scaled down to it; 0 leaves them."""
    save_steps: int = Field(50, ge=1)
    """Steps between checkpoints."""
    eval_steps: Literal["auto"] | int = "auto"
    """Steps between measurements of the held-out loss, with replies: `auto` ten a run in 5% of its time, 0 none."""
    early_stopping_patience: Literal["auto"] | int = "auto"
    """Measurements in a row without gain that end the run: `auto` 3 on held-out rows in over two epochs, 0 never."""
    early_stopping_threshold: float = Field(0.0, ge=0)
    """By how much the held-out loss must fall below its best to count as a gain."""
    gpus: Literal["auto", "all"] | list[int] = "auto"
    """Cards that train together, as nvidia-smi numbers them: `auto` the one that was chosen, `all`, or a list."""
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field([])
    """Where the figures of each step are sent to as well, with whatever login that library has on this machine."""
    seed: int = Field(3407, ge=0, lt=2**32)
    """Start of every random choice: adapter weights, row order, the held-out rows."""
    optim: Literal["auto", "adamw_8bit", "adamw_torch_fused"] = "auto"
    """How the optimizer keeps its state: `auto` takes fp32 in one fused kernel, 8-bit where fp32 would be large."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations again in the backward pass: less memory, about a third slower."""
    padding_free: bool | None = None
    """Lay the rows of a batch end to end instead of padding them; empty does so where attention can."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the model's own parts with torch: minutes before the first step, for steps that are somewhat faster."""
    dequantize_once: bool | Literal["auto"] = "auto"
    """Keep the 16-bit values of 4-bit weights while training: a few percent faster, where memory has room for both."""
    cuda_graphs: bool | Literal["auto"] = "auto"
    """Capture small passes as CUDA graphs and replay them: `auto` where `fit` finds it faster within this run."""
    fit: bool = True
    """On a GPU, time a few ways to run the same steps before the first one, and take the fastest that fits."""

    @field_validator("eval_steps", "early_stopping_patience", mode="before")
    @classmethod
    def _auto_or_count(cls, value: Any) -> Any:
        if isinstance(value, str) and value.strip().isdecimal():
            return int(value)
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise ValueError("should be auto, or a whole number from 0 on")
        return value

    @field_validator("gpus", mode="before")
    @classmethod
    def _words_or_cards(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("auto", "all"):
            value = [part.strip() for part in value.split(",")]
            value = [int(part) if part.isdecimal() else part for part in value]
        if value in ("auto", "all"):
            return value
        numbers = isinstance(value, list | tuple) and all(type(card) is int and card >= 0 for card in value)
        if not numbers or len(value) < 2 or len(set(value)) < len(value):
            raise ValueError("should be auto, all, or the numbers of two cards or more, such as [0, 2]")
        return list(value)

    @field_validator("max_steps")
    @classmethod
    def _not_zero(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be at least 1, or -1 to train by epochs")
        return value


class SamplesSection(Section):
    """Prompts that the model answers before and after training, for the report."""

    prompts: list[str] = Field([], max_length=32)
    """The prompts; empty takes the first ones of the held-out rows, or of the data."""
    max_new_tokens: int = Field(128, ge=1, le=8192)
    """Longest reply in tokens."""


class Recipe(Section):
    """Everything a run needs; paths are absolute once it has been loaded from a file."""

    model: ModelSection
    data: DataSection
    method: MethodSection = SFT()
    lora: LoraSection = LoraSection()
    train: TrainSection = TrainSection()
    samples: SamplesSection = SamplesSection()

    @model_validator(mode="before")
    @classmethod
    def _learning_rate_of_the_method(cls, raw: Any) -> Any:
        """Write in the method's learning rate where none is given; the method is sft where none is named."""
        if not isinstance(raw, dict):
            return raw
        method, train = raw.get("method", {}), raw.get("train", {})
        if isinstance(method, dict) and "name" not in method:
            raw = {**raw, "method": {"name": "sft", **method}}
        if isinstance(train, dict) and "learning_rate" not in train:
            raw = {**raw, "train": {**train, "learning_rate": fields_of(_name_of(method)).usual_learning_rate}}
        return raw

    @classmethod
    def load(cls, path: Path | str, changes: list[str] | None = None) -> Self:
        """Read a YAML recipe; its relative paths are taken from the file's own folder.

        `changes` are ``field=value`` texts, applied before validation (`train.max_steps=5` or, where only one
        section has such a field, `max_steps=5`). Raises UnusableInput.
        """
        path = Path(path)
        try:
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise UnusableInput(f"The recipe {path} is a pipe, socket or device: save it in a file, and give that.")
            with path.open(encoding="utf-8-sig") as file:
                text = file.read(_MOST_CHARACTERS + 1)
            if len(text) > _MOST_CHARACTERS:
                raise UnusableInput(
                    f"The recipe {path} is longer than a million characters: give the path of a recipe."
                )
            raw = yaml.safe_load(text)
        except FileNotFoundError:
            raise UnusableInput(f"There is no recipe at {path}: give the path of a .yaml file.") from None
        except IsADirectoryError:
            raise UnusableInput(f"{path} is a folder: give the path of a .yaml recipe inside it.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UnusableInput(f"The recipe {path} cannot be read ({one_line(error)}).") from None
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            problem = one_line(getattr(error, "problem", None) or error, max_length=200)
            raise UnusableInput(f"The recipe {path}{line} is not valid YAML: {problem}.") from None
        return cls.from_data(raw, source=str(path), folder=path.resolve().parent, changes=changes)

    @classmethod
    def from_data(
        cls, raw: Any, *, source: str | None = None, folder: Path | None = None, changes: list[str] | None = None
    ) -> Self:
        """Validate plain data as a recipe; `source` is named in errors, relative paths are taken from `folder`."""
        named = "recipe" if source is None else f"recipe {source}"
        if not isinstance(raw, dict):
            raise UnusableInput(f"The {named} must hold the sections model and data, as `name: value` pairs.")
        raw = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
        for change in changes or []:
            if change.partition("=")[0].strip() == "method":  # another method has other fields: all of them go
                raw["method"] = {"name": change.partition("=")[2].strip()}
                continue
            section, field, value = _parse_change(change)
            target = raw.setdefault(section, {})
            if isinstance(target, dict):
                target[field] = value
        _require_few_values(raw, named)
        try:
            recipe = cls.model_validate(raw)
        except ValidationError as error:
            raise UnusableInput(f"The {named} cannot be used: {'; '.join(field_errors(error).values())}.") from None
        train = recipe.train
        rows = train.per_device_train_batch_size * train.gradient_accumulation_steps
        if problem := recipe.method.problem_of_step(rows):
            raise UnusableInput(f"The {named} cannot be used: {problem}.")
        try:
            return recipe.with_absolute_paths(folder) if folder else recipe
        except OSError as error:  # a name too long for any file system, or a loop of links
            raise UnusableInput(f"A path in the {named} cannot be used ({error.strerror}).") from None

    def with_absolute_paths(self, folder: Path) -> Self:
        """The same recipe with `data.path`, and `model.name` where it means a folder, made absolute from `folder`."""
        model, data = self.model, self.data
        named = expanded(model.name)
        if (folder / named).is_dir() or named.is_absolute() or model.name.startswith((".", "~")):
            model = model.model_copy(update={"name": str((folder / named).resolve())})

        def absolute(path: str) -> str:
            return path if path.startswith(HUB) else str((folder / expanded(path)).resolve())

        also = [source.model_copy(update={"path": absolute(source.path)}) for source in data.also]
        data = data.model_copy(update={"path": absolute(data.path), "also": also})
        if data.eval_path is not None:
            data = data.model_copy(update={"eval_path": absolute(data.eval_path)})
        lora = self.lora
        if lora.init_adapter is not None:
            lora = lora.model_copy(update={"init_adapter": absolute(lora.init_adapter)})
        method = self.method.with_rewards(lambda reward: reward.with_path(absolute))
        return self.model_copy(update={"model": model, "data": data, "method": method, "lora": lora})

    def to_yaml(self) -> str:
        """The whole recipe, defaults included, as YAML that `load` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _name_of(method: Any) -> str:
    """Name of the method in a section that may still be raw, or wrong in whatever way."""
    name = method.get("name", "sft") if isinstance(method, dict) else getattr(method, "name", "sft")
    return name if isinstance(name, str) else ""


_MOST_CHARACTERS = 1_000_000
_MOST_VALUES = 100_000


def _require_few_values(raw: Any, named: str) -> None:
    """Refuse data that YAML's aliases unfold to no end, before anything walks through it. Raises UnusableInput."""
    try:
        count = _unfolded(raw, {})
    except RecursionError:
        raise UnusableInput(f"The {named} is nested too deeply: write its fields as `name: value` pairs.") from None
    if count > _MOST_VALUES:
        raise UnusableInput(
            f"The {named} holds more than {_MOST_VALUES:,} values once its aliases (*name) are unfolded: "
            "write out what they stand for."
        )


def _unfolded(value: Any, counts: dict[int, int]) -> int:
    """How many values there are, each alias unfolded; `counts` holds those of lists and dictionaries by their id."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counts:
        counts[id(value)] = 1  # as long as it is counted, for one that holds itself
        counts[id(value)] = 1 + sum(
            _unfolded(inner, counts) for inner in (value.values() if isinstance(value, dict) else value)
        )
    return counts[id(value)]


_PLAINLY = {
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "string_type": "should be text",
    "list_type": "should be a list",
    "dict_type": "should be `name: value` pairs",
    "model_type": "should be a section of `name: value` pairs",
    "model_attributes_type": "should be a section of `name: value` pairs",
    "union_tag_invalid": f"should be one of {', '.join(METHODS)}",
}
"""What pydantic's kinds of error ask for, in a user's words."""


def field_errors(error: ValidationError, model: type[BaseModel] | None = None) -> dict[str, str]:
    """Dotted field name to what is wrong with its value and what is allowed, in `model` or else in a recipe."""
    kind = "recipe field" if model is None else "field of the settings"
    problems: dict[str, str] = {}
    for item in error.errors(include_url=False, include_context=True):
        location, value = item["loc"], item["input"]
        chosen = str(location[1]) if len(location) > 1 and location[0] == "method" else ""
        if chosen:  # pydantic names the section's kind behind it
            location = ("method", *location[2:])
        reward = location[:2] == ("method", "rewards")
        if item["type"] == "union_tag_invalid":
            location, value = (*location, "name") if reward else ("method", "name"), item["input"]["name"]
        elif reward and len(location) > 3:
            location = (*location[:3], *location[4:])
        name = one_line(".".join(str(part) for part in location), max_length=120)
        if reward and item["type"] == "extra_forbidden":
            allowed = ", ".join(REWARDS[str(item["loc"][4])].model_fields)
            problems[name] = f"{name} is not an option of that reward (allowed: {allowed})"
        elif reward and item["type"].startswith("union_tag"):
            problems[name] = (
                f"{name} is {one_line(repr(value), max_length=60)} but should be one of {', '.join(REWARDS)}"
            )
        elif item["type"] == "extra_forbidden" and (others := _methods_with(chosen and location[-1])):
            problems[name] = f"{name} is a field of {', '.join(others)}, and method.name is {chosen}"
        elif item["type"] == "extra_forbidden":
            problems[name] = f"{name} is not a {kind}{_suggestion(location, model or Recipe, chosen)}"
        elif item["type"] == "missing":
            problems[name] = f"{name} is missing"
        else:
            reason = _PLAINLY.get(item["type"]) or item["msg"].removeprefix("Value error, ").removeprefix("Input ")
            reason = reason[:1].lower() + reason[1:]
            problems[name] = f"{name} is {one_line(repr(value), max_length=60)} but {reason}"
    return problems


def _methods_with(field: str | int) -> list[str]:
    """The methods that have such a field."""
    return [name for name, kind in METHODS.items() if field in kind.model_fields]


def section_of(name: str, method: str = "") -> type[Section]:
    """The section of that name; that of `method` has its fields alone. Raises KeyError for another name."""
    if name == "method":
        return fields_of(method)
    kind = Recipe.model_fields[name].annotation
    assert isinstance(kind, type) and issubclass(kind, Section)
    return kind


def _fields(section: str | None, model: type[BaseModel] | None = None, method: str = "") -> list[str]:
    """Names of the fields in a section, or of the sections; those of every method where none is named."""
    fields = (model or Recipe).model_fields
    if section is None:
        return list(fields)
    if model is None and section == "method":
        kinds = [METHODS[method]] if method in METHODS else list(METHODS.values())
        return list(dict.fromkeys(name for kind in kinds for name in kind.model_fields))
    info = fields.get(section)
    kind = info.annotation if info else None
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _suggestion(location: tuple[int | str, ...], model: type[BaseModel], method: str) -> str:
    section = str(location[0]) if len(location) > 1 else None
    allowed = _fields(section, None if model is Recipe else model, method)
    close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
    return f"; did you mean {close[0]}?" if close else f" (allowed: {', '.join(allowed)})"


def _parse_change(change: str) -> tuple[str, str, Any]:
    name, equals, text = change.partition("=")
    name = name.strip()
    if not equals:
        raise UnusableInput(
            f"--set {one_line(change, max_length=80)}: write it as field=value, for example max_steps=5."
        )
    section, dot, field = name.partition(".")
    if not dot:
        field = name
        holders = [section for section in _fields(None) if field in _fields(section)]
        if len(holders) != 1:
            every = [name for holder in _fields(None) for name in _fields(holder)]
            close = difflib.get_close_matches(field, every, n=1)
            hint = f"did you mean {close[0]}" if close else "its fields are in README.md"
            hint = f"say which: {', '.join(f'{section}.{field}' for section in holders)}" if holders else hint
            raise UnusableInput(f"--set {one_line(name, max_length=80)}: not one recipe field; {hint}.")
        section = holders[0]
    elif section not in _fields(None):
        raise UnusableInput(f"--set {one_line(name, max_length=80)}: sections are {', '.join(_fields(None))}.")
    try:
        return section, field, yaml.safe_load(text)
    except yaml.YAMLError:
        return section, field, text


def reference() -> str:
    """Every recipe field with its default and meaning, as the Markdown of RECIPE.md."""
    lines = ["# Recipe reference", "", "Written by `python -m tuitune.recipe`. Fields without a default must be given."]
    sections: list[tuple[str, type[BaseModel]]] = [
        (section, section_of(section)) for section in Recipe.model_fields if section != "method"
    ]
    sections += [(f"method: {name}", kind) for name, kind in METHODS.items()]
    sections += [(f"reward: {name}", kind) for name, kind in REWARDS.items()]
    for section, model in sections:
        lines += ["", f"## {section}", "", str(model.__doc__), "", "| field | default | meaning |", "|---|---|---|"]
        for name, field in model.model_fields.items():
            default = field.get_default(call_default_factory=True)
            if name == "rewards":
                default = [{"name": reward.name} for reward in default]
            shown = (
                ""
                if field.is_required()
                else f"`{yaml.safe_dump(default, default_flow_style=True, width=999).split(chr(10))[0]}`"
            )
            lines.append(f"| `{name}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
