"""Hostile text in every place that shows outside text: what matters is the bytes that reach the terminal."""

import json
import re
import sys
from pathlib import Path

import pexpect
import pytest

HOSTILE = {
    "markup": "[/b][@click=app.quit]quit[/] [red]red[/red] [link=http://evil]x[/link]",
    "escapes": "a\x1b]0;EVIL\x07b\x1b]52;c;RVZJTA==\x07c\x1b[2Jd\x1bP0;1|EVIL\x1b\\e\x1b]8;;http://evil\x07f",
    "c1": "a\x9b2Jb\x9d0;EVIL\x9cc\x90EVIL\x9c",
    "bidi": "user\u202etxt.exe\u2066x\u2069 \u200b\u200e\ufeff",
    "wide": "日本語の長い文章と絵文字🎉👨‍👩‍👧 " * 5,
    "combining": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞",
    "surrogate": "a\ud800b\x00c\x08d",
    "markdown": "# h\n```\nunclosed\n| a | b |\n|---\n<script>alert(1)</script> ![x](http://evil/x.png)" + "\n> " * 200,
}
# What a terminal would obey: sequences that carry our payload, 8-bit controls, bidirectional controls.
OBEYED = re.compile(
    rb"\x1b\][^\x07\x1b]*(EVIL|RVZJTA|evil)|\x1bP|\xc2[\x80-\x9f]|\xe2\x80[\xaa-\xae\x8e\x8f]|\xe2\x81[\xa6-\xa9]|\x00"
)


def bytes_of_a_walk(tmp_path: Path, payload: str, *options: str) -> tuple[bytes, int | None]:
    file = tmp_path / "payload.json"
    file.write_text(json.dumps(payload))
    arguments = ["-m", "tests.screens.hostile_app", str(tmp_path / "runs"), str(file), *options]
    child = pexpect.spawn(
        sys.executable, arguments, dimensions=(30, 100), timeout=60, cwd=str(Path(__file__).parents[2])
    )
    written = b""
    while True:
        try:
            written += child.read_nonblocking(65536, timeout=60)
        except pexpect.EOF:
            break
    child.close()
    return written, child.exitstatus


@pytest.mark.parametrize("payload", [" ".join(HOSTILE.values()), "w" * 100_000], ids=["all kinds", "a long word"])
def test_nothing_hostile_reaches_the_terminal(payload: str, tmp_path: Path) -> None:
    written, status = bytes_of_a_walk(tmp_path, payload)
    assert status == 0, written[-3000:].decode(errors="replace")
    assert b"Traceback" not in written
    found = OBEYED.search(written)
    assert found is None, written[max(0, found.start() - 80) : found.end() + 80]


def test_ascii_is_ascii(tmp_path: Path) -> None:
    written, status = bytes_of_a_walk(tmp_path, HOSTILE["wide"], "--ascii")
    assert status == 0, written[-3000:].decode(errors="replace")
    assert written.isascii(), re.findall(rb"[^\x00-\x7f]{1,20}", written)[:5]
