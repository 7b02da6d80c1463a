"""How fast documents are indexed, and how often the right passage is among the first five.

    python -m benchmarks.documents [--pages N] [--only index|questions] [--json FILE]

Indexing: pages of about 3,000 characters in Markdown, HTML, text, Python and PDF, made from a fixed seed with words as
unevenly frequent as those of a language; without embeddings, from nothing, again unchanged, and after a change.
Questions: those of `documents_questions.jsonl`, about this project, over its own pages and modules; a passage is right
if it is of the file and holds the words that answer.
"""

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tuitune.documents.library import Library

REPOSITORY = Path(__file__).parents[1]
_PAGE_CHARACTERS = 3000
_PAGES_A_FILE = 10
_SYLLABLES = (
    "ka",
    "re",
    "to",
    "mi",
    "shi",
    "no",
    "lan",
    "ver",
    "den",
    "sol",
    "tra",
    "pel",
    "mor",
    "gin",
    "tan",
    "ries",
    "bel",
)


def make_pages(folder: Path, pages: int) -> None:
    """Files of ten pages each: of ten files four Markdown, two HTML, two text, one Python, one PDF."""
    chance = random.Random(3407)
    words = ["".join(chance.choices(_SYLLABLES, k=chance.randint(1, 4))) for _ in range(30_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]  # Zipf's law

    def sentence() -> str:
        return " ".join(chance.choices(words, cum_weights=sums, k=chance.randint(6, 18))).capitalize() + "."

    def paragraph() -> str:
        return " ".join(sentence() for _ in range(chance.randint(3, 7)))

    sums: list[float] = []
    for weight in weights:
        sums.append(weight + (sums[-1] if sums else 0))
    for number in range(pages // _PAGES_A_FILE):
        text: list[list[str]] = []
        for _ in range(_PAGES_A_FILE):
            page: list[str] = []
            while sum(map(len, page)) < _PAGE_CHARACTERS:
                page.append(paragraph())
            text.append(page)
        kind = "mmmmhhttsp"[number % 10]
        name = {"m": "md", "h": "html", "t": "txt", "s": "py", "p": "pdf"}[kind]
        file = folder / f"{number % 50:02}" / f"{number:05}.{name}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(_FORMS[kind](text))


def _markdown(pages: list[list[str]]) -> bytes:
    return "\n\n".join("\n\n".join([f"## {page[0][:40]}", *page]) for page in pages).encode()


def _html(pages: list[list[str]]) -> bytes:
    body = "".join(f"<h2>{page[0][:40]}</h2>" + "".join(f"<p>{part}</p>\n" for part in page) for page in pages)
    return f"<html><head><style>p {{}}</style></head><body>{body}</body></html>".encode()


def _text(pages: list[list[str]]) -> bytes:
    return "\n\n".join("\n\n".join(page) for page in pages).encode()


def _python(pages: list[list[str]]) -> bytes:
    functions = []
    for page in pages:
        for part in page:
            first, *rest = part.rstrip(".").lower().replace(".", "").split()
            functions.append(f'def {first}_{rest[0]}({rest[1]}):\n    """{part}"""\n    return {rest[2]}\n\n\n')
    return "".join(functions).encode()


def _pdf(pages: list[list[str]]) -> bytes:
    """A PDF with a page for each, lines of 90 characters."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    font = "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    for page in pages:
        text = " ".join(page)
        lines = " ".join(f"({text[at : at + 90]}) Tj T*" for at in range(0, len(text), 90))
        content = f"BT /F1 9 Tf 11 TL 40 800 Td {lines} ET"
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {len(objects)} 0 R /Resources {font} >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out = b"%PDF-1.4\n"
    offsets: list[int] = []
    for number, text in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{text}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    trailer = f"trailer << /Size {size} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF"
    return out + f"xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}".encode()


_FORMS: dict[str, Callable[[list[list[str]]], bytes]] = {
    "m": _markdown,
    "h": _html,
    "t": _text,
    "s": _python,
    "p": _pdf,
}


def index_speed(pages: int) -> dict[str, Any]:
    """Seconds to index pages from nothing, unchanged, and with one file changed; and to search."""
    folder = Path(tempfile.mkdtemp(prefix="tuitune-documents-"))
    try:
        (folder / "pages").mkdir()
        make_pages(folder / "pages", pages)
        size = sum(file.stat().st_size for file in (folder / "pages").rglob("*") if file.is_file())
        result: dict[str, Any] = {"pages": pages, "megabytes": round(size / 1e6, 1), "cores": os.cpu_count()}
        changed = next((folder / "pages").rglob("*.md"))
        with patch("tuitune.documents.library.embedding_model", return_value=None):
            for name in ("index_s", "unchanged_s", "one_file_changed_s"):
                if name == "one_file_changed_s":
                    changed.write_text("# Changed\n\nAnother text.\n")
                library = Library([folder / "pages"], folder / "store")
                began = time.perf_counter()
                library.refresh(lambda text, done, total: None, lambda: False)
                result[name] = round(time.perf_counter() - began, 1)
                result[name.replace("_s", "_files_read")] = library.read_again
        began = time.perf_counter()
        for _ in range(20):
            library.search("Another text about lanver and densol", 5)
        result["search_ms"] = round((time.perf_counter() - began) / 20 * 1000, 1)
        result["passages"] = library.summary()["passages"]
        return result
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def questions_found(*, embeddings: bool) -> dict[str, Any]:
    """How many questions find their passage first, and among the first five; those that do not are named."""
    lines = (Path(__file__).parent / "documents_questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    store = Path(tempfile.mkdtemp(prefix="tuitune-documents-"))
    paths = [
        *(REPOSITORY / name for name in ("README.md", "RECIPE.md", "ARCHITECTURE.md", "CHANGELOG.md")),
        *(REPOSITORY / name for name in ("sample_data/README.md", "benchmarks/README.md")),
        *sorted(page for page in (REPOSITORY / "docs").glob("*.md") if not page.name.endswith(".ja.md")),
        *sorted((REPOSITORY / "tuitune" / "chat").glob("*.py")),
        *sorted((REPOSITORY / "tuitune" / "documents").glob("*.py")),
        *sorted((REPOSITORY / "tuitune" / "train").glob("*.py")),
    ]
    try:
        if embeddings:
            library = Library(paths, store)
            library.refresh(lambda text, done, total: None, lambda: False)
        else:
            with patch("tuitune.documents.library.embedding_model", return_value=None):
                library = Library(paths, store)
                library.refresh(lambda text, done, total: None, lambda: False)
        summary = library.summary()
        ranks, missed = [], []
        for question in questions:
            passages = library.search(question["question"], 5)
            right = (
                place
                for place, passage in enumerate(passages)
                if passage.file == question["file"] and question["answer"] in " ".join(passage.text.split())
            )
            rank = next(right, None)
            ranks.append(rank)
            if rank is None:
                stands = any(
                    question["answer"] in " ".join(path.read_text(encoding="utf-8").split())
                    for path in paths
                    if path.name == question["file"]
                )
                missed.append(question["question"] if stands else f"{question['question']} (its answer is gone)")
    finally:
        shutil.rmtree(store, ignore_errors=True)
    return {
        "embeddings": summary["embeddings"],
        "documents": summary["files"],
        "passages": summary["passages"],
        "questions": len(questions),
        "first": sum(rank == 0 for rank in ranks),
        "among_first_five": sum(rank is not None for rank in ranks),
        "missed": missed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pages", type=int, default=10_000)
    parser.add_argument("--only", choices=["index", "questions"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    if arguments.only != "questions":
        result["index"] = index_speed(arguments.pages)
        print(json.dumps(result["index"], indent=2), flush=True)
    if arguments.only != "index":
        result["questions"] = [questions_found(embeddings=False)]
        print(json.dumps(result["questions"][0], indent=2), flush=True)
        fused = questions_found(embeddings=True)
        if fused["embeddings"]:
            result["questions"].append(fused)
            print(json.dumps(fused, indent=2), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
