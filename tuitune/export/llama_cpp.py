"""Where llama.cpp's converter comes from: a folder that the user names, the cache, or one pinned download."""

import hashlib
import importlib.util
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from tuitune.errors import TuituneError, UnusableInput
from tuitune.export.child import ChildFailed, run_child
from tuitune.export.place import require_space
from tuitune.language import N_, Sentence, _
from tuitune.paths import cache_folder, expanded
from tuitune.text import one_line

VARIABLE = "TUITUNE_LLAMA_CPP"
# The source distribution that carries llama.cpp's whole tree; its converter needs no compiler.
PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
DOWNLOAD_BYTES = 76_589_250
NO_PIP = N_(
    "llama.cpp's converter cannot be downloaded, because this Python has no pip: install pip, or set "
    "$TUITUNE_LLAMA_CPP to a folder of llama.cpp's sources."
)
_CONVERTER = "convert_hf_to_gguf.py"
_ADAPTER_CONVERTER = "convert_lora_to_gguf.py"
_NEEDED = re.compile(
    r"[^/]+/vendor/llama\.cpp/((?:convert_(?:hf|lora)_to_gguf\.py|LICENSE|conversion/.+|gguf-py/gguf/.+))"
)


def converter_folder() -> Path:
    """Where the converter is kept once it was downloaded."""
    return cache_folder("llama.cpp") / f"{PACKAGE}-{VERSION}"


def find() -> Path | None:
    """The folder of llama.cpp's converter, if this machine has one: $TUITUNE_LLAMA_CPP, else the cache.

    Raises UnusableInput where the variable names something else.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return converter_folder() if _is_whole(converter_folder()) else None
    for folder in (expanded(named), expanded(named) / "vendor" / "llama.cpp"):
        if _is_whole(folder):
            return folder.resolve()
    raise UnusableInput(
        "${variable} is {named}, which holds no {converter} with conversion and gguf-py beside it: name "
        "the folder of llama.cpp's sources.",
        variable=VARIABLE,
        named=one_line(named, max_length=200),
        converter=_CONVERTER,
    )


def download_question() -> Sentence:
    """What to ask the user before the converter is downloaded."""
    return _(
        "A GGUF is made by llama.cpp's converter, which is not on this machine. Download it once with pip ({package} "
        "{version}, {megabytes:.0f} MB) into {folder}?",
        package=PACKAGE,
        version=VERSION,
        megabytes=DOWNLOAD_BYTES / 1e6,
        folder=one_line(converter_folder().parent),
    )


def obtain(
    allow_download: Callable[[str], bool], progress: Callable[[int, int], None], cancelled: Callable[[], bool]
) -> Path:
    """The converter's folder, downloaded once after `allow_download` said yes. Raises TuituneError.

    The download goes through pip and so through the user's own index, proxy and certificates; nothing of it is
    looked at before its SHA-256 is the pinned one. `progress` gets bytes.
    """
    if folder := find():
        return folder
    cache = converter_folder()
    if not allow_download(download_question()):
        raise TuituneError(
            "No GGUF was made, because llama.cpp's converter may not be downloaded: allow it, or set "
            "${variable} to a folder of llama.cpp's sources.",
            variable=VARIABLE,
        )
    if importlib.util.find_spec("pip") is None:
        raise TuituneError(NO_PIP)
    try:
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_space(cache.parent, 2 * DOWNLOAD_BYTES, _("Downloading llama.cpp's converter"))
        with tempfile.TemporaryDirectory(prefix=".getting-", dir=cache.parent) as temporary:
            archive = _download(Path(temporary), progress, cancelled)
            unpacked = Path(temporary) / "unpacked"
            unpack(archive, unpacked)
            if not _is_whole(cache):
                shutil.rmtree(cache, ignore_errors=True)  # files of it may have been cleaned away as old
                os.replace(unpacked, cache)
    except (OSError, tarfile.TarError) as error:
        raise TuituneError(
            "llama.cpp's converter cannot be kept in {folder} ({reason}): make room there, or set ${variable} to a "
            "folder of llama.cpp's sources.",
            folder=one_line(cache.parent),
            reason=one_line(error, max_length=200),
            variable=VARIABLE,
        ) from None
    return cache


def _download(folder: Path, progress: Callable[[int, int], None], cancelled: Callable[[], bool]) -> Path:
    # pip runs a source distribution's build back end for its metadata: not before the hash is right.
    (folder / "requirements.txt").write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    argv = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input", "--no-color", "--retries=1"]
    argv += ["download", "--no-deps", f"--no-binary={PACKAGE}", "--require-hashes", "--progress-bar=raw"]
    argv += ["--dest=.", "--requirement=requirements.txt"]
    counted = re.compile(r"Progress (\d+) of (\d+)")
    try:
        run_child(argv, folder / "pip.log", counted=counted, progress=progress, cancelled=cancelled)
    except ChildFailed:
        log = (folder / "pip.log").read_text(errors="replace")
        errors = re.findall(r"^ERROR: (.+)", log, re.MULTILINE) or ["see `pip download`"]
        raise TuituneError(
            "llama.cpp's converter ({package} {version}) could not be downloaded ({reason}): check the "
            "connection and pip's index, or set ${variable} to a folder of llama.cpp's sources.",
            package=PACKAGE,
            version=VERSION,
            reason=one_line(errors[0], max_length=200).rstrip("."),
            variable=VARIABLE,
        ) from None
    return next(folder.glob("*.tar.gz"))


def unpack(archive: Path, folder: Path) -> None:
    """Take the converter out of the source distribution, after checking that it is the pinned one."""
    with archive.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != SHA256:
        raise TuituneError(
            "The downloaded {file} is not the pinned one (SHA-256 {sha256}…, not {pinned}…), so it was deleted: check "
            "pip's index.",
            file=archive.name,
            sha256=sha256[:12],
            pinned=SHA256[:12],
        )
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if match := _NEEDED.fullmatch(member.name):
                    tar.extract(member.replace(name=match[1]), folder, filter="data")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def quantiser() -> Path | None:
    """A `llama-quantize` that the user has: in the folder that $TUITUNE_LLAMA_CPP names, or on the PATH."""
    named = os.environ.get(VARIABLE)
    places = [expanded(named) / place for place in ("", "build/bin", "bin")] if named else []
    installed = shutil.which("llama-quantize", path=os.pathsep.join(map(str, places))) if places else None
    installed = installed or shutil.which("llama-quantize")
    return Path(installed) if installed else None


def kernels() -> Path | None:
    """The library inside xllamacpp that has llama.cpp's quantisation kernels, where it is installed."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("xllamacpp*.so"))), None)


def _is_whole(folder: Path) -> bool:
    return all((folder / name).exists() for name in (_CONVERTER, _ADAPTER_CONVERTER, "conversion", "gguf-py/gguf"))
