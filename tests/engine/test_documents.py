"""Documents are read with their places, split by structure, found in any script, and read again when they change."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tuitune.documents import library as library_module
from tuitune.documents.block import Unreadable
from tuitune.documents.library import Library
from tuitune.documents.passage import Passage
from tuitune.documents.read import blocks_of, text_of
from tuitune.documents.split import MAX_CHARACTERS, passages_of
from tuitune.documents.words import terms_of
from tuitune.errors import TuituneError, UnusableInput

HANDBOOK = """\
# Handbook

What everybody must know.

## Boats

### Mooring

A boat is moored with two ropes, one at each end.

```sh
# no heading: a comment
moor --ropes 2
```

Fees
----

The fee for a night is nine florins.
"""
PAGE = """<html><head><title>x</title><style>p { color: red }</style></head>
<body><h1>Museum</h1><script>alert("opening hours: never")</script>
<h2>Hours</h2><p>It is open from nine
to five.</p><table><tr><td>Monday</td><td>closed</td></tr></table></body></html>
"""
SOURCE = '''"""Sums."""

RATE = 3


class Till:
    """Counts money."""

    def total(self, coins):
        """The worth of all coins."""
        return sum(coins)


def change(amount):
    return amount % 10
'''


def pdf_of(*pages: str) -> bytes:
    """A PDF of these pages, each one line of text."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for text in pages:
        content = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
        font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects)} 0 R "
            f"/Resources << /Font << /F1 {font} >> >> >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out = b"%PDF-1.4\n"
    offsets: list[int] = []
    for number, text in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{text}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    start = len(out)
    size = len(objects) + 1
    trailer = f"trailer << /Size {size} /Root 1 0 R >>"
    return out + f"xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}\nstartxref\n{start}\n%%EOF".encode()


