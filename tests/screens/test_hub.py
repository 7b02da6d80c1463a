"""The Hub as the screens speak to it, by a session and a server on 127.0.0.1: who may write, and an upload."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import OptionList, Static

from screens.app import TuituneApp
from tests.engine.hub_uploads import UploadHub, upload_hub
from tests.forking import forking_in
from tests.screens.conftest import screen_text, until, words
from tuitune.recipe import Recipe
from tuitune.recipe_sections import ExportSection

LARGE = (110, 50)


@dataclass
class Login:
    """The token that the user is logged in with, in its file."""

    file: Path

    def write(self, token: str) -> None:
        self.file.write_text(token)


@pytest.fixture(scope="module")
def only_hub() -> Iterator[UploadHub]:
    with upload_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def surroundings(only_hub: UploadHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of the sessions, which names the Hub, and what forks them."""
    with forking_in(
        {
            "HF_ENDPOINT": only_hub.endpoint,
            "HF_HOME": str(tmp_path_factory.mktemp("hub")),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # which has a server of its own
            "NO_PROXY": "127.0.0.1",
        }
    ) as surroundings:
        yield surroundings


@pytest.fixture
def login(surroundings: dict[str, str]) -> Login:
    login = Login(Path(surroundings["HF_HOME"]) / "token")
    login.write("hf_good")
    return login


@pytest.fixture
def hub(only_hub: UploadHub, surroundings: dict[str, str], login: Login, monkeypatch: pytest.MonkeyPatch) -> UploadHub:
    """The Hub of the sessions that are started, on which nothing is yet."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    only_hub.answers.set()  # to whoever waits for one since the test before
    vars(only_hub).update(vars(UploadHub()) | {"endpoint": only_hub.endpoint})
    return only_hub


@pytest.fixture
def app(recipe: Recipe, runs_folder: Path) -> TuituneApp:
    """The app on a recipe whose adapter goes to the Hub."""
    wanted = ExportSection(to=["adapter", "hub:adapter"], hub_repo="pirate")
    return TuituneApp(recipe.model_copy(update={"export": wanted}), runs_folder=runs_folder)


def means(pilot: Pilot[int]) -> str:
    """What the settings are said to mean."""
    return str(pilot.app.screen.query_one("#consequences", Static).content)


async def test_the_settings_ask_the_hub_once_and_again_for_another_token_or_after_a_refusal(
    hub: UploadHub, login: Login, app: TuituneApp
) -> None:
    async with app.run_test(size=LARGE) as pilot:

        async def changed(told: str) -> None:
            """Choose another goal, and wait for what is told of its export."""
            await pilot.press("down" if goals.highlighted == 0 else "up")
            assert told not in means(pilot), "what the settings mean is worked out anew"
            await until(pilot, lambda: told in means(pilot), what=told)

        await app.show_step("lora")
        goals = app.screen.query_one("#goals", OptionList)
        may = "✔ adapter, hub:adapter"
        await until(pilot, lambda: may in means(pilot), what=may)
        assert hub.asked() == 1
        for _change in range(3):
            await changed(may)
        assert hub.asked() == 1
        await app.show_step("data")
        await app.show_step("lora")
        await until(pilot, lambda: may in means(pilot), what=may)
        assert hub.asked() == 1, "it is known"

        login.write("hf_wrong")
        unknown = "hub:adapter: The Hub does not know this token"
        await changed(unknown)
        await changed(unknown)
        assert hub.asked() == 2
        await app.show_step("data")
        await app.show_step("lora")
        await until(pilot, lambda: hub.asked() == 3 and unknown in means(pilot), what="another question")
        login.write("hf_good")
        await changed(may)
        assert hub.asked() == 3, "what it said to this token is known"

        app.link.draft.set("export.hub_public", True)
        await changed(may)
        app.link.draft.set("export.hub_repo", "novel")
        await changed(may)
        await changed(may)
        assert hub.asked() == 5
    assert not hub.files, "nothing is made"


async def test_a_hub_that_does_not_answer_holds_nothing_up(hub: UploadHub, app: TuituneApp) -> None:
    hub.answers.clear()
    async with app.run_test(size=LARGE) as pilot:
        await app.show_step("lora")
        waiting = "hub:adapter: asking the Hub about the repository…"
        await until(pilot, lambda: waiting in means(pilot) and hub.asked() == 1, what=waiting)
        assert "Memory" in means(pilot) and "✔ adapter" in means(pilot), "what else the settings mean"
        await pilot.press("down")
        assert waiting not in means(pilot)
        await until(pilot, lambda: waiting in means(pilot), what="what the other settings mean")
        hub.answers.set()
        await until(pilot, lambda: "✔ adapter, hub:adapter" in means(pilot), what="the answer")
        assert hub.asked() == 1, "the second question was answered by the first one's answer"


async def test_an_adapter_goes_to_the_hub_by_keys_alone_once_the_token_is_right(
    hub: UploadHub, login: Login, attached: TuituneApp, tmp_path: Path
) -> None:
    async with attached.run_test(size=LARGE) as pilot:
        await until(pilot, lambda: "6 Export" in screen_text(pilot), what="the steps")
        await pilot.press("6")
        await until(pilot, lambda: "[✔] adapter" in screen_text(pilot), what="the kinds of export")
        await pilot.press("tab", *str(tmp_path / "out"), "enter")
        await until(pilot, lambda: "Enter makes them in" in screen_text(pilot), what="the folder")
        await pilot.press("tab", "tab", *"pirate", "enter")
        await until(pilot, lambda: "hub:adapter" in screen_text(pilot), what="the kinds of the Hub")
        to_its_upload = ("home", "space", "end", "up", "up", "up")
        await pilot.press(*to_its_upload, "space")
        assert "[✔] hub:adapter" in screen_text(pilot) and "[✔] adapter" not in screen_text(pilot)

        login.write("hf_wrong")
        unknown = "The Hub does not know this token: run `hf auth login` with a valid one that may write."
        await pilot.press("enter")
        await until(pilot, lambda: "✘ hub:adapter · " in words(pilot), what="why it failed")
        assert unknown in without_borders(pilot) and "Not made" in words(pilot)
        await until(pilot, lambda: "hub:adapter 1.7 MiB ✘ not here" in words(pilot), what="what can be made now")
        assert not hub.files

        login.write("hf_good")
        await pilot.press("shift+tab", "enter")  # the repository's name, which is asked about anew
        await until(pilot, lambda: "✘ not here" not in words(pilot), what="what can be made now")
        await pilot.press(*to_its_upload[2:], "space", "enter")
        await until(pilot, lambda: "Uploaded: " in words(pilot), what="the upload")
        assert f"Uploaded: {hub.endpoint}/ada/pirate/commit/{hub.commits:040x}" in words(pilot)
        assert "hf download ada/pirate --local-dir pirate" in words(pilot)
    uploaded = hub.files["ada/pirate"]
    assert hub.private["ada/pirate"] and {"adapter_config.json", "README.md"} <= uploaded.keys()
    made = tmp_path / "out" / "adapter" / "adapter_model.safetensors"
    assert uploaded[made.name] == made.read_bytes()


def without_borders(pilot: Pilot[int]) -> str:
    """What the screen shows, without its line breaks and the borders beside them."""
    return " ".join(screen_text(pilot).replace("│", " ").split())
