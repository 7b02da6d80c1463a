"""Lines to paste into a shell: how to take an export home, and how to run it."""

import getpass
import json
import os
import re
import shlex
import socket
import sys
from pathlib import Path

from tuitune.export.kinds import Command
from tuitune.export.packing import is_our_parts, parts_folder
from tuitune.export.sums import FILE as SUMS
from tuitune.export.sums import sum_file, tar_file
from tuitune.language import _

_ASK = (
    "import sys; from transformers import pipeline; chat = [{'role': 'user', 'content': sys.argv[2]}]; "
    "answer = pipeline('text-generation', model=sys.argv[1], dtype='auto')(chat, max_new_tokens=128); "
    "print(answer[0]['generated_text'][-1]['content'])"
)

_GPT4ALL = (
    "~/Library/Application\\ Support/nomic.ai/GPT4All/"
    if sys.platform == "darwin"
    else "~/.local/share/nomic.ai/GPT4All/"
)


def commands_for(
    kind: str, path: Path, run_name: str, *, base: str = "", new_tokens: bool = False
) -> tuple[Command, ...]:
    """Copy-paste lines for the export at `path`: first how to fetch it from another machine, then how to run it.

    `base` is the model that an adapter belongs to. One with `new_tokens` no such line can run, since the base has no
    rows for them: its card says how to load it.
    """
    can_be_run = kind != "adapter" or not new_tokens
    return (*take_home(path), *(run_lines(kind, path, run_name, base) if can_be_run else ()))


def take_home(path: Path) -> tuple[Command, ...]:
    """Lines that fetch `path`, or the tar of it where there is one, to be run on the user's own machine, and one that
    checks what came by its SHA-256 sums.

    The address is the one that the user's own SSH connection reached ($SSH_CONNECTION), else this host's name.
    """
    path = path.absolute()
    host, port = _address()
    shown_host = f"[{host}]" if ":" in host else host
    tar, parts = tar_file(path), parts_folder(path)
    if is_our_parts(parts):
        path = parts
    elif path.is_dir() and tar.is_file() and sum_file(tar).is_file():
        path = tar
    sums = sum_file(path)
    sum_files = [sums] if path.is_file() and sums.is_file() else []
    source = shlex.join(f"{_user()}@{shown_host}:{file}" for file in [path, *sum_files])
    scp = ["scp", *(["-P", port] if port else []), *(["-r"] if path.is_dir() else [])]
    plain = shlex.quote(str(path)) == str(path)  # macOS's own rsync knows no --protect-args
    rsync = ["rsync", "-a", "--partial", "--progress", *([] if plain else ["--protect-args"])]
    rsync += ["-e", f"ssh -p {port}"] if port else []
    return (
        Command(_("Copy it to your machine (run there)"), f"{shlex.join(scp)} {source} ."),
        Command(_("The same, but an interrupted copy goes on where it was"), f"{shlex.join(rsync)} {source} ."),
        *_checks(path, sums),
    )


def _checks(path: Path, sums: Path) -> tuple[Command, ...]:
    """The line that checks a copy of `path`, and opens it where it is a tar; none where there are no sums."""
    if not sums.is_file():
        return ()
    if path.is_dir() and is_our_parts(path):
        return (Command(_("Check the parts, join them and check the whole"), _join(path)),)
    if path.is_dir():
        return (Command(_("Check the copy"), f"cd {shlex.quote(f'./{path.name}')} && sha256sum -c {sums.name}"),)
    check = shlex.join(["sha256sum", "-c", f"./{sums.name}"])
    if path.suffix == ".tar":
        return (
            Command(_("Check the copy and unpack it"), f"{check} && {shlex.join(['tar', '-xf', f'./{path.name}'])}"),
        )
    return (Command(_("Check the copy"), check),)


def _join(parts: Path) -> str:
    """The line that makes one file of a copy of the folder `parts`, and unpacks it where it is a tar."""
    name = parts.name.removesuffix(".parts")
    whole, inside = shlex.quote(f"./{name}"), shlex.quote(f"./{parts.name}")
    steps = [
        f"(cd {inside} && sha256sum -c {SUMS})",
        f"cat {inside}/*.part-* > {whole}",
        f"sha256sum -c {inside}/{shlex.quote(f'{name}.sha256')}",
        *([f"tar -xf {whole}"] if name.endswith(".tar") else []),
    ]
    return " && ".join(steps)


