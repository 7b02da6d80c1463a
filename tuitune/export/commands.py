"""Lines to paste into a shell: how to take an export home, and how to run it."""

import getpass
import os
import re
import shlex
import socket
from pathlib import Path

from tuitune.export.kinds import Command

_ASK = (
    "import sys; from transformers import pipeline; chat = [{'role': 'user', 'content': sys.argv[2]}]; "
    "answer = pipeline('text-generation', model=sys.argv[1], dtype='auto')(chat, max_new_tokens=128); "
    "print(answer[0]['generated_text'][-1]['content'])"
)


def commands_for(kind: str, path: Path, run_name: str) -> tuple[Command, ...]:
    """Copy-paste lines for the export at `path`: first how to fetch it from another machine, then how to run it."""
    return (*take_home(path), *run_lines(kind, path, run_name))


def take_home(path: Path) -> tuple[Command, ...]:
    """Lines that fetch `path`, to be run on the user's own machine.

    The address is the one that the user's own SSH connection reached ($SSH_CONNECTION), else this host's name.
    """
    path = path.absolute()
    host, port = _address()
    shown_host = f"[{host}]" if ":" in host else host
    source = shlex.quote(f"{_user()}@{shown_host}:{path}")
    scp = ["scp", *(["-P", port] if port else []), *(["-r"] if path.is_dir() else [])]
    plain = shlex.quote(str(path)) == str(path)  # macOS's own rsync knows no --protect-args
    rsync = ["rsync", "-a", "--partial", "--progress", *([] if plain else ["--protect-args"])]
    rsync += ["-e", f"ssh -p {port}"] if port else []
    return (
        Command("Copy it to your machine (run there)", f"{shlex.join(scp)} {source} ."),
        Command("The same, but an interrupted copy goes on where it was", f"{shlex.join(rsync)} {source} ."),
    )


def run_lines(kind: str, path: Path, run_name: str) -> tuple[Command, ...]:
    """Lines that run the export at `path` here."""
    here = str(path.absolute())
    if kind.startswith("gguf:"):
        return (
            Command("Chat with it in llama.cpp", shlex.join(["llama-cli", "--jinja", "-m", here])),
            Command("Serve it to this machine's programs", shlex.join(["llama-server", "--jinja", "-m", here])),
        )
    if kind == "ollama":
        name = re.sub(r"[^a-z0-9._-]+", "-", run_name.lower()).strip("._-")[:60] or "tuned"
        return (
            Command("Make it known to Ollama", shlex.join(["ollama", "create", name, "-f", f"{here}/Modelfile"])),
            Command("Chat with it in Ollama", shlex.join(["ollama", "run", name])),
        )
    if kind == "script":
        return (
            Command(
                "Get the libraries", shlex.join(["python", "-m", "pip", "install", "-r", f"{here}/requirements.txt"])
            ),
            Command("Train again", shlex.join(["python", f"{here}/train.py"])),
        )
    return (Command("Ask it something", f'python -c "{_ASK}" {shlex.quote(here)} {shlex.quote("Hello!")}'),)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that has no name
        return str(os.getuid())


def _address() -> tuple[str, str | None]:
    """Host, and port where it is not SSH's own."""
    parts = os.environ.get("SSH_CONNECTION", "").split()
    if len(parts) == 4:
        return parts[2], None if parts[3] == "22" else parts[3]
    return socket.gethostname(), None
