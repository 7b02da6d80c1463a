"""Outside text is made harmless before a terminal sees it."""

import pytest
from rich.cells import cell_len

from tuitune.text import one_line, safe_text, without_controls


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
        ("\x1b]52;c;aGk=\x07", "␛]52;c;aGk=␇"),
        ("\x9b31m", "�31m"),
        ("user\u202egnp.exe", "user�gnp.exe"),
        ("a\x00b\x7fc", "a␀b␡c"),
        ("\ud800", "�"),
        ("line\r\nline\rline", "line\nline\nline"),
        ("日本語 👩‍🚀 [bold]x[/b]\tkept", "日本語 👩‍🚀 [bold]x[/b]\tkept"),
    ],
)
def test_what_a_terminal_would_obey_becomes_visible(hostile: str, shown: str) -> None:
    assert safe_text(hostile) == shown


def test_long_text_is_cut_with_an_ellipsis() -> None:
    assert safe_text("x" * 100_000, max_length=10) == "x" * 9 + "…"
    assert safe_text("short", max_length=10) == "short"


def test_one_line_folds_white_space() -> None:
    assert one_line(" two\n\n lines\t here ") == "two lines here"


def test_a_line_keeps_its_columns_without_what_a_terminal_obeys() -> None:
    line = "a\x1b[2J\x9b1m\u202eb\t\n\ud800\ufeff日本é\u0301"
    assert without_controls(line) == "a[2J1mb�日本é\u0301"
    assert cell_len(without_controls(line)) == cell_len(line)
