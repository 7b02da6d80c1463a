"""The lines to take an export home can be pasted as they are, whatever the path, host and port."""

import shlex
import subprocess
from pathlib import Path

import pytest

from tuitune.export.card import MARK
from tuitune.export.commands import commands_for, take_home
from tuitune.export.packing import is_our_parts, parts_folder, split
from tuitune.export.sums import is_our_tar, tar_file, write_sums, write_tar


def never() -> bool:
    return False


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


def pasted(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], check=False, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["plain", "two words", "-rf", "back\\slash", "モデル"])
@pytest.mark.parametrize("form", ["folder", "file", "tar"])
def test_a_copy_is_checked_by_the_line_beside_the_one_that_fetches_it(form: str, name: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    export = here / (f"{name}.gguf" if form == "file" else name)
    export.parent.mkdir()
    there.mkdir()
    if form == "file":
        export.write_bytes(b"weights")
    else:
        (export / "rows").mkdir(parents=True)
        (export / "rows" / "line\nbreak.jsonl").write_text("{}")
        (export / MARK).write_text("{}")
    write_sums(export, never)
    if form == "tar":
        write_tar(export, tar_file(export), never)
        write_sums(tar_file(export), never)
        assert is_our_tar(tar_file(export))
    scp, rsync, check = take_home(export)
    copied = [word.split(":", 1)[1] for word in shlex.split(scp.line) if ":" in word]
    assert [word.split(":", 1)[1] for word in shlex.split(rsync.line) if ":" in word] == copied
    subprocess.run(["cp", "-r", "--", *copied, "."], cwd=there, check=True)
    assert pasted(check.line, there).returncode == 0
    if form == "tar":
        assert (there / name / "rows" / "line\nbreak.jsonl").read_text() == "{}", "it is unpacked by the same line"
    damaged = there / Path(copied[0]).name
    damaged = damaged / MARK if form == "folder" else damaged
    damaged.write_bytes(damaged.read_bytes().replace(b"{}", b"{ ").replace(b"weights", b"weighty"))
    assert pasted(check.line, there).returncode != 0


@pytest.mark.parametrize("name", ["plain", "two words", "-rf", "back\\slash", "モデル"])
@pytest.mark.parametrize("form", ["folder", "file"])
def test_parts_are_checked_joined_and_unpacked_by_one_line(form: str, name: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    export = here / (f"{name}.gguf" if form == "file" else name)
    weights = bytes(range(256)) * 1000
    (export if form == "folder" else here).mkdir(parents=True)
    there.mkdir()
    (export / MARK if form == "folder" else export).write_bytes(weights)
    whole = export
    if form == "folder":
        whole = tmp_path / tar_file(export).name
        write_tar(export, whole, never)
    split(whole, parts_folder(export), 100_000, never)
    assert is_our_parts(parts_folder(export)) and len([*parts_folder(export).glob("*.part-*")]) == 3
    scp, rsync, join = take_home(export)
    copied = [word.split(":", 1)[1] for word in shlex.split(scp.line) if ":" in word]
    assert copied == [str(parts_folder(export))]
    assert [word.split(":", 1)[1] for word in shlex.split(rsync.line) if ":" in word] == copied
    subprocess.run(["cp", "-r", "--", *copied, "."], cwd=there, check=True)
    joined = pasted(join.line, there)
    assert joined.returncode == 0, joined.stderr
    assert (there / name / MARK if form == "folder" else there / export.name).read_bytes() == weights
    last = sorted((there / parts_folder(export).name).glob("*.part-*"))[-1]
    last.write_bytes(last.read_bytes()[:-1])
    assert pasted(join.line, there).returncode != 0


def test_a_folder_of_the_users_own_is_no_parts_of_an_export(tmp_path: Path) -> None:
    mine = tmp_path / "model.gguf.parts"
    mine.mkdir()
    assert not is_our_parts(mine)
    (mine / "SHA256SUMS").touch()
    (mine / "model.gguf.part-001").touch()
    assert is_our_parts(mine)
    (mine / "letter.txt").touch()
    assert not is_our_parts(mine)


def test_a_file_of_the_users_own_is_no_tar_of_an_export(tmp_path: Path) -> None:
    for name, content in (("empty.tar", b""), ("text.tar", b"mine" * 1000)):
        (tmp_path / name).write_bytes(content)
        assert not is_our_tar(tmp_path / name)
    assert not is_our_tar(tmp_path)
