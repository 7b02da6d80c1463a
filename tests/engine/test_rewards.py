"""Rewards: what each says of a reply, and one that misbehaves is a sentence with the reply that did it."""

import os
import platform
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tuitune.errors import UnusableInput
from tuitune.reward_sections import PythonFile, Reward, RewardSection
from tuitune.rewards.confirmed import confirm, is_confirmed
from tuitune.rewards.judge import Answer, Cancelled, Judge, RewardFailed
from tuitune.rewards.unit_tests import unit_tests

GSM8K = "He saw 48/2 = 24.\nSo 48+24 = 72.\n#### 1,072"


def reward(**options: Any) -> Reward:
    section: Reward = TypeAdapter(RewardSection).validate_python(options)
    return section


def answer(reply: str, tokens: int = 3, **columns: Any) -> Answer:
    return Answer([{"role": "user", "content": "How many?"}], reply, tokens, columns)


@pytest.fixture(scope="module")
def scores() -> Iterator[Any]:
    """The values of one reward for replies; one process for all that come with tuitune."""
    judges: list[Judge] = []

    def values(options: dict[str, Any], *answers: Answer) -> list[float]:
        judge = Judge([reward(**options)])
        if judges:
            judge._process, judges[-1]._process = judges[-1]._process, None
        judges.append(judge)
        return judge.values(answers)[0]

    yield values
    for judge in judges:
        judge.close()


def test_a_number_is_compared_with_the_one_behind_the_hashes(scores: Any) -> None:
    replies = [
        "#### 1072",
        "It is 1,072.0 apples.",
        "\\boxed{1072}",
        "<answer> 1072 </answer>",
        "1072 or 3",
        "none",
        "",
    ]
    assert scores({"name": "numeric_match"}, *(answer(reply, answer=GSM8K) for reply in replies)) == [
        1,
        1,
        1,
        1,
        0,
        0,
        0,
    ]
    assert scores(
        {"name": "numeric_match", "tolerance": 0.01}, answer("1075", answer=1072), answer("-1", answer="-1/1")
    ) == [1, 1]


def test_an_exact_answer_is_the_text_that_is_marked_or_all_of_it(scores: Any) -> None:
    replies = ["Lisbon", " lisbon\n", "I think\n#### Lisbon", "It is Lisbon", "<answer>Porto</answer>"]
    assert scores({"name": "exact_match"}, *(answer(reply, answer="Lisbon") for reply in replies)) == [1, 1, 1, 0, 0]
    assert scores({"name": "exact_match", "ignore_case": False}, answer("lisbon", answer="Lisbon")) == [0]


def test_forms_are_patterns_lengths_and_schemas(scores: Any) -> None:
    pattern = r"<think>.*</think>\s*\d+"
    assert scores({"name": "format", "pattern": pattern}, answer("<think>a\nb</think> 5"), answer("5")) == [1, 0]
    assert scores({"name": "length", "most": 3}, answer("", 3), answer("", 4)) == [1, 0]
    assert scores({"name": "length", "unit": "words", "least": 2, "most": 3}, answer("a b"), answer("a")) == [1, 0]
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    replies = ['{"n": 3}', 'Here:\n```json\n{"n": 4}\n```', '{"n": "3"}', "n: 3", "[" * 50_000]
    assert scores({"name": "json_schema", "json_schema": schema}, *map(answer, replies)) == [1, 1, 0, 0, 0]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the filter is for these processors")
def test_code_is_run_where_it_reaches_nothing(tmp_path: Path) -> None:
    options = {"seconds": 2.0, "memory_mb": 512}
    precious = tmp_path / "precious"
    precious.write_text("kept")

    def refused(statement: str) -> None:
        code = f"try:\n    {statement}\n    free = True\nexcept OSError:\n    free = False"
        assert unit_tests(options, code, ["assert not free"]) == 1, statement

    assert (
        unit_tests(options, "Sure:\n```python\ndef f(x):\n    return x + 1\n```", ["assert f(1) == 2", "f(1) / 0"])
        == 0.5
    )
    refused("import socket; socket.socket()")
    refused(f"open({str(precious)!r}, 'w')")
    refused(f"open({str(precious)!r}, 'a')")
    refused(f"import os; os.remove({str(precious)!r})")
    refused(f"import os; os.truncate({str(precious)!r}, 0)")
    refused(f"import os; os.rename({str(precious)!r}, {str(precious)!r} + '2')")
    refused("import os; os.fork()")
    refused("import os; os.execv('/bin/true', ['true'])")
    refused("import os; os.kill(os.getppid(), 9)")
    refused("import os; os.sched_setaffinity(os.getppid(), [0])")
    refused(f"import fcntl; fcntl.flock(open({str(precious)!r}), fcntl.LOCK_EX)")
    refused(f"import fcntl; fcntl.ioctl(open({str(precious)!r}), 0x80086601, bytes(8))")  # FS_IOC_GETFLAGS
    with subprocess.Popen(["sleep", "600"]) as other:
        for words in (f"fcntl.F_SETOWN, {other.pid}", f"15, bytes([1, 0, 0, 0]) + ({other.pid}).to_bytes(4, 'little')"):
            code = f"import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, {words}); fcntl.fcntl(r, fcntl.F_SETSIG, 9)"
            refused(f"{code}; fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK); os.write(w, b'x')")
        assert other.poll() is None
        other.kill()
    shared_memory = "import ctypes; c = ctypes.CDLL(None, use_errno=True); c.shmctl(1, 0, 0)"
    assert unit_tests(options, shared_memory, ["assert ctypes.get_errno() == 13"]) == 1
    thread = "import threading; t = threading.Thread(target=print); t.start(); t.join()"
    assert unit_tests(options, thread, ["assert not t.is_alive()"]) == 1
    assert precious.read_text() == "kept"
    assert unit_tests(options, "x = [0] * 10**9", ["1"]) == unit_tests(options, "import sys; sys.exit()", ["1"]) == 0
    assert unit_tests({**options, "seconds": 0.5}, "while True: pass", ["1"]) == 0


