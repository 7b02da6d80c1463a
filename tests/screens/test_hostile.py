"""Hostile text in every place that shows outside text: what matters is the bytes that reach the terminal.

The app is walked through with keys, against a real session, real files, and a Hub and a card that are hostile too.
"""

import contextlib
import operator
import re
import shutil
from collections.abc import Callable, Iterator

import pyte
import pytest

from tests.engine.hub_server import Hub, hub_server
from tests.forking import forking_in
from tests.screens.hostile import KINDS, LONG_WORD, Place, make, pasted, put_on_hub, write_nvml
from tests.terminal.terminal import Terminal
from tuitune.runs.folder import all_runs

# What a terminal would obey: sequences that carry our payload, 8-bit controls, bidirectional controls.
OBEYED = re.compile(
    rb"\x1b\](0;|8;;http|52;c;RVZJTA==|77;)|\x1bP|\x1b\[\?7777"
    rb"|\xc2[\x80-\x9f]|\xe2\x80[\xaa-\xae\x8e\x8f]|\xe2\x81[\xa6-\xa9]|\x00"
)
ENTER, ESC, TAB, UP, DOWN, HOME, PAGE_DOWN = "\r", "\x1b", "\t", "\x1b[A", "\x1b[B", "\x1b[H", "\x1b[6~"
BACK_TAB = "\x1b[Z"
COLUMNS = 100
SECONDS = 60.0
BLINKING_CELLS = 4
"""More than a cursor that blinks changes."""


def ctrl(letter: str) -> str:
    return chr(ord(letter) & 0x1F)


def paste(text: str) -> str:
    return f"\x1b[200~{pasted(text)}\x1b[201~"


Walker = Callable[..., bytes]
"""Takes the kinds of hostile text and the app's options; gives what was written to the terminal."""


class Walk(Terminal):
    """A walk through the app, which ends where a word is not shown in time."""

    def see(self, *words: str) -> None:
        for word in words:
            self.until(word, SECONDS)

    def go(self, keys: str, *words: str) -> None:
        """Press keys, then see the words, of which one at least was not there before."""
        assert any(word not in self.text for word in words), f"{words} are there already:\n{self.text}"
        self.press(keys)
        self.see(*words)

    def leave(self, word: str, key: str = ESC) -> None:
        """Press a key, which ends that the word is shown."""
        self.press(key)
        self.until(lambda text: word not in text, SECONDS)

    def focus(self, key: str) -> None:
        """Press a key that moves the focus, and wait until it has: what is typed before goes where the focus was."""
        before = self.look()
        self.press(key)
        self.until(lambda _: sum(map(operator.ne, before, self.look())) > BLINKING_CELLS, SECONDS)

    def look(self) -> list[pyte.screens.Char]:
        """Every cell, with its colours."""
        return [self.screen.buffer[row][column] for row in range(self.screen.lines) for column in range(COLUMNS)]

    def find(self, key: str, *words: str) -> None:
        """Press a key again and again until each word has been seen."""
        for word in words:
            for _ in range(100):
                before = self.text
                if word in before:
                    break
                self.press(key)
                self.until(before.__ne__, SECONDS)
            else:
                raise AssertionError(f"{word!r} did not appear; the screen shows:\n{self.text}")


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_server() as server:
        yield server


