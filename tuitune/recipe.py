"""The recipe: everything one run needs, as validated data that is read from and written to YAML."""

import difflib
import re
from functools import reduce
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from tuitune.errors import UnusableInput
from tuitune.language import N_, Sentence, _
from tuitune.method_sections import METHODS, SFT, MethodSection, Section, fields_of
from tuitune.paths import expanded
from tuitune.recipe_sections import (
    DATASET_SUFFIXES,
    HUB,
    DataSection,
    ExportSection,
    LoraSection,
    ModelSection,
    SamplesSection,
    TrainSection,
)
from tuitune.reward_sections import REWARDS
from tuitune.text import one_line


class Recipe(Section):
    """Everything a run needs; paths are absolute once it has been loaded from a file."""

    model: ModelSection
    data: DataSection
    method: MethodSection = SFT()
    lora: LoraSection = LoraSection()
    train: TrainSection = TrainSection()
    samples: SamplesSection = SamplesSection()
    export: ExportSection = ExportSection()

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
                raise UnusableInput(
                    "The recipe {path} is a pipe, socket or device: save it in a file, and give that.", path=path
                )
            if path.suffix.lower() in {*DATASET_SUFFIXES} - {".json"} and path.is_file():  # JSON is YAML, too
                raise UnusableInput(
                    "{path} is a dataset, not a recipe: name it as data.path in a recipe, or start `tuitune` alone and "
                    "choose it there.",
                    path=path,
                )
            with path.open(encoding="utf-8-sig") as file:
                text = file.read(_MOST_CHARACTERS + 1)
            if len(text) > _MOST_CHARACTERS:
                raise UnusableInput(
                    "The recipe {path} is longer than a million characters: give the path of a recipe.", path=path
                )
            raw = yaml.safe_load(text)
        except FileNotFoundError:
            raise UnusableInput("There is no recipe at {path}: give the path of a .yaml file.", path=path) from None
        except IsADirectoryError:
            raise UnusableInput("{path} is a folder: give the path of a .yaml recipe inside it.", path=path) from None
        except (OSError, UnicodeDecodeError) as error:
            raise UnusableInput(
                "The recipe {path} cannot be read ({reason}): give a text file in UTF-8 that you may read.",
                code="the-recipe-cannot-be-read",
                path=path,
                reason=one_line(error),
            ) from None
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            mark = getattr(error, "problem_mark", None)
            problem = one_line(getattr(error, "problem", None) or error, max_length=200)
            if mark:
                raise UnusableInput(
                    "The recipe {path}, line {line} is not valid YAML: {problem}.",
                    path=path,
                    line=mark.line + 1,
                    problem=problem,
                ) from None
            raise UnusableInput("The recipe {path} is not valid YAML: {problem}.", path=path, problem=problem) from None
        return cls.from_data(raw, source=str(path), folder=path.resolve().parent, changes=changes)

    @classmethod
    def from_data(
        cls, raw: Any, *, source: str | None = None, folder: Path | None = None, changes: list[str] | None = None
    ) -> Self:
        """Validate plain data as a recipe; `source` is named in errors, relative paths are taken from `folder`."""
        named = _("recipe") if source is None else _("recipe {file}", file=source)
        if not isinstance(raw, dict):
            raise UnusableInput(
                "The {named} must hold the sections model and data, as `name: value` pairs.", named=named
            )
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
            raise UnusableInput(
                "The {named} cannot be used: {problem}.", named=named, problem=listed(field_errors(error))
            ) from None
        train = recipe.train
        rows = train.per_device_train_batch_size * train.gradient_accumulation_steps
        if problem := recipe.method.problem_of_step(rows):
            raise UnusableInput("The {named} cannot be used: {problem}.", named=named, problem=problem)
        try:
            return recipe.with_absolute_paths(folder) if folder else recipe
        except OSError as error:  # a name too long for any file system, or a loop of links
            raise UnusableInput(
                "A path in the {named} cannot be used ({reason}).", named=named, reason=error.strerror
            ) from None

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
        raise UnusableInput(
            "The {named} is nested too deeply: write its fields as `name: value` pairs.", named=named
        ) from None
    if count > _MOST_VALUES:
        raise UnusableInput(
            "The {named} holds more than {most:,} values once its aliases (*name) are unfolded: "
            "write out what they stand for.",
            named=named,
            most=_MOST_VALUES,
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
    "int_parsing": N_("should be a whole number"),
    "int_type": N_("should be a whole number"),
    "int_from_float": N_("should be a whole number"),
    "float_parsing": N_("should be a number"),
    "float_type": N_("should be a number"),
    "finite_number": N_("should be a finite number"),
    "bool_parsing": N_("should be true or false"),
    "bool_type": N_("should be true or false"),
    "string_type": N_("should be text"),
    "list_type": N_("should be a list"),
    "tuple_type": N_("should be a list"),
    "dict_type": N_("should be `name: value` pairs"),
    "model_type": N_("should be a section of `name: value` pairs"),
    "model_attributes_type": N_("should be a section of `name: value` pairs"),
}
"""What pydantic's kinds of error ask for, in a user's words."""
_BOUNDS = (
    N_("should be greater than or equal to {value}"),
    N_("should be greater than {value}"),
    N_("should be less than or equal to {value}"),
    N_("should be less than {value}"),
    N_("string should match pattern {value}"),
    N_("string should have at least 1 character"),
    N_("list should have at least 1 item after validation, not 0"),
)
"""How pydantic words a bound."""


