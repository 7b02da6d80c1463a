"""A recipe is read with defaults, written back equal, and refused in one sentence that names the field."""

import os
import re
from pathlib import Path

import pytest

from tuitune.errors import UnusableInput
from tuitune.recipe import Recipe, reference

MINIMAL = "model: {name: some/model}\ndata: {path: chats.jsonl}\n"


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


NESTED = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(30))


def test_what_never_ends_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """Pipes and devices, files without end, and aliases that unfold to 9 ** 29 values."""
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero")):
        with pytest.raises(UnusableInput, match="is a pipe, socket or device: save it in a file"):
            Recipe.load(path)
    with pytest.raises(UnusableInput, match="is longer than a million characters"):
        Recipe.load(write(tmp_path, f"{MINIMAL}# {'x' * 1_000_000}"))
    for text in (f"{NESTED}{MINIMAL}", f"{NESTED}model: {{name: *a29}}\ndata: {{path: x}}\n"):
        with pytest.raises(UnusableInput, match=r"values once its aliases \(\*name\) are unfolded"):
            Recipe.load(write(tmp_path, text))
    flat = "{" + ", ".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]" for n in range(30)) + "}"
    with pytest.raises(UnusableInput, match="are unfolded"):
        Recipe.load(write(tmp_path, MINIMAL), [f"data.columns={flat}"])


def test_a_dataset_in_place_of_the_recipe_is_known(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Hi", "answer": "Ahoy"}\n' * 2)
    with pytest.raises(UnusableInput, match=r"rows\.jsonl is a dataset, not a recipe: name it as data\.path"):
        Recipe.load(rows)


def test_two_fields_are_enough(tmp_path: Path) -> None:
    recipe = Recipe.load(write(tmp_path, MINIMAL))
    assert recipe.model.load_in_4bit
    assert recipe.lora.r == recipe.lora.lora_alpha == 16
    assert recipe.data.path == str(tmp_path / "chats.jsonl")
    assert recipe.model.name == "some/model"


def test_a_model_folder_beside_the_recipe_becomes_absolute(tmp_path: Path) -> None:
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert Recipe.load(write(tmp_path, MINIMAL)).model.name == str(tmp_path / "some" / "model")


def test_written_yaml_reads_back_equal(tmp_path: Path) -> None:
    recipe = Recipe.load(write(tmp_path, MINIMAL), ["learning_rate=1e-4", "data.columns={user: q, assistant: a}"])
    assert recipe.train.learning_rate == 1e-4
    assert Recipe.load(write(tmp_path, recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: {name: x}\ndata: {path: y}\nlora: {rnk: 8}\n", "lora.rnk is not a recipe field"),
        ("modle: {name: x}\n", "did you mean model?"),
        ("model: {}\ndata: {path: y}\n", "model.name is missing"),
        ("model: {name: x}\ndata: {path: y}\ntrain: {learning_rate: fast}\n", "train.learning_rate is 'fast'"),
        ("model: {name: x}\ndata: {path: y}\ntrain: {learning_rate: .nan}\n", "train.learning_rate is nan"),
        ("model: {name: x}\ndata: {path: y}\ntrain: {max_steps: 0}\n", "train.max_steps is 0"),
        ("just text\n", "must hold the sections model and data"),
        ("model: {name: [\n", "line 2 is not valid YAML"),
        ("\x00", "not valid YAML"),
        ("", "must hold the sections"),
        ("a: &a [*a]\n", "a is not a recipe field"),
    ],
)
def test_a_wrong_recipe_is_one_sentence_that_names_the_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UnusableInput) as caught:
        Recipe.load(write(tmp_path, text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("max_steps", "write it as field=value"),
        ("learning_rat=1", "did you mean learning_rate."),
        ("lr=1", "did you mean learning_rate."),
        ("lora.q=1", "lora.q is not a recipe field"),
        ("nowhere.r=1", "sections are model, data, method, lora, train, samples"),
    ],
)
def test_a_wrong_change_is_refused(tmp_path: Path, change: str, says: str) -> None:
    with pytest.raises(UnusableInput, match=re.escape(says)):
        Recipe.load(write(tmp_path, MINIMAL), [change])


def test_a_home_that_nobody_has_is_a_folder_that_is_not_there(tmp_path: Path) -> None:
    recipe = Recipe.load(
        write(tmp_path, "model: {name: ~nobody-at-all/model}\ndata: {path: ~nobody-at-all/rows.jsonl}")
    )
    assert Path(recipe.data.path).name == "rows.jsonl" and "~nobody-at-all" in recipe.model.name


def test_a_missing_recipe_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="There is no recipe at"):
        Recipe.load(tmp_path / "none.yaml")
    with pytest.raises(UnusableInput, match="is a folder"):
        Recipe.load(tmp_path)


def test_the_reference_tells_every_field_as_it_is() -> None:
    written = (Path(__file__).parents[2] / "RECIPE.md").read_text()
    assert written == reference(), "run `python -m tuitune.recipe > RECIPE.md`"
    assert "None |" not in written, "a field without a docstring"
