"""Export GGUF files: the merged model or the adapter, converted by llama.cpp's own converter and opened again."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuitune.chat_template.turn_end import end_of_turn_id, template_starts_with_bos
from tuitune.errors import TuituneError
from tuitune.export import llama_cpp as llama_cpp_place
from tuitune.export.card import marked
from tuitune.export.child import ChildFailed, run_child
from tuitune.export.convert import REFUSED
from tuitune.language import N_, Sentence, _
from tuitune.model.config import reads_other_than_text
from tuitune.text import one_line

# Bytes of a block, and where in it the float16 scales stand.
_SCALES = {
    **{"Q8_0": (34, slice(0, 2)), "Q4_0": (18, slice(0, 2)), "Q4_1": (20, slice(0, 4)), "Q5_0": (22, slice(0, 2))},
    **{
        "Q5_1": (24, slice(0, 4)),
        "Q4_K": (144, slice(0, 4)),
        "Q5_K": (176, slice(0, 4)),
        "Q6_K": (210, slice(208, 210)),
    },
    "Q3_K": (110, slice(108, 110)),
}


def convert(
    merged: Path,
    gguf_file: Path,
    outtype: str,
    *,
    llama_cpp: Path,
    name: str,
    log: Path,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    """Write the merged model in folder `merged` as the GGUF file `gguf_file` and prove it. Raises TuituneError.

    `outtype` is `f16`, `bf16` or `q8_0`, `llama_cpp` the folder of llama.cpp's converter, `name` what runtimes show;
    the converter's output goes to `log`. An OSError says that the disk is full.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged, trust_remote_code=False)
    end = end_of_turn_id(tokenizer)
    argv = [str(llama_cpp), str(merged), str(gguf_file), outtype, name]
    argv += ["" if end is None else str(end), "1" if template_starts_with_bos(tokenizer) else "0"]
    _run("convert.py", argv, log, r"Writing: +(\d+)%", progress, cancelled)
    prove(gguf_file, merged, outtype, tokenizer)


