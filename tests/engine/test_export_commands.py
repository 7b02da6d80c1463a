"""The lines to take an export home can be pasted as they are, whatever the path, host and port."""

import shlex
from pathlib import Path

import pytest

from tuitune.export.commands import commands_for, take_home


@pytest.fixture(autouse=True)
def ada(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.delenv("SSH_CONNECTION", raising=False)


def test_the_address_is_the_one_that_the_users_ssh_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "198.51.100.7 50122 203.0.113.9 2222")
    scp, rsync = (shlex.split(command.line) for command in take_home(tmp_path))
    assert scp == ["scp", "-P", "2222", "-r", f"ada@203.0.113.9:{tmp_path}", "."]
    assert rsync[-4:] == ["-e", "ssh -p 2222", f"ada@203.0.113.9:{tmp_path}", "."]


def test_an_ipv6_address_is_put_in_brackets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "2001:db8::1 50122 2001:db8::2 22")
    assert shlex.split(take_home(tmp_path)[0].line) == ["scp", "-r", f"ada@[2001:db8::2]:{tmp_path}", "."]


@pytest.mark.parametrize("name", ["my model", "it's", "$(reboot)", "a;b & `c`", "-rf", "モデル"])
@pytest.mark.parametrize(
    "kind", ["adapter", "adapter_gguf", "merged_16bit", "merged_4bit", "gguf:q8_0", "ollama:q8_0", "script"]
)
def test_a_path_of_any_name_stays_one_word(kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.mkdir()
    for command in commands_for(kind, path, name):
        words = shlex.split(command.line)
        assert "\n" not in command.line and words[0] in {
            "scp",
            "rsync",
            "python",
            "llama-cli",
            "llama-server",
            "ollama",
            "lms",
            "cp",
            "vllm",
        }
        assert any(str(path) in word for word in words) or words[:2] == ["ollama", "run"]


def test_rsync_on_macos_takes_the_line_where_the_path_is_plain(tmp_path: Path) -> None:
    assert "--protect-args" not in take_home(tmp_path / "plain")[1].line
    assert "--protect-args" in take_home(tmp_path / "two words")[1].line


def test_ollama_gets_a_name_that_it_takes(tmp_path: Path) -> None:
    *_, create, run = commands_for("ollama", tmp_path, "My Pirate_7B (v2)")
    assert shlex.split(create.line)[2] == shlex.split(run.line)[2] == "my-pirate_7b-v2"