@pytest.fixture(autouse=True)
def words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No embedding model: what is found by words must not hang on what this machine has."""
    monkeypatch.setattr(library_module, "embedding_model", lambda: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "handbook.md").write_text(HANDBOOK)
    (folder / "museum.html").write_text(PAGE)
    (folder / "till.py").write_text(SOURCE)
    (folder / "harbour.txt").write_bytes("港は朝六時に開きます。\n\n船は東の桟橋に泊めてください。".encode("cp932"))
    (folder / "tides.pdf").write_bytes(pdf_of("The tide table of the bay.", "High water is at seven in spring."))
    return folder


def searched(folder: Path, store: Path) -> Library:
    library = Library([folder], store)
    library.refresh(lambda text, done, total: None, lambda: False)
    return library


@pytest.mark.parametrize(
    ("question", "file", "place", "heading", "text"),
    [
        (
            "How many ropes are needed to moor boats?",
            "handbook.md",
            "lines 9–14",
            "Handbook › Boats › Mooring",
            "two ropes",
        ),
        ("What is the fee per night?", "handbook.md", "line 19", "Handbook › Fees", "nine florins"),
        ("When is the museum open?", "museum.html", "lines 3–4", "Museum › Hours", "from nine to five"),
        ("Which function counts the worth of coins?", "till.py", "lines 9–11", "Till › total", "sum(coins)"),
        ("港は何時に開きますか", "harbour.txt", "lines 1–3", "", "朝六時"),
        ("桟橋", "harbour.txt", "lines 1–3", "", "東の桟橋"),
        ("When is high water?", "tides.pdf", "page 2", "", "High water is at seven"),
    ],
)
def test_a_question_finds_its_passage_with_its_place(
    folder: Path, tmp_path: Path, question: str, file: str, place: str, heading: str, text: str
) -> None:
    first = searched(folder, tmp_path / "store").search(question)[0]
    assert (first.file, first.place, first.heading) == (file, place, heading)
    assert text in " ".join(first.text.split()) and 0 < first.score <= 1


def test_what_is_not_shown_is_not_found(folder: Path, tmp_path: Path) -> None:
    assert all("never" not in passage.text for passage in searched(folder, tmp_path / "store").search("never"))


def test_a_passage_brings_what_stands_around_it(folder: Path, tmp_path: Path) -> None:
    passage = searched(folder, tmp_path / "store").search("What is the fee per night?")[0]
    assert "two ropes" in passage.before and passage.after == ""


def test_only_what_has_changed_is_read_again(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert searched(folder, store).read_again == 5
    assert searched(folder, store).read_again == 0
    (folder / "handbook.md").write_text(HANDBOOK.replace("nine florins", "ten florins"))
    (folder / "copy.md").write_text(HANDBOOK)
    library = searched(folder, store)
    assert library.read_again == 1, "the copy is known by its content"
    assert "ten florins" in library.search("fee for a night in the handbook")[0].text
    (folder / "handbook.md").unlink()
    library.refresh(lambda text, done, total: None, lambda: False)
    assert library.summary()["files"] == 5


def test_a_spoilt_cache_is_made_anew(folder: Path, tmp_path: Path) -> None:
    searched(folder, tmp_path / "store")
    for file in (tmp_path / "store").iterdir():
        file.write_bytes(b"not a database at all" * 500)
    assert searched(folder, tmp_path / "store").search("fee")[0].file == "handbook.md"
    file = next((tmp_path / "store").glob("*.sqlite"))
    begin = file.read_bytes()[:8192]
    file.write_bytes(begin + b"\xff" * (file.stat().st_size - len(begin)))  # it can be opened, and no more
    assert searched(folder, tmp_path / "store").search("fee")[0].file == "handbook.md"
    assert searched(folder, tmp_path / "store").read_again == 0, "it is kept again"


def test_hostile_and_broken_files_are_left_out_with_their_reason(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 \xff\xfe nothing of the kind")
    (folder / "binary.txt").write_bytes(b"a\0b" * 100)
    (folder / "empty.md").write_text(" \n")
    (folder / "hidden").mkdir()
    (folder / ".secret.md").write_text("secret word: abracadabra")
    os.mkfifo(folder / "pipe.txt")
    (tmp_path / "outside.md").write_text("outside word: abracadabra")
    (folder / "link.md").symlink_to(tmp_path / "outside.md")
    (folder / "deep.py").write_text("(" * 50_000)
    (folder / "deep.html").write_text("<div>" * 50_000 + "far down")
    (folder / "long.txt").write_text("x" * 500_000)
    library = searched(folder, tmp_path / "store")
    reasons = {file["file"]: file["reason"] for file in library.left_out}
    assert reasons == {
        "broken.pdf": "it is no PDF",
        "binary.txt": "it is no text",
        "empty.md": "it holds no text",
        "pipe.txt": "it is no file",
    }
    assert not any("abracadabra" in passage.text for passage in library.search("abracadabra"))
    assert library.search("far down")[0].file == "deep.html"


def test_nothing_to_search_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match=r"There are no documents at .*absent"):
        searched(tmp_path / "absent", tmp_path / "store")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_bytes(b"\0")
    with pytest.raises(UnusableInput, match=r"no document with text at .*a\.txt: it is no text"):
        searched(tmp_path / "empty", tmp_path / "store")


def test_a_library_that_is_not_installed_is_named_with_the_command_that_installs_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "pypdfium2.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"))
    (only_pdf := tmp_path / "only").mkdir()
    (only_pdf / "fees.pdf").write_bytes(pdf_of("The fee is nine florins."))
    with pytest.raises(UnusableInput, match="PDF needs pypdfium2") as without_pdfium:
        searched(only_pdf, tmp_path / "store")
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(TuituneError, match="needs bm25s, which is not installed here") as without_bm25s:
        searched(folder, tmp_path / "store")
    for refusal, package in ((without_pdfium, "pypdfium2"), (without_bm25s, "bm25s")):
        words = shlex.split(str(refusal.value).split("`")[1])
        assert words == [sys.executable, "-m", "pip", "install", package]
        installed = subprocess.run(words, check=False, capture_output=True, text=True)  # it is there: no network
        assert f"Requirement already satisfied: {package}" in installed.stdout


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp932", "euc_jp"])
def test_japanese_is_read_in_the_encodings_it_comes_in(encoding: str) -> None:
    text = "灯台は岬の先にあり、夜のあいだ光を送ります。カタカナもひらがなも。"
    assert text_of(text.encode(encoding)) == text


def test_other_encodings_are_guessed_and_never_fail() -> None:
    german = "Die Gebühr für größere Schiffe beträgt zwölf Gulden, für Fähren fünf." * 5
    assert text_of(german.encode("cp1252")) == german
    assert "Größe" in text_of(b"<meta charset=iso-8859-1>" + "Größe".encode("latin-1"), html=True)
    with pytest.raises(Unreadable):
        text_of(b"\x7fELF\0\0\0")


def test_long_blocks_are_cut_with_their_lines() -> None:
    text = "\n".join(f"Line {number} says something of some length." for number in range(1, 201))
    passages = passages_of("a.txt", blocks_of(Path("a.txt"), text.encode()))
    assert all(len(passage.text) <= MAX_CHARACTERS for passage in passages)
    lines = text.splitlines()
    for passage in passages:
        assert passage.text.splitlines() == lines[passage.start_line - 1 : passage.end_line]
    assert [passage.start_line for passage in passages[1:]] == [passage.end_line + 1 for passage in passages[:-1]]


def test_names_are_found_by_their_parts_and_words_by_their_stems() -> None:
    assert set(terms_of("max_length maxLength HTTPServer")) >= {"max", "length", "http", "server"}
    assert terms_of("Checkpoints saved") == terms_of("checkpoint save")
    assert terms_of("東京タワー") == ["東京", "京タ", "タワ", "ワー", "東", "京"]


def test_searching_needs_no_torch() -> None:
    code = "import sys, tuitune.documents.library; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_passage_says_where_it_stands() -> None:
    assert Passage("a.md", "x", start_line=3, end_line=3).place == "line 3"
    assert Passage("a.pdf", "x", page=4).sent == "a.pdf, page 4\nx"
