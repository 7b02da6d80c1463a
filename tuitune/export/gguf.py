"""Export one GGUF file: the merged model, converted by llama.cpp's own converter and opened again."""

import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuitune.chat_template.turn_end import end_of_turn_id, template_starts_with_bos
from tuitune.errors import TuituneError
from tuitune.export.child import ChildFailed, run_child
from tuitune.export.convert import REFUSED
from tuitune.model.config import reads_other_than_text
from tuitune.text import one_line

FILE_TYPES = {"f16": 1, "q8_0": 7}
"""GGUF's general.file_type (llama.cpp's llama_ftype)."""


def convert(
    merged: Path,
    made: Path,
    outtype: str,
    *,
    llama_cpp: Path,
    name: str,
    log: Path,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    """Write the merged model in folder `merged` as the GGUF file `made` and prove it. Raises TuituneError.

    `outtype` is `f16` or `q8_0`, `llama_cpp` the folder of llama.cpp's converter, `name` what runtimes show;
    the converter's output goes to `log`. An OSError says that the disk is full.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged, trust_remote_code=False)
    end = end_of_turn_id(tokenizer)
    driver = Path(__file__).with_name("convert.py")
    argv = [sys.executable, "-P", str(driver), str(llama_cpp), str(merged), str(made), outtype, name]
    argv += ["" if end is None else str(end), "1" if template_starts_with_bos(tokenizer) else "0"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run_child(
            argv,
            log,
            counted=re.compile(r"Writing: +(\d+)%"),
            progress=progress,
            cancelled=cancelled,
            environment=offline,
        )
    except ChildFailed as failed:
        reason = failed.last_line.rstrip(".")
        if failed.code == REFUSED:
            raise TuituneError(
                f"This model cannot become a GGUF: {reason}. Export merged_16bit, which transformers and vLLM run."
            ) from None
        if re.search(r"No space left on device|\d+ requested and \d+ written", reason):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise TuituneError(
            f"llama.cpp's converter could not write this model as GGUF ({reason}): export merged_16bit instead."
        ) from None
    prove(made, merged, outtype, tokenizer)


def prove(made: Path, merged: Path, outtype: str, tokenizer: Any) -> None:
    """Open the file again: whole, of this model, and with what ends a reply inside. Raises TuituneError."""
    from gguf import GGUFReader
    from transformers import AutoConfig

    try:
        reader = GGUFReader(made)
        arch = str(_field(reader, "general.architecture"))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise TuituneError(f"The GGUF cannot be opened again ({one_line(error, max_length=200)}).") from None
    config = AutoConfig.from_pretrained(merged, trust_remote_code=False).get_text_config()
    ends = {_field(reader, f"tokenizer.ggml.{each}_token_id") for each in ("eos", "eot")}
    weights = sum(int(tensor.n_elements) for tensor in reader.tensors if not tensor.name.startswith("rope_"))
    checks = {
        "file type": (_field(reader, "general.file_type"), FILE_TYPES[outtype]),
        "number of layers": (_field(reader, f"{arch}.block_count"), config.num_hidden_layers),
        "number of weights": (weights, _weights(merged)),
        "vocabulary size": (len(reader.fields["tokenizer.ggml.tokens"].data), config.vocab_size),
        "chat template": (_field(reader, "tokenizer.chat_template"), _template(tokenizer)),
        "end-of-turn token": (end_of_turn_id(tokenizer) in ends, True),
        "begin-of-text token": (
            bool(_field(reader, "tokenizer.ggml.add_bos_token")),
            template_starts_with_bos(tokenizer),
        ),
    }
    for what, (found, expected) in checks.items():
        if found != expected:
            shown = f" ({one_line(found, max_length=60)}, not {one_line(expected, max_length=60)})"
            raise TuituneError(f"The GGUF has the wrong {what}{shown}: nothing was exported.")
    for tensor in reader.tensors:
        if not _is_finite(tensor):
            raise TuituneError(
                f"The weight {one_line(tensor.name)} does not fit into {outtype} (it became infinite): "
                "export merged_16bit instead."
            )


def _field(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _weights(folder: Path) -> int:
    """The number of the text model's weights."""
    from math import prod

    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            text = [name for name in file.keys() if not reads_other_than_text(name)]  # noqa: SIM118
            total += sum(prod(file.get_slice(name).get_shape()) for name in text)
    return total


def left_out(merged: Path) -> tuple[str, ...]:
    """What the merged model in a folder has and its GGUF has not, for the user."""
    from safetensors import safe_open

    for path in merged.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            if any(map(reads_other_than_text, file.keys())):
                return ("The GGUF holds the text model alone: what reads images or sound is only in merged_16bit.",)
    return ()


def _template(tokenizer: Any) -> Any:
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _is_finite(tensor: Any) -> bool:
    import numpy as np

    data = tensor.data
    if tensor.tensor_type.name == "Q8_0":  # each block: a float16 scale, then 32 signed bytes
        data = np.ascontiguousarray(data.reshape(-1, 34)[:, :2]).view(np.float16)
    return bool(np.isfinite(data).all())
