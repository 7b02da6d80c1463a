"""Run a GGUF file by llama.cpp, in a process of its own: token ids, streaming replies and log-probabilities.

xllamacpp brings llama.cpp and its server without a compiler. The server listens on a Unix socket in a private folder
and ends with this process; a crash in llama.cpp is a TuituneError here.
"""

import contextlib
import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuitune.chat.reply import ChatReply
from tuitune.chat.sampling import Sampling
from tuitune.chat.window import fitted
from tuitune.conversation import Conversation
from tuitune.errors import TuituneError, UnusableInput
from tuitune.language import N_, _
from tuitune.text import one_line

MISSING = N_(
    "Running a GGUF needs xllamacpp, which is not installed here: `pip install xllamacpp` (34 MB, no compiler needed)."
)
_SECONDS_WITHOUT_A_WORD = 600.0
_SMALL_BYTES = 200_000_000


@dataclass(frozen=True)
class Completion:
    """What llama.cpp generated: `ids` with the token that ended it; `ended` is False where it was cut."""

    ids: list[int]
    text: str
    seconds: float
    ended: bool


@dataclass(frozen=True)
class NextToken:
    """The distribution after some ids: the likeliest token, and log-probabilities by token id."""

    likeliest: int
    logprobs: dict[int, float]


def available() -> bool:
    """Whether llama.cpp can be run here."""
    return importlib.util.find_spec("xllamacpp") is not None


