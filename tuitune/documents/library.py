"""Documents that are searched: BM25 over their words, and embeddings where a model is here, fused by rank."""

import hashlib
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuitune.documents.block import Unreadable
from tuitune.documents.embeddings import VARIABLE, Embedder, embedding_model
from tuitune.documents.names import kind_of
from tuitune.documents.passage import Passage
from tuitune.documents.pdf import PdfReader
from tuitune.documents.read import blocks_of, content_of, files_of
from tuitune.documents.split import passages_of
from tuitune.documents.store import Store
from tuitune.documents.words import question_terms, terms_of
from tuitune.errors import TuituneError, UnusableInput
from tuitune.language import _
from tuitune.machine.environment import install_line
from tuitune.text import in_a_row, one_line, safe_text

Progress = Callable[[str, int, int], None]

_RANK_CONSTANT = 60
"""Of reciprocal rank fusion (Cormack et al. 2009): how little the first ranks alone decide."""
_CANDIDATES = 50
_MOST_EMBEDDED = 20_000
"""Passages that are embedded on a GPU; on a CPU a tenth, which takes a few minutes once."""
_AROUND_CHARACTERS = 1500


@dataclass(frozen=True)
class _Document:
    digest: str
    file: str
    passages: list[Passage]


class Library:
    """The documents at some paths. `refresh` reads what has changed; `search` finds passages."""

    def __init__(self, paths: list[Path], store: Path | None = None) -> None:
        """`store`: where what was read is kept, in place of the user's cache."""
        self.paths = paths
        self.left_out: list[dict[str, str]] = []
        """Files that are not searched, with the reason."""
        self.read_again = 0
        """Files that the last refresh had to read."""
        self.notice = ""
        """A sentence on why no embeddings are used; empty where they are."""
        self._store = store
        self._documents: list[_Document] = []
        self._passages: list[Passage] = []
        self._key = ""
        self._bm25: Any = None
        self._embedder: Embedder | None = None
        self._embedding_name = ""
        self._vectors: NDArray[np.float32] | None = None  # (passages, width)

    def refresh(self, progress: Progress, cancelled: Callable[[], bool]) -> None:
        """Read what has changed since, and index it. Raises UnusableInput where there is nothing to search."""
        bm25s = _bm25s()
        with closing(Store(self._store)) as store:
            documents = self._read(store, progress, cancelled)
            if cancelled():
                return
            key = hashlib.sha256(
                "\n".join(f"{document.digest} {document.file}" for document in documents).encode()
            ).hexdigest()
            if key == self._key:
                return
            self._documents = documents
            self._passages = [passage for document in documents for passage in document.passages]
            if not self._passages:
                raise self._no_text()
            self._index(bm25s, progress, cancelled)
            if not cancelled():
                self._embed(store, progress, cancelled)
            store.settle(document.digest for document in documents)
        if not cancelled():
            self._key = key

    def _no_text(self) -> UnusableInput:
        place = one_line(self.paths[0])
        reasons = [_("{file}: {reason}", file=file["file"], reason=file["reason"]) for file in self.left_out[:3]]
        if not reasons:
            return UnusableInput(
                "There is no document with text at {place}: give text, Markdown, HTML, PDF or source code.", place=place
            )
        return UnusableInput(
            "There is no document with text at {place} ({reasons}): give text, Markdown, HTML, PDF or source code.",
            place=place,
            reasons=one_line(in_a_row(reasons), max_length=300),
        )

    def summary(self) -> dict[str, Any]:
        """As in `tuitune.session.result_requests.Attached`."""
        return {
            "files": len(self._documents),
            "passages": len(self._passages),
            "left_out": self.left_out,
            "embeddings": self._embedding_name if self._vectors is not None else "",
            "notice": self.notice,
        }

    def search(self, question: str, limit: int = 5) -> list[Passage]:
        """The passages that answer a question best, with their scores: of the fused ranks, at most 1."""
        rankings = [self._by_words(question), self._by_meaning(question)]
        scores: dict[int, float] = {}
        available = [ranking for ranking in rankings if ranking is not None]
        for ranking in available:
            for rank, place in enumerate(ranking, 1):
                scores[place] = scores.get(place, 0.0) + (_RANK_CONSTANT + 1) / (_RANK_CONSTANT + rank) / len(available)
        best = sorted(scores, key=lambda place: -scores[place])[:limit]
        return [self._shown(place, scores[place]) for place in best]

    # --- reading ----------------------------------------------------------------------------------------------

    def _read(self, store: Store, progress: Progress, cancelled: Callable[[], bool]) -> list[_Document]:
        files = list(files_of(self.paths))
        documents: list[_Document] = []
        self.left_out, self.read_again = [], 0
        with closing(PdfReader()) as pdf:
            for done, (path, name) in enumerate(files):
                if cancelled():
                    return []
                if done % 100 == 0:
                    progress(_("Reading the documents"), done, len(files))
                try:
                    documents.append(self._document(path, safe_text(name), store, pdf))
                except Unreadable as reason:
                    self.left_out.append({"file": one_line(name, max_length=200), "reason": reason.sentence})
        return documents

    def _document(self, path: Path, name: str, store: Store, pdf: PdfReader) -> _Document:
        """A file as it is now, from the cache where that has it. Raises Unreadable."""
        try:
            file_status = os.stat(path)
        except OSError:
            raise Unreadable("it is gone") from None
        digest = store.digest_of(path, file_status)
        if digest is not None and (known := store.passages(digest, name)) is not None:
            return _Document(digest, name, known)
        content = content_of(path)
        kind = kind_of(path) or "text"
        digest = hashlib.blake2b(content, digest_size=16, person=kind.encode()).hexdigest()
        known = store.passages(digest, name)
        if known is not None:
            store.keep_place(path, file_status, digest)
            return _Document(digest, name, known)
        self.read_again += 1
        blocks = pdf.blocks_of(path) if kind == "pdf" else blocks_of(path, content)
        passages = passages_of(name, [replace(block, text=safe_text(block.text)) for block in blocks])
        if not passages:
            raise Unreadable("it holds no text")
        store.keep(path, file_status, digest, passages)
        return _Document(digest, name, passages)

    # --- indexing ---------------------------------------------------------------------------------------------

    def _index(self, bm25s: Any, progress: Progress, cancelled: Callable[[], bool]) -> None:
        terms: list[list[str]] = []
        for done, passage in enumerate(self._passages):
            if done % 1000 == 0:
                progress(_("Indexing the passages"), done, len(self._passages))
                if cancelled():
                    return
            terms.append(terms_of(f"{passage.file} {passage.heading} {passage.text}") or [""])
        self._bm25 = bm25s.BM25()
        self._bm25.index(terms, show_progress=False)

    def _by_words(self, question: str) -> list[int]:
        known = [term for term in question_terms(question) if term in self._bm25.vocab_dict]
        if not known:
            return []
        scores: NDArray[np.float32] = self._bm25.get_scores(known)
        number = min(_CANDIDATES, len(scores))
        best = np.argpartition(-scores, number - 1)[:number]
        return [int(place) for place in best[np.argsort(-scores[best], kind="stable")] if scores[place] > 0]

    def _embed(self, store: Store, progress: Progress, cancelled: Callable[[], bool]) -> None:
        """The vectors of all passages; those of documents that were embedded before are in the cache."""
        self._vectors, self.notice = None, ""
        folder = embedding_model()
        if folder is None:
            self.notice = _(
                "Passages are found by their words alone: no embedding model is on this machine (${variable} may name "
                "the folder of one).",
                variable=VARIABLE,
            )
            return
        try:
            self._embedder = self._embedder or Embedder(folder)
        except Exception as error:  # whatever such a folder holds
            reason = one_line(error, max_length=160)
            self.notice = _(
                "Passages are found by their words alone: {folder} cannot be loaded ({reason}).",
                folder=one_line(folder),
                reason=reason,
            )
            return
        limit = _MOST_EMBEDDED if self._embedder.on_gpu else _MOST_EMBEDDED // 10
        if len(self._passages) > limit:
            self.notice = _(
                "Passages are found by their words alone: embedding {passages:,} of them would take too long here (up "
                "to {limit:,} are).",
                passages=len(self._passages),
                limit=limit,
            )
            return
        model = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
        self._embedding_name = next(
            (part for part in reversed(folder.parts) if "-" in part or "_" in part), folder.name
        )
        vectors = {document.digest: store.vectors(model, document.digest) for document in self._documents}
        missing = [document for document in self._documents if vectors[document.digest] is None]
        texts = [f"{passage.heading}\n{passage.text}" for document in missing for passage in document.passages]
        if texts:
            new_vectors = self._embedder.passages(
                texts, lambda done: progress(_("Embedding the passages"), done, len(texts)), cancelled
            )
            if len(new_vectors) < len(texts):
                return
            at = 0
            for document in missing:
                vectors[document.digest] = new_vectors[at : at + len(document.passages)]
                store.keep_vectors(model, document.digest, new_vectors[at : at + len(document.passages)])
                at += len(document.passages)
        self._vectors = np.concatenate([vectors[document.digest] for document in self._documents])

    def _by_meaning(self, question: str) -> list[int] | None:
        if self._vectors is None or self._embedder is None:
            return None
        likeness = self._vectors @ self._embedder.query(question)
        number = min(_CANDIDATES, len(likeness))
        best = np.argpartition(-likeness, number - 1)[:number]
        return [int(place) for place in best[np.argsort(-likeness[best], kind="stable")]]

    # --- showing ----------------------------------------------------------------------------------------------

    def _shown(self, place: int, score: float) -> Passage:
        """A passage with its score, and what stands around it in its document."""
        passage = self._passages[place]
        around = [self._near(place, passage.file, step) for step in (-1, 1)]
        before = around[0][-_AROUND_CHARACTERS:]
        return replace(passage, score=round(score, 4), before=before, after=around[1][:_AROUND_CHARACTERS])

    def _near(self, place: int, file: str, step: int) -> str:
        """The text of the passage before or after in the same document."""
        neighbour_place = place + step
        if not 0 <= neighbour_place < len(self._passages) or self._passages[neighbour_place].file != file:
            return ""
        return self._passages[neighbour_place].text


def _bm25s() -> Any:
    """The library that ranks by words. Raises TuituneError where it is not installed."""
    try:
        import bm25s
    except ImportError:
        raise TuituneError(
            "Looking things up in documents needs bm25s, which is not installed here: `{command}`.",
            command=install_line("bm25s"),
        ) from None
    return bm25s
