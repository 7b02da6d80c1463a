"""The run's script as a Jupyter notebook: the same code in cells, with a few words before each."""

import json
from typing import Any

_CELLS: tuple[tuple[str, str], ...] = (
    (
        "import os",
        "## Libraries\n\nUnsloth on an NVIDIA GPU, plain transformers and PEFT elsewhere and for new tokens.",
    ),
    ("HERE = ", "## Settings\n\nThe values that the run was trained with."),
    ("on_gpu = ", "## Model and adapter\n\nThe base model, and fresh LoRA weights on its layers."),
    ("rows = ", "## Data\n\nThe run's own rows as token ids; a label of -100 is not trained."),
    ("for parameter in model.parameters()", "## Train"),
    ("model.save_pretrained(", "## Save the adapter"),
)
"""The line that each cell begins with, and what stands before it."""

_INSTALL = "%pip install -q -r requirements.txt"
_LOOK = 'print(tokenizer.decode(rows[0]["input_ids"])) if "input_ids" in rows.column_names else print(rows[0])'
_ASK = """\
if FastLanguageModel is not None:
    FastLanguageModel.for_inference(model)
messages = [{"role": "user", "content": "Hello!"}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
reply = model.generate(**prompt.to(model.device), max_new_tokens=64)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(reply, skip_special_tokens=True))
"""


def notebook(script: str, title: str) -> str:
    """The text of train.ipynb (nbformat 4.5) for the text of train.py."""
    body = script.split('"""', 2)[2].replace("Path(__file__).parent", "Path.cwd()")
    parts: list[list[str]] = [[]]
    headings = [""]
    cells_left = list(_CELLS)
    for line in body.strip("\n").splitlines():
        if cells_left and line.startswith(cells_left[0][0]):
            parts.append([])
            headings.append(cells_left.pop(0)[1])
        parts[-1].append(line)
    intro = (
        f"# {title}\n\nTrains the adapter of this run again, without tuitune. Keep `rows.parquet` and "
        "`requirements.txt` beside this notebook, and run the cells from top to bottom."
    )
    cells = [_words(intro), _code(_INSTALL)]
    for heading, lines in zip(headings, parts, strict=True):
        code = "\n".join(lines).strip("\n")
        if code:
            cells += [*([_words(heading)] if heading else []), _code(code)]
        if heading.startswith("## Data"):
            cells += [_words("One row as the model sees it:"), _code(_LOOK)]
    cells += [_words("## Ask it something"), _code(_ASK)]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    document = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _words(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def _code(text: str) -> dict[str, Any]:
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": text}
