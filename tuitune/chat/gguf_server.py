"""Serve one GGUF file by llama.cpp on a Unix socket, as a program of its own.

Started by `tuitune.chat.gguf_engine` as `python gguf_server.py SOCKET SETTINGS`, SETTINGS being JSON with `model` and
`lora` (paths), `context` (tokens) and `threads`. It ends when its stdin does, and with the program that started it,
also while it loads; whatever llama.cpp does ends this process alone. Nothing listens on a network.
"""

import json
import os
import sys
from typing import Any

import xllamacpp

from tuitune.parent import end_with_parent


def main(socket: str, settings: dict[str, Any]) -> None:
    end_with_parent()
    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.hostnames = [socket]  # a name that ends in .sock is a Unix socket
    params.n_ctx = settings["context"]
    params.n_parallel = 1
    params.warmup = params.ui = False
    params.offline = params.use_jinja = True
    params.verbosity = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    if settings["lora"]:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = settings["lora"], 1.0
        params.lora_adapters = [adapter]
    _server = xllamacpp.Server(params)
    try:
        sys.stdout.write("ready\n")
        sys.stdout.flush()  # fails where nobody is there any more to read it
        while sys.stdin.buffer.read(65_536):
            pass
    finally:
        os._exit(0)  # taking the server down would wait, for ever where its loop has not begun yet


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
