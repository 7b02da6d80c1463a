"""Which method a run has is asked of its object: no file outside the methods' own packages compares its name."""

import ast
from pathlib import Path

import pytest

from tuitune import method_sections
from tuitune.method_sections import METHODS
from tuitune.methods import METHODS as LEARNED_FROM
from tuitune.train.methods import LEARNERS

ROOT = Path(method_sections.__file__).parent.parent
OWN = ("tuitune/methods", "tuitune/train/methods", "tuitune/method_sections.py")
SECTIONS = {kind.__name__ for kind in METHODS.values()}


def questions(source: str) -> list[int]:
    """Lines that ask which method there is: a comparison, `match` or prefix with a name, or isinstance of a section."""
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "tuitune.method_sections"
        for alias in node.names
        if alias.name in SECTIONS
    }
    return sorted({node.lineno for node in ast.walk(tree) if _asks(node, imported)})  # type: ignore[attr-defined]


def _asks(node: ast.AST, sections: set[str]) -> bool:
    if isinstance(node, ast.Compare):
        return any(_names_a_method(side) for side in (node.left, *node.comparators)) and not _is_loss(node.left)
    if isinstance(node, ast.Match):
        return any(_names_a_method(case.pattern) for case in node.cases) and not _is_loss(node.subject)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
        kinds = {ast.unparse(part) for part in ast.walk(node.args[1]) if isinstance(part, ast.Name | ast.Attribute)}
        return bool(kinds & (sections | {f"method_sections.{name}" for name in SECTIONS}))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in ("startswith", "endswith") and any(map(_names_a_method, node.args))
    return False


def _names_a_method(node: ast.AST) -> bool:
    return any(
        isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.lower() in METHODS
        for part in ast.walk(node)
    )


def _is_loss(node: ast.AST) -> bool:
    """Losses have the names of methods too."""
    return ast.unparse(node).endswith("loss_type")


@pytest.mark.parametrize(
    "source",
    [
        'recipe.method.name != "grpo"',
        'name in ("sft", "pretrain")',
        'run.method.startswith("GRPO")',
        "from tuitune.method_sections import GRPO\nisinstance(recipe.method, GRPO)",
        "from tuitune.method_sections import DPO as Section\nisinstance(recipe.method, (int, Section))",
        "isinstance(recipe.method, method_sections.KTO)",
        'match name:\n    case "dpo" | "kto":\n        pass',
    ],
)
def test_a_question_after_the_method_is_seen(source: str) -> None:
    assert questions(source)


def test_no_file_outside_the_methods_asks_which_one_it_is() -> None:
    files = [*ROOT.glob("tuitune/**/*.py"), *ROOT.glob("screens/**/*.py")]
    asking = [
        f"{name}:{line}"
        for file in files
        if not (name := file.relative_to(ROOT).as_posix()).startswith(OWN)
        for line in questions(file.read_text())
    ]
    assert len(files) > 200 and not asking


def test_every_method_has_its_section_its_rows_and_its_training() -> None:
    assert METHODS.keys() == LEARNED_FROM.keys() == LEARNERS.keys()
