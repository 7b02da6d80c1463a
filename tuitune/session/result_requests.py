"""What may be asked of what a run has trained: chat, with documents, and exports."""

from dataclasses import field
from typing import Any, ClassVar, TypedDict

from tuitune.session.request import Nothing, Request, request


class Answer(TypedDict):
    """`ended` is False where `max_new_tokens` cut the reply; the rest is as in `tuitune.chat.reply.ChatReply`.

    `seconds` and `first_token_s` begin with the reading of the prompt; `unseen` messages and all but the first
    `passages` did not fit the model's context.
    """

    reply: str
    tokens: int
    seconds: float
    ended: bool
    first_token_s: float
    unseen: int
    passages: int


@request
class Chat(Request[Answer]):
    """The next message of a conversation with a run's adapter, or its base model.

    `checkpoint` (`best`, `last` or a step) means the adapter of that one. `passages` of documents stand before the
    newest message. `beside` has the models in memory stay, as for the sides of a comparison: one that does not fit is
    refused. With `engine` an exported GGUF answers in llama.cpp: `gguf`, or `gguf:TYPE`.

    Parts are `text` as it comes; before it `loading` with `done` of `total`, and `notice`. `sampling` are fields of
    `tuitune.chat.sampling.Sampling`.
    """

    command: ClassVar[str] = "chat"
    run: str
    messages: list[dict[str, str]]
    adapter: bool = True
    sampling: dict[str, Any] | None = None
    checkpoint: str | None = None
    passages: list[str] = field(default_factory=list)
    beside: bool = False
    engine: str = ""


class Attached(TypedDict):
    """Documents as they are indexed: `left_out` files with their `reason`; `embeddings` names their model, if any.

    `notice` is a sentence for the user where they are searched by their words alone.
    """

    files: int
    passages: int
    left_out: list[dict[str, str]]
    embeddings: str
    notice: str


@request
class Attach(Request[Attached]):
    """Read and index documents: files and folders. Parts tell the progress: `indexing`, `done` of `total`."""

    command: ClassVar[str] = "attach"
    paths: list[str]


class Retrieved(TypedDict):
    """`passages`: fields of `tuitune.documents.passage.Passage`, the best first."""

    passages: list[dict[str, Any]]


@request
class Retrieve(Request[Retrieved]):
    """The passages of documents that answer a question best; what has changed since is read again, as in Attach."""

    command: ClassVar[str] = "retrieve"
    paths: list[str]
    question: str
    limit: int = 5


@request
class Export(Request[Nothing]):
    """Make a run's exports; goes on without its client.

    Every kind is a part when it is there: `exported`, or `failed` with its `error`. Other parts are the progress:
    `kind`, `text`, `done` of `total`.
    """

    command: ClassVar[str] = "export"
    run: str
    kinds: list[str]
    out: str | None = None
    allow_download: bool = False
    checkpoint: str | None = None
    hub_repo: str | None = None
    hub_public: bool = False
    tar: bool = False
    split_bytes: int = 0
    imatrix: bool = False


class Exports(TypedDict):
    """`kinds`: what can be made (`tuitune.export.Readiness`); `exports`: what lies in the run's own folder already."""

    kinds: list[dict[str, Any]]
    exports: list[dict[str, Any]]


@request
class Preflight(Request[Exports]):
    """With `hub_repo` the Hub is asked whether the repository may be written to."""

    command: ClassVar[str] = "preflight"
    run: str
    checkpoint: str | None = None
    hub_repo: str | None = None