@contextlib.contextmanager
def open_gguf(
    path: Path,
    *,
    lora: Path | None = None,
    context: int = 4096,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator["GgufModel"]:
    """Load the GGUF file at `path`, with the adapter in the GGUF file `lora` on it, for as long as the block lasts.

    `context` is the longest prompt with its reply, in tokens. Raises UnusableInput where the file cannot be loaded,
    TuituneError where xllamacpp is not installed or loading was cancelled.
    """
    if not available():
        raise TuituneError(MISSING)
    for file in (path, *([lora] if lora else [])):
        if not file.is_file():
            raise UnusableInput("{file} is not a file: name a GGUF file.", file=one_line(file))
    with tempfile.TemporaryDirectory(prefix="tt-") as folder, (Path(folder) / "log").open("w+b") as log:
        model = GgufModel(path, Path(folder) / "s.sock", log, lora, context)
        try:
            model.wait_until_loaded(cancelled)
            yield model
        finally:
            model.close()


class GgufModel:
    """A GGUF file that llama.cpp has loaded in a process of its own; made by `open_gguf`."""

    def __init__(self, path: Path, socket_path: Path, log: Any, lora: Path | None, context: int) -> None:
        self.path = path
        self._socket = socket_path
        self._log = log
        self._context = context
        self._letter: int | None = None
        settings = {
            "model": str(path.absolute()),
            "lora": str(lora.absolute()) if lora else None,
            "context": context,
            "threads": _threads(path),
        }
        program = Path(__file__).with_name("gguf_server.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(program), str(socket_path), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )

    def wait_until_loaded(self, cancelled: Callable[[], bool]) -> None:
        """Returns when the model answers. Raises UnusableInput, TuituneError."""
        with self._watched(cancelled, self._process.kill) as watch:
            assert self._process.stdout is not None
            ready = self._process.stdout.readline() == b"ready\n"
        if not ready:
            if watch.cancelled:
                raise TuituneError("Loading the GGUF was stopped.")
            self._process.wait(timeout=30)
            raise UnusableInput(
                "llama.cpp cannot load {file}: {reason}.", file=one_line(self.path), reason=self._last_words()
            )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the process; nothing of it is left."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def tokens(self, text: str, *, begin: bool = False) -> list[int]:
        """The ids of `text` with its special tokens as llama.cpp sees it; `begin` adds what the GGUF says stands before
        every text (its begin-of-text token)."""
        request = {"content": text, "add_special": begin, "parse_special": True}
        ids: list[int] = self._ask("/tokenize", request)["tokens"]
        return ids

    def prompt_ids(self, messages: Conversation) -> list[int]:
        """The ids that a reply to `messages` is generated from, by the chat template inside the GGUF."""
        prompt = self._ask("/apply-template", {"messages": messages})["prompt"]
        return self.tokens(prompt, begin=True)

    def reply(
        self,
        messages: Conversation,
        sampling: Sampling,
        *,
        passages: list[str] | None = None,
        on_text: Callable[[str], None] = lambda text: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> ChatReply:
        """The model's next message, as `tuitune.chat.reply.reply` gives it. Raises TuituneError."""
        started = time.monotonic()
        cut = fitted(messages, passages or [], self.prompt_ids, self._context, sampling.max_new_tokens)
        first_at: list[float] = []

        def pass_on(text: str) -> None:
            first_at.append(time.monotonic())
            on_text(text)

        completion = self.complete(cut.ids, sampling, on_text=pass_on, cancelled=cancelled)
        ended_at = time.monotonic()
        first = (first_at[0] if first_at else ended_at) - started
        return ChatReply(
            completion.text.strip(),
            len(completion.ids),
            ended_at - started,
            completion.ended,
            first,
            cut.unseen,
            cut.passages,
        )

    def complete(
        self,
        prompt: list[int],
        sampling: Sampling,
        *,
        on_text: Callable[[str], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Completion:
        """What follows the ids `prompt`; pieces of text go to `on_text` as they come. Raises TuituneError.

        With `on_text` the ids lack those that make a character only together with the next ones. The order of the
        samplers is that of transformers' `generate`.
        """
        request = {
            "prompt": prompt,
            "stream": on_text is not None,
            "return_tokens": True,
            "cache_prompt": True,
            "n_predict": sampling.max_new_tokens,
            "seed": sampling.seed,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": self._context,
            "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
        }
        started = time.monotonic()
        ids: list[int] = []
        texts: list[str] = []
        stop = ""
        with contextlib.suppress(_Stopped), self._posted("/completion", request, cancelled) as response:
            for line in response:
                if on_text and not line.startswith(b"data: "):
                    continue
                part = json.loads(line.removeprefix(b"data: "))
                if "error" in part:
                    raise TuituneError(
                        "llama.cpp did not answer: {reason}.", reason=one_line(part["error"].get("message", ""))
                    )
                ids += part.get("tokens", [])
                if part["content"]:
                    texts.append(part["content"])
                    if on_text:
                        on_text(part["content"])
                stop = part.get("stop_type", stop)
        if not stop and not cancelled():
            raise self._broken()
        return Completion(ids, "".join(texts), time.monotonic() - started, stop == "eos")

    def next_token(
        self, prompt: list[int], *, count: int = 1, cancelled: Callable[[], bool] = lambda: False
    ) -> NextToken:
        """The `count` likeliest tokens after the ids `prompt` with their log-probabilities; all of them where `count`
        is the size of the vocabulary. Ids that begin as those of the call before are not computed again."""
        # A token without text of its own, as one that ends the reply, would be answered without probabilities. So it is
        # told to choose a letter: the probabilities are those before that.
        if self._letter is None:
            self._letter = self.tokens("a")[-1]
        request = {"prompt": prompt, "n_predict": 1, "n_probs": count, "temperature": 0}
        request["logit_bias"] = [[self._letter, 1000.0]]
        answer = self._ask("/completion", request, cancelled)
        chosen = answer["completion_probabilities"][0]
        logprobs = {token["id"]: float(token["logprob"]) for token in chosen["top_logprobs"]}
        return NextToken(max(logprobs, key=lambda token: logprobs[token]), logprobs)

    # --- the wire ---------------------------------------------------------------------------------------------

    def _ask(self, path: str, request: dict[str, Any], cancelled: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        with self._posted(path, request, cancelled) as response:
            answer: dict[str, Any] = json.loads(response.read())
        return answer

    @contextlib.contextmanager
    def _posted(
        self, path: str, request: dict[str, Any], cancelled: Callable[[], bool]
    ) -> Iterator[http.client.HTTPResponse]:
        """The server's response to a request; ends early where `cancelled` says so. Raises TuituneError."""
        connection = _UnixConnection(self._socket)
        try:
            connection.connect()
            with self._watched(cancelled, lambda: connection.sock.shutdown(socket.SHUT_RDWR)) as watch:
                try:
                    connection.request("POST", path, json.dumps(request), {"Content-Type": "application/json"})
                    response = connection.getresponse()
                    if response.status != 200:
                        words = response.read().decode(errors="replace")
                        with contextlib.suppress(ValueError, KeyError, TypeError):
                            words = json.loads(words)["error"]["message"]
                        raise TuituneError(
                            "llama.cpp did not answer: {reason}.", reason=one_line(words, max_length=300).rstrip(".")
                        )
                    yield response
                except (OSError, http.client.HTTPException, ValueError):
                    if watch.cancelled:
                        raise _Stopped("llama.cpp was stopped.") from None
                    raise self._broken() from None
        except OSError:
            raise self._broken() from None
        finally:
            connection.close()

    @contextlib.contextmanager
    def _watched(self, cancelled: Callable[[], bool], end: Callable[[], object]) -> Iterator["_Watch"]:
        """Call `end` as soon as `cancelled` says so, while the block waits for llama.cpp."""
        watch = _Watch(cancelled, end)
        watch.start()
        try:
            yield watch
        finally:
            watch.done.set()
            watch.join()

    def _broken(self) -> TuituneError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        file, reason = one_line(self.path), self._last_words()
        if self._process.poll() is not None:
            return TuituneError("llama.cpp ended while it ran {file}: {reason}.", file=file, reason=reason)
        return TuituneError("llama.cpp does not answer while it ran {file}: {reason}.", file=file, reason=reason)

    def _last_words(self) -> str:
        """The last line that llama.cpp wrote, fit for a sentence."""
        code = self._process.poll()
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4096))
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return one_line(lines[-1], max_length=200).rstrip(".")
        return _("signal {number}", number=-code) if code is not None and code < 0 else _("it said nothing")


class _Stopped(TuituneError):
    """`cancelled` said so."""


class _Watch(threading.Thread):
    """Asks `is_cancelled` until `done` is set, and calls `end` once it says yes."""

    def __init__(self, is_cancelled: Callable[[], bool], end: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.cancelled = False
        self._is_cancelled = is_cancelled
        self._end = end

    def run(self) -> None:
        while not self.done.wait(0.05):
            if self._is_cancelled():
                self.cancelled = True
                with contextlib.suppress(OSError):
                    self._end()
                return


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_SECONDS_WITHOUT_A_WORD)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _threads(path: Path) -> int:
    """As many as there are cores; one for a small model, whose threads would only wait for each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if path.stat().st_size < _SMALL_BYTES else cores
