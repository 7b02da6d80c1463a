"""The GRPO demo in a real terminal, with keys alone: its rewards rise, and its answers are shown while it trains."""

from pathlib import Path

from tests.terminal.terminal import ENTER, Terminal, started
from tuitune.runs.folder import all_runs


def test_the_demo_learns_from_rewards(tmp_path: Path, terminals: list[Terminal]) -> None:
    terminal = started(terminals, "demo", "--method", "grpo", "--runs", str(tmp_path / "runs"))
    terminal.until("ready", 300)
    for shown in ("animals.jsonl", "prompts, each answered 32.0 times"):
        terminal.press(ENTER)
        terminal.until(shown, 120)
    terminal.press(ENTER)
    terminal.until("step 3 of 24", 300)
    terminal.press("l")
    terminal.until("best of step", 60)
    terminal.until("Done after 24 steps", 600)
    (run,) = all_runs(tmp_path / "runs")
    history = run.history()
    rewards = [step.metrics["reward"] for step in history.steps]
    assert rewards[0] < 0.35 and sum(rewards[-4:]) / 4 >= 0.8
    name, before, after = history.result() or ("", 0.0, 0.0)
    assert name == "held-out reward" and before < 0.5 and after >= 0.8, "and so they do on prompts that were held out"