def quantise(
    source: Path,
    gguf_file: Path,
    kind: str,
    merged: Path,
    *,
    imatrix: Path | None = None,
    log: Path,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    """Write the 16-bit GGUF file `source` of the merged model again in the type `kind`, and prove it.

    `imatrix` is a file of `write_importance`, by which weights are rounded. The kernels in xllamacpp do it where they
    can, else a llama-quantize that the user has. Raises TuituneError.
    """
    from transformers import AutoTokenizer

    from tuitune.export.quantise import DEFAULT_TYPES

    library, program = llama_cpp_place.kernels(), llama_cpp_place.quantiser()
    if kind in DEFAULT_TYPES and library is not None:
        argv = [str(library), str(source), str(gguf_file), kind, *([str(imatrix)] if imatrix else [])]
        _run("quantise.py", argv, log, r"Quantising: +(\d+)%", progress, cancelled)
    elif program is not None:
        weighed = ["--imatrix", str(imatrix)] if imatrix else []
        _run_program([str(program), *weighed, str(source), str(gguf_file), kind.upper()], log, progress, cancelled)
    else:
        raise TuituneError(no_quantiser(kind))
    prove(gguf_file, merged, kind, AutoTokenizer.from_pretrained(merged, trust_remote_code=False))


def no_quantiser(kind: str) -> Sentence:
    """Why a GGUF of this type cannot be made here, and what to do."""
    return _(
        "A GGUF of type {kind} needs llama.cpp's llama-quantize, which is not on this machine: install llama.cpp, or "
        "set ${variable} to a folder that holds it, or choose q4_k_m.",
        kind=kind,
        variable=llama_cpp_place.VARIABLE,
    )


def convert_adapter(
    adapter: Path,
    base: Path,
    gguf_file: Path,
    *,
    llama_cpp: Path,
    log: Path,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    """Write the LoRA adapter in a folder as the GGUF file `gguf_file`; `base` holds the base model's config. Raises
    TuituneError."""
    from gguf import GGUFReader

    argv = [str(llama_cpp), str(adapter), str(gguf_file), "f16", "--lora", str(base)]
    _run("convert.py", argv, log, r"Writing: +(\d+)%", progress, cancelled)
    try:
        reader = GGUFReader(gguf_file)
        kind, tensors = str(_field(reader, "adapter.type")), len(reader.tensors)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise TuituneError(
            "The GGUF cannot be opened again ({reason}): export it once more, or another kind.",
            reason=one_line(error, max_length=200),
        ) from None
    if kind != "lora" or not tensors:
        raise TuituneError("The GGUF holds no LoRA adapter: export the adapter instead.")
    if not all(_is_finite(tensor) for tensor in reader.tensors):
        raise TuituneError("The adapter's weights do not fit into f16 (one became infinite): export the adapter.")


def _run(
    program: str,
    argv: list[str],
    log: Path,
    counted: str,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    """Run one of this folder's programs as a child. Raises TuituneError; OSError where the disk is full."""
    driver = Path(__file__).with_name(program)
    _run_program([sys.executable, "-P", str(driver), *argv], log, progress, cancelled, counted)


def _run_program(
    argv: list[str],
    log: Path,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
    counted: str = r"\[ *(\d+)/ *(\d+)\]",
) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run_child(
            argv,
            log,
            counted=re.compile(counted),
            progress=progress,
            cancelled=cancelled,
            environment=offline,
        )
    except ChildFailed as failed:
        reason = failed.last_line.rstrip(".")
        if failed.code == REFUSED:
            raise TuituneError(
                "This model cannot become a GGUF: {reason}. Export merged_16bit, which transformers and vLLM run.",
                reason=reason,
            ) from None
        if re.search(r"No space left on device|\d+ requested and \d+ written", reason):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        if failed.code < 0:
            raise TuituneError(
                "The program that writes the GGUF was killed ({signal}), perhaps for want of memory: end other "
                "programs and export again; what was finished is kept.",
                signal=signal.Signals(-failed.code).name,
            ) from None
        raise TuituneError(
            "llama.cpp could not write this model as GGUF ({reason}): export merged_16bit instead.", reason=reason
        ) from None


def prove(gguf_file: Path, merged: Path, outtype: str, tokenizer: Any) -> None:
    """Reopen the file: complete, of this model, and with the tokens that end a reply. Raises TuituneError."""
    from gguf import GGUFReader
    from transformers import AutoConfig

    try:
        reader = GGUFReader(gguf_file)
        arch = str(_field(reader, "general.architecture"))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise TuituneError(
            "The GGUF cannot be opened again ({reason}): export it once more, or another kind.",
            reason=one_line(error, max_length=200),
        ) from None
    config = AutoConfig.from_pretrained(merged, trust_remote_code=False).get_text_config()
    ends = {_field(reader, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")}
    weights = sum(int(tensor.n_elements) for tensor in reader.tensors if not tensor.name.startswith("rope_"))
    tokens, vocabulary = _field(reader, "tokenizer.ggml.tokens"), tokenizer.get_vocab()
    new_tokens = list((marked(merged) or {}).get("new_tokens", []))
    checks = {
        N_("file type"): (_field(reader, "general.file_type"), file_type(outtype)),
        N_("number of layers"): (_field(reader, f"{arch}.block_count"), config.num_hidden_layers),
        N_("number of weights"): (weights, _weights(merged)),
        N_("vocabulary size"): (len(tokens), config.vocab_size),
        N_("list of new tokens"): (
            [text for text in new_tokens if text in vocabulary and tokens[vocabulary[text]] == text],
            new_tokens,
        ),
        N_("chat template"): (_field(reader, "tokenizer.chat_template"), _template(tokenizer)),
        N_("end-of-turn token"): (end_of_turn_id(tokenizer) in ends, True),
        N_("begin-of-text token"): (
            bool(_field(reader, "tokenizer.ggml.add_bos_token")),
            template_starts_with_bos(tokenizer),
        ),
    }
    for title, (value, expected) in checks.items():
        if value != expected:
            raise TuituneError(
                "The GGUF has the wrong {title} ({value}, not {expected}): nothing was exported.",
                title=_(title),
                value=one_line(value, max_length=60),
                expected=one_line(expected, max_length=60),
            )
    for tensor in reader.tensors:
        if not _is_finite(tensor):
            raise TuituneError(
                "The weight {name} does not fit into {outtype} (it became infinite): export merged_16bit instead.",
                name=one_line(tensor.name),
                outtype=outtype,
            )


def file_type(kind: str) -> int:
    """GGUF's general.file_type (llama.cpp's llama_ftype) of a type as llama-quantize names it."""
    from gguf import LlamaFileType

    return int(LlamaFileType[f"MOSTLY_{kind.upper()}"])


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
    """Notices for the user: parts of the merged model in a folder that its GGUF lacks."""
    from safetensors import safe_open

    for path in merged.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            if any(map(reads_other_than_text, file.keys())):
                return (_("The GGUF holds the text model alone: what reads images or sound is only in merged_16bit."),)
    return ()


def _template(tokenizer: Any) -> Any:
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _is_finite(tensor: Any) -> bool:
    import numpy as np

    data, kind = tensor.data, tensor.tensor_type.name
    if kind == "BF16":  # all ones in the exponent
        return not bool(((np.ascontiguousarray(data).view(np.uint16) & 0x7F80) == 0x7F80).any())
    if kind in _SCALES:
        block, where = _SCALES[kind]
        blocks = data.reshape(-1, block)
        data = np.ascontiguousarray(blocks[:, where]).view(np.float16)
    elif kind not in ("F32", "F16"):
        return True  # llama.cpp checks it when the file is proven
    return bool(np.isfinite(data).all())