def test_code_that_floods_its_output_fills_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write = "try:\n        while True: os.write(number, bytes(65536))\n    except OSError: pass"
    flood = f"import os\nfor number in range(3, 9):\n    {write}"
    assert unit_tests({"seconds": 1.0, "memory_mb": 512}, flood, ["1"]) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"


def test_running_code_must_be_asked_for() -> None:
    with pytest.raises(ValueError, match="run_code"):
        reward(name="unit_tests")


def own_file(folder: Path, code: str, **options: Any) -> Reward:
    """A user's file of rewards that was confirmed."""
    file = folder / "rewards.py"
    file.write_text(code)
    section = reward(name="python", function=f"{file}:score", **options)
    assert isinstance(section, PythonFile)
    confirm(section)
    return section


def test_a_function_of_ones_own_gets_columns_by_name(tmp_path: Path) -> None:
    body = "return [len(c) - len(a) for c, a in zip(completions, answer)]"
    code = f"print('hello')\ndef score(completions, answer):\n    {body}"
    with Judge([own_file(tmp_path, code, weight=0.5), reward(name="exact_match")]) as judge:
        values = judge.values([answer("four", answer="abc"), answer("abc", answer="abc")])
    assert values == [[1, 0], [0, 1]] and judge.totals(values) == [0.5, 1]
    assert judge.titles == ["score", "exact_match"]


def test_a_pipe_is_no_file_of_rewards(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rewards.py")
    with pytest.raises(UnusableInput, match="cannot be read"):
        confirm(PythonFile(name="python", function=f"{tmp_path}/rewards.py:score"))


def test_a_file_is_run_only_as_it_was_confirmed(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef score(completions): return [1 for _ in completions]")
    section = reward(name="python", function=f"{file}:score")
    assert isinstance(section, PythonFile)
    with pytest.raises(UnusableInput, match=r"read it, then confirm it with `tuitune rewards RECIPE --confirm`"):
        Judge([section])
    confirm(section)
    assert is_confirmed(section) and not (tmp_path / "ran").exists()
    file.write_text(file.read_text() + "\n# changed")
    with pytest.raises(UnusableInput, match="code that would run"):
        Judge([section])
    begun = section.model_copy(update={"sha256": "0" * 64})
    confirm(section)
    with pytest.raises(UnusableInput, match="has changed since the run was begun"):
        Judge([begun])


GOOD, BAD = "'good'", "'bad\\x1b[2J'"


@pytest.mark.parametrize(
    ("body", "clause", "reply"),
    [
        ("return [1 / 0 for _ in completions]", "raised ZeroDivisionError: division by zero", GOOD),
        ("return [1 if c == 'good' else 1 / 0 for c in completions]", "raised ZeroDivisionError", BAD),
        ("return [1.0 if c == 'good' else float('nan') for c in completions]", "returned nan", BAD),
        ("return [1.0 if c == 'good' else float('inf') for c in completions]", "returned inf", BAD),
        ("return [1.0 if c == 'good' else None for c in completions]", "returned 'None', which is no number", BAD),
        ("return [1.0]", "returned 1 values for 2 replies", GOOD),
        ("return 1.0", "returned float instead of a list of numbers", GOOD),
        ("while 'good' not in completions[-1]: pass\n    return [1]", "did not end within 0.5 s", BAD),
        ("import os\n    return [1] if completions == ['good'] else os._exit(3)", "ended its process", BAD),
        ("raise SystemExit(3)", "raised SystemExit: 3", GOOD),
    ],
)
def test_a_reward_that_misbehaves_is_a_sentence_with_the_reply_that_did_it(
    body: str, clause: str, reply: str, tmp_path: Path
) -> None:
    section = own_file(tmp_path, f"def score(completions):\n    {body}", seconds=0.5)
    with Judge([section]) as judge, pytest.raises(RewardFailed) as failed:
        judge.values([answer("good"), answer("bad\x1b[2J")])
    message = str(failed.value)
    assert message.startswith(f"The reward score {clause}") and f"for the reply {reply} to 'How many?'" in message
    assert "\x1b" not in message and message.endswith("mend it, or take it out of method.rewards.")


def test_a_pattern_that_takes_for_ever_is_ended_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuitune.rewards.judge._SECONDS", 0.5)
    slow = reward(name="format", pattern="(a+)+b")
    with Judge([slow]) as judge:
        with pytest.raises(RewardFailed, match=r"format did not end within 0.5 s for the reply 'aaaa"):
            judge.values([answer("ab"), answer("a" * 60)])
        assert judge.values([answer("aab")]) == [[1]], "a new process takes its place"


def test_judging_is_left_when_that_is_asked(tmp_path: Path) -> None:
    section = own_file(tmp_path, "import time\ndef score(completions): time.sleep(60)")
    with Judge([section]) as judge, pytest.raises(Cancelled):
        judge.values([answer("x")], cancelled=lambda: judge._process is not None)


def test_a_row_without_the_column_is_named_with_those_it_has() -> None:
    with Judge([reward(name="exact_match", column="solution")]) as judge, pytest.raises(RewardFailed) as failed:
        judge.values([answer("4", answer="4", level=2)])
    assert "needs the column solution, which the row lacks (it has answer, level)" in str(failed.value)