@pytest.fixture(scope="module")
def surroundings(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of the apps, which names the Hub, and what forks their sessions."""
    with forking_in(hub.environment(tmp_path_factory.mktemp("hf"))) as surroundings:
        yield {**surroundings, "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def walk_through(
    hub: Hub, surroundings: dict[str, str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Walker]:
    """Walks through the app among such text, on a machine and with a Hub that are hostile too."""
    with contextlib.ExitStack() as ending:

        def walk_through(kinds: dict[str, str], *options: str) -> bytes:
            folder = tmp_path_factory.mktemp("h")  # a short path, of which fields show more
            place = make(folder, kinds)
            hub.repositories.clear()
            put_on_hub(place, hub)
            write_nvml(folder, place.text("cardname"))
            for name, value in {**surroundings, "PYTHONPATH": str(folder)}.items():
                monkeypatch.setenv(name, value)
            monkeypatch.chdir(place.folder)
            walk = Walk("--reduced-motion", "--runs", str(place.runs), *options, columns=COLUMNS, rows=54)
            walk.child.delaybeforesend = None  # what is sent is only sent once the app is ready for it
            ending.callback(walk.close)
            whole_walk(place, walk)
            return walk.raw

        yield walk_through
    shutil.rmtree(surroundings["HF_HOME"])


@pytest.mark.parametrize("kinds", [KINDS, LONG_WORD], ids=["all kinds", "a long word"])
def test_nothing_hostile_reaches_the_terminal(kinds: dict[str, str], walk_through: Walker) -> None:
    written = walk_through(kinds)
    assert b"Traceback" not in written
    obeyed = OBEYED.search(written)
    assert obeyed is None, written[max(0, obeyed.start() - 80) : obeyed.end() + 80]


def test_ascii_is_ascii(walk_through: Walker) -> None:
    written = walk_through(KINDS, "--ascii")
    assert written.isascii(), re.findall(rb"[^\x00-\x7f]{1,20}", written)[:5]


def whole_walk(place: Place, walk: Walk) -> None:
    # The machine, and runs that ended badly.
    walk.see("cardname", "failedrun", "brokenrun")
    walk.go("g", "Which GPU?", "cardname")
    walk.leave("Which GPU?")
    walk.go(DOWN * 3 + ENTER, "The recipe /")
    walk.go(UP + ENTER, "failedtext", "phasetext", "noticetext")
    walk.go("l", "prompttext", "reply0text", "reply1text")
    walk.go("l", "loglast")

    # Back through the settings, the data and the model of the run that failed.
    walk.go(ESC, "Settings: by goal", "ready", "Trains")
    walk.go(ctrl("t"), "Settings: every field", "turnscolumn")
    walk.go(ctrl("t"), "Settings: YAML", "modelfolder", "turnscolumn")
    walk.go(ctrl("t"), "Settings: by goal", "Enter Go on")  # not ^n: the focus has left the YAML, which keeps Esc
    walk.go(ESC, "2 datasets", "datafile", "alsofile", "askedtext")
    walk.go(ctrl("r"), "othertext")
    walk.go(ctrl("o"), "Which column is which?", "turnscolumn", "unusedcolumn")
    walk.leave("Which column is which?")
    walk.go(ctrl("s"), "A dataset of the Hugging Face Hub")
    walk.go("sea" + ENTER, "sea/shanties")
    walk.go(ENTER, "configname")
    walk.leave("configname")
    walk.leave("A dataset of the Hugging Face Hub")
    walk.go(ctrl("f"), "Which dataset?", "modelfolder", "datafile", "alsofile", "pairsfile")
    walk.focus(TAB)
    walk.go(DOWN * 4 + ENTER, "paircolumn")
    walk.go(ctrl("o"), "Which column is which?", "paircolumn")
    walk.leave("Which column is which?")
    walk.go(ESC, "Model folders here", "modelend")
    walk.go("sea" + ctrl("f"), "hubmodel")
    walk.go(DOWN + ENTER, "The Hub shows no model sea/hubmodel")

    # A recipe from a file, and its run.
    walk.go(ESC, "Run from a recipe file")
    walk.go(HOME + DOWN + ENTER, "Which recipe?", "recipefile", "modelfolder", "broken.yaml")
    walk.focus(TAB)
    walk.go(DOWN * 2 + ENTER, "unknownsetting")
    walk.until(lambda text: "Which recipe?" not in text, SECONDS)
    walk.go(ENTER, "Which recipe?", "recipefile")
    walk.focus(TAB)
    walk.go(DOWN * 3 + ENTER, "Model folders here", "modelend")
    walk.go(ENTER, "turnscolumn", "askedtext")
    walk.go(ctrl("t"), "Rows by their tokens")
    walk.find(PAGE_DOWN, "unknownrole", "unknownfield", "unusedcolumn")
    walk.go(ctrl("n"), "Settings: by goal", "Enter Go on")
    walk.go(ENTER, "Done after 1 steps")
    walk.until(lambda text: "loglast" not in text, SECONDS)
    walk.go("l", "unknownrole")
    walk.go("l", "sampleprompt", "replytext")

    # The run under another name, as its owner may give it.
    run = all_runs(place.runs)[0]
    run.folder.rename(place.runs / place.name("renamedrun"))
    walk.go(ctrl("p"), "Search for commands", "Go to this machine")
    walk.press("home")
    walk.until(lambda text: "Go to this machine" in text and "Choose the colours" not in text, SECONDS)
    walk.go(ENTER, "renamedrun")
    walk.go(HOME + DOWN * 2 + ENTER, "Done after 1 steps", "renamedrun", "sampleprompt")
    walk.go(ENTER, "Ask renamedrun", "sampleprompt")
    walk.go(paste(place.text("")[:2_000] + " pastedtext"), "pastedtext")
    walk.go(ENTER, "tokens/s", "replyend")
    walk.go(ENTER, "gguf:q8_0")
    walk.go(ctrl("e"), "Made", "renamedrun", "Tab: make others")
    walk.leave("Tab: make others", BACK_TAB * 2)
    walk.go(paste(place.name("exportfolder")) + ENTER, "Enter makes them in")
    walk.go(ENTER, "made earlier", "Tab: make others", "exportfolder")
    walk.leave("Tab: make others", BACK_TAB * 2)
    walk.go(paste(place.name("refusedfolder")) + ENTER, "refusedfolder", "is not a folder")
    walk.go(ESC, "adapter", "Say something")
    walk.go(ctrl("s"), "Saved as")
    walk.press(ctrl("q"))
    assert walk.exit_status() == 0
