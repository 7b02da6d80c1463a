"""Real chat templates and tokenizers to test with: those in llama.cpp's tree, from one pinned source distribution."""

import fcntl
import hashlib
import json
import struct
import subprocess
import sys
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tuitune.export.llama_cpp import PACKAGE, SHA256, VERSION

FOLDER = Path(platformdirs.user_cache_dir("tuitune")) / "tests" / f"{PACKAGE}-{VERSION}"

CHAT_VOCABULARIES = (
    *("aquila", "baichuan", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "gpt-neox"),
    *("llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder"),
)
"""All 19 but bert-bge and nomic-bert-moe: those belong to encoders, lose white space and case, and have no chat."""

# What splits text before BPE, by the name that llama.cpp gives it; others split as GPT-2 does.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {"llama-bpe": _LLAMA3, "qwen2": _LLAMA3.replace("{1,3}", ""), "qwen35": _LLAMA3.replace("{1,3}", "")}


def folder() -> Path:
    """The folder with `ggml-vocab-*.gguf` and `templates`, downloaded once; skips the test where that fails."""
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with (FOLDER.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two workers of a run of the tests begin with an empty cache together
        if not FOLDER.is_dir():
            with tempfile.TemporaryDirectory(dir=FOLDER.parent) as temporary:
                _download(Path(temporary))
                (Path(temporary) / "models").rename(FOLDER)
    return FOLDER


def _download(into: Path) -> None:
    (into / "requirements.txt").write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--no-binary={PACKAGE}"]
    command += ["--requirement=requirements.txt"]
    done = subprocess.run(command, cwd=into, capture_output=True, text=True, timeout=600, check=False)
    archive = next(into.glob("*.tar.gz"), None)
    if done.returncode or archive is None:
        pytest.skip(f"{PACKAGE} {VERSION} cannot be downloaded: {done.stderr[-300:]}", allow_module_level=True)
    with archive.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SHA256
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            _, separator, name = member.name.partition("/vendor/llama.cpp/models/")
            if separator and name.endswith((".jinja", ".gguf")):
                tar.extract(member.replace(name=f"models/{name}"), into, filter="data")


@cache
def templates() -> dict[str, str]:
    """File name without suffix to template text."""
    return {path.stem: path.read_text() for path in sorted((folder() / "templates").glob("*.jinja"))}


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of `ggml-vocab-NAME.gguf`, built once and then read from the cache."""
    saved = folder() / f"{name}.tokenizer"
    if not saved.is_dir():
        data = _metadata(folder() / f"ggml-vocab-{name}.gguf")
        _built({key.removeprefix("tokenizer.ggml."): value for key, value in data.items()}).save_pretrained(saved)
    settings = json.loads((saved / "tokenizer_config.json").read_text())
    named = {name: settings[name] for name in ("bos_token", "eos_token") if name in settings}
    # As `from_pretrained` gives it, which parses these large files several times.
    return PreTrainedTokenizerFast(tokenizer_file=str(saved / "tokenizer.json"), **named)


def _built(data: dict[str, Any]) -> PreTrainedTokenizerFast:
    tokens: list[str] = data["tokens"]
    kinds: list[int] = data["token_type"]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    if "merges" in data and data["model"] != "gemma4":
        merges = [tuple(merge.split(" ", 1)) for merge in data["merges"]]
        core = Tokenizer(models.BPE(vocabulary, merges))
        split = pre_tokenizers.Split(Regex(_SPLITS.get(data.get("pre", ""), _GPT2)), "isolated")
        core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
        core.decoder = decoders.ByteLevel()
    else:
        core = Tokenizer(models.BPE(vocabulary, _merges(data, vocabulary), byte_fallback=True, fuse_unk=True))
        prepended = [] if data["model"] == "gemma4" else [normalizers.Prepend("▁")]
        core.normalizer = normalizers.Sequence([*prepended, normalizers.Replace(" ", "▁")])
        stripped = [decoders.Strip(" ", 1, 0)] if prepended else []
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *stripped]
        )
    # GGUF marks a vocabulary's own control tokens 3 and user-defined ones 4.
    core.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, k in zip(tokens, kinds, strict=True) if k == 3]
    )
    core.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == 4])
    named = {f"{name}_token": tokens[data[f"{name}_token_id"]] for name in ("bos", "eos") if f"{name}_token_id" in data}
    return PreTrainedTokenizerFast(tokenizer_object=core, **named)


def _merges(data: dict[str, Any], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    if "merges" in data:
        pairs = [tuple(merge.split(" ", 1)) for merge in data["merges"]]
        return [(a, b) for a, b in pairs if a in vocabulary and b in vocabulary and a + b in vocabulary]
    # SentencePiece's BPE joins the pair whose union scores highest.
    scored = []
    for token, score in zip(data["tokens"], data["scores"], strict=True):
        for cut in range(1, len(token)):
            if token[:cut] in vocabulary and token[cut:] in vocabulary:
                scored.append((-score, token[:cut], token[cut:]))
    return [(a, b) for _, a, b in sorted(scored, key=lambda entry: entry[0])]


def _metadata(path: Path) -> dict[str, Any]:
    """The tokenizer entries of a GGUF file (gguf's own reader takes a minute for a large vocabulary)."""
    scalars = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def number(file: BinaryIO, code: str) -> Any:
        return struct.unpack(f"<{code}", file.read(struct.calcsize(code)))[0]

    def value(file: BinaryIO, kind: int) -> Any:
        if kind == 8:
            return file.read(number(file, "Q")).decode("utf-8", "surrogateescape")
        if kind == 9:
            inner, count = number(file, "I"), number(file, "Q")
            if inner in scalars:
                code = scalars[inner]
                return list(struct.unpack(f"<{count}{code}", file.read(count * struct.calcsize(code))))
            return [value(file, inner) for _ in range(count)]
        return number(file, scalars[kind])

    with path.open("rb") as file:
        assert file.read(4) == b"GGUF"
        number(file, "I"), number(file, "Q")
        return {value(file, 8): value(file, number(file, "I")) for _ in range(number(file, "Q"))}