def hub_lines(kind: str, repository: str, file: str) -> tuple[Command, ...]:
    """Lines that fetch an upload from the Hub, or run it from there."""
    if kind.startswith("gguf:"):
        return (
            _line(_("Download it (run there)"), "hf", "download", repository, file, "--local-dir", "."),
            _line(
                _("Chat with it in llama.cpp"), "llama-cli", "--jinja", "-hf", f"{repository}:{kind.partition(':')[2]}"
            ),
        )
    folder = repository.rpartition("/")[2]
    download = _line(_("Download it (run there)"), "hf", "download", repository, "--local-dir", folder)
    return (download,) if kind == "adapter" else (download, _line(_("Serve it with vLLM"), "vllm", "serve", repository))


def run_lines(kind: str, path: Path, run_name: str, base: str = "") -> tuple[Command, ...]:
    """Lines that run the export at `path` here, or put it where a program looks for it."""
    location = str(path.absolute())
    name = re.sub(r"[^a-z0-9._-]+", "-", run_name.lower()).strip("._-")[:60] or "tuned"
    form = kind.partition(":")[0]
    if form == "gguf":
        return (
            _line(_("Chat with it in llama.cpp"), "llama-cli", "--jinja", "-m", location),
            _line(_("Serve it to this machine's programs"), "llama-server", "--jinja", "-m", location),
            _line(_("Put it into LM Studio"), "lms", "import", "--copy", location),
            Command(_("Put it into GPT4All"), f"cp {shlex.quote(location)} {_GPT4ALL}"),
        )
    if form == "adapter_gguf":
        line = f"llama-cli --jinja -m BASE.gguf --lora {shlex.quote(location)}"
        return (Command(_("Chat with it in llama.cpp, beside a GGUF of the base model"), line),)
    if form == "ollama":
        return (
            _line(_("Make it known to Ollama"), "ollama", "create", name, "-f", f"{location}/Modelfile"),
            _line(_("Chat with it in Ollama"), "ollama", "run", name),
        )
    if form in ("script", "notebook"):
        install = ["python", "-m", "pip", "install", "-r", f"{location}/requirements.txt"]
        if form == "notebook":
            return (
                _line(_("Get the libraries"), *install, "notebook"),
                _line(_("Open the notebook"), "jupyter", "notebook", f"{location}/train.ipynb"),
            )
        return (_line(_("Get the libraries"), *install), _line(_("Train again"), "python", f"{location}/train.py"))
    ask = Command(_("Ask it something"), f'python -c "{_ASK}" {shlex.quote(location)} {shlex.quote("Hello!")}')
    if form == "adapter":
        serve = ["vllm", "serve", base or "BASE", "--enable-lora", "--max-lora-rank", str(_rank(path))]
        return (_line(_("Serve it with vLLM"), *serve, "--lora-modules", f"{name}={location}"), ask)
    quantised = ["--quantization", "bitsandbytes"] if form == "merged_4bit" else []
    return (_line(_("Serve it with vLLM"), "vllm", "serve", location, "--served-model-name", name, *quantised), ask)


def _line(what: str, *words: str) -> Command:
    return Command(what, shlex.join(words))


def _rank(adapter: Path) -> int:
    """The smallest rank that vLLM accepts and the adapter's rank fits into."""
    try:
        rank = int(json.loads((adapter / "adapter_config.json").read_text())["r"])
    except (OSError, ValueError, KeyError, TypeError):
        rank = 16
    return next((size for size in (8, 16, 32, 64, 128, 256, 320) if size >= rank), 512)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that has no name
        return str(os.getuid())


def _address() -> tuple[str, str | None]:
    """Host, and port where it is not 22."""
    parts = os.environ.get("SSH_CONNECTION", "").split()
    if len(parts) == 4:
        return parts[2], None if parts[3] == "22" else parts[3]
    return socket.gethostname(), None