def field_errors(error: ValidationError, model: type[BaseModel] | None = None) -> dict[str, str]:
    """Dotted field name to what is wrong with its value and what is allowed, in `model` or else in a recipe."""
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
        shown = one_line(repr(value), max_length=60)
        problem: str
        if reward and item["type"] == "extra_forbidden":
            allowed = list(REWARDS[str(item["loc"][4])].model_fields)
            problem = _("{name} is not an option of that reward (allowed: {allowed})", name=name, allowed=allowed)
        elif reward and item["type"].startswith("union_tag"):
            problem = _("{name} is {value} but should be one of {words}", name=name, value=shown, words=list(REWARDS))
        elif item["type"] == "extra_forbidden" and (others := _methods_with(chosen and location[-1])):
            problem = _(
                "{name} is a field of {methods}, and method.name is {method}",
                name=name,
                methods=others,
                method=chosen,
            )
        elif item["type"] == "extra_forbidden":
            problem = _unknown_field(name, location, model, chosen)
        elif item["type"] == "missing":
            problem = _("{name} is missing", name=name)
        else:
            problem = _("{name} is {value} but {reason}", name=name, value=shown, reason=_reason(item))
        problems[name] = problem
    return problems


def listed(problems: dict[str, str]) -> str:
    """What is wrong with several fields, one behind the other."""
    return reduce(lambda first, rest: _("{first}; {rest}", first=first, rest=rest), problems.values())


def _reason(item: Any) -> str:
    """What is wrong with a value, as the end of a sentence: a validator's own words, else what pydantic asks for."""
    validator = item.get("ctx", {}).get("error")
    if isinstance(validator, ValueError) and isinstance(validator.args[0], Sentence):
        return validator.args[0]
    if item["type"] == "union_tag_invalid":
        return _("should be one of {words}", words=list(METHODS))
    if item["type"] in _PLAINLY:
        return _(_PLAINLY[item["type"]])
    text = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    text = text[:1].lower() + text[1:]
    if item["type"] == "literal_error":
        *others, last = re.split(", | or ", text.removeprefix("should be "))
        return _("should be {words} or {last}", words=others, last=last) if others else _("should be {word}", word=last)
    for pattern in _BOUNDS:
        if text.startswith(before := pattern.partition("{")[0]):
            return _(pattern, value=text.removeprefix(before))
    return text


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


def _unknown_field(name: str, location: tuple[int | str, ...], model: type[BaseModel] | None, method: str) -> str:
    """That there is no such field, and which ones there are."""
    section = str(location[0]) if len(location) > 1 else None
    allowed = _fields(section, model, method)
    if close := _closest(str(location[-1]), allowed):
        if model is None:
            return _("{name} is not a recipe field; did you mean {close}?", name=name, close=close)
        return _("{name} is not a field of the settings; did you mean {close}?", name=name, close=close)
    if model is None:
        return _("{name} is not a recipe field (allowed: {allowed})", name=name, allowed=allowed)
    return _("{name} is not a field of the settings (allowed: {allowed})", name=name, allowed=allowed)


def _closest(name: str, fields: list[str]) -> str | None:
    """The field that is abbreviated so (`lr`: learning_rate), or else the one that is spelled most like it."""
    for field in fields:
        if "_" in field and name.lower() == "".join(word[:1] for word in field.split("_")):
            return field
    return next(iter(difflib.get_close_matches(name, fields, n=1)), None)


def _parse_change(change: str) -> tuple[str, str, Any]:
    name, equals, text = change.partition("=")
    name = name.strip()
    if not equals:
        raise UnusableInput(
            "--set {change}: write it as field=value, for example max_steps=5.", change=one_line(change, max_length=80)
        )
    section, dot, field = name.partition(".")
    if not dot:
        field = name
        holders = [section for section in _fields(None) if field in _fields(section)]
        if len(holders) != 1:
            raise _not_one_field(name, holders)
        section = holders[0]
    elif section not in _fields(None):
        raise UnusableInput(
            "--set {name}: not one recipe field; sections are {fields}.",
            code="set-sections-are",
            name=one_line(name, max_length=80),
            fields=_fields(None),
        )
    try:
        return section, field, yaml.safe_load(text)
    except yaml.YAMLError:
        return section, field, text


def _not_one_field(name: str, holders: list[str]) -> UnusableInput:
    """Of `--set` with a field's bare name, which several sections have, or none."""
    shown = one_line(name, max_length=80)
    if holders:
        fields = [f"{section}.{name}" for section in holders]
        return UnusableInput("--set {name}: not one recipe field; say which: {fields}.", name=shown, fields=fields)
    every = [field for section in _fields(None) for field in _fields(section)]
    if close := _closest(name, every):
        return UnusableInput("--set {name}: not one recipe field; did you mean {close}.", name=shown, close=close)
    return UnusableInput("--set {name}: not one recipe field; its fields are in RECIPE.md.", name=shown)


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
