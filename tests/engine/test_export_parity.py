"""An export that does not answer as its adapter does is refused, and the sentence says in what way."""

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.engine.exporting import export, moved_run
from tuitune.errors import TuituneError
from tuitune.export import answers as asking
from tuitune.export import llama_cpp, parity
from tuitune.export.answers import Answers, Questions, Reference
from tuitune.runs.folder import Run

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "sample_data" / "demo_model"

pytestmark = pytest.mark.skipif(not (DEMO / "config.json").is_file(), reason="the demo model is not here")


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return moved_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def expected(run: Run) -> Reference:
    """What the adapter and the base say to two prompts and three rows."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    questions = asking.questions_of(run, tokenizer, never)
    small = Questions(questions.prompts[:2], questions.rows[:3])
    return asking.reference(run, run.resolved(), tokenizer, small, never)


def answers_of(run: Run, folder: Path, expected: Reference) -> Answers:
    return asking.transformers_answers(folder, run.resolved(), expected, never)


def test_a_merge_that_is_the_base_is_refused(run: Run, expected: Reference) -> None:
    answers = answers_of(run, DEMO, expected)
    with pytest.raises(TuituneError, match="answers as the base model does and not as the adapter"):
        parity.judged("merged_16bit", expected, answers)


def test_an_adapter_that_changes_nothing_is_refused(expected: Reference) -> None:
    unchanged = replace(expected, base_logprobs=expected.adapter.logprobs)
    with pytest.raises(TuituneError, match=r"The adapter changes nothing.*Train longer"):
        parity.judged("merged_16bit", unchanged, expected.adapter)


def test_a_template_that_makes_other_tokens_is_refused_unless_it_was_told(
    run: Run, expected: Reference, tmp_path: Path
) -> None:
    other = tmp_path / "model"
    shutil.copytree(DEMO, other)
    template = (other / "chat_template.jinja") if (other / "chat_template.jinja").is_file() else None
    if template is None:
        config = json.loads((other / "tokenizer_config.json").read_text())
        config["chat_template"] += "{{ 'Well' }}"
        (other / "tokenizer_config.json").write_text(json.dumps(config))
    else:
        template.write_text(template.read_text().rstrip("\n") + "{{ 'Well' }}")
    answers = answers_of(run, other, expected)
    assert all(mine != theirs for mine, theirs in zip(answers.prompt_ids, expected.adapter.prompt_ids, strict=True))
    as_adapter = replace(expected.adapter, prompt_ids=answers.prompt_ids)
    with pytest.raises(TuituneError, match="makes other tokens of a prompt than the run was trained on"):
        parity.judged("merged_16bit", expected, as_adapter)
    assert parity.judged("merged_16bit", expected, as_adapter, template_told=True).same_prompt_ids == 0


@pytest.fixture
def ending(expected: Reference) -> Reference:
    """The adapter's answers, as if both replies ended with their last token."""
    return replace(expected, adapter=replace(expected.adapter, ended=[True, True]))


def gone_on(ending: Reference, place: int, token: int) -> Answers:
    """Answers whose second reply takes `token` at `place` and goes on from there."""
    reply = ending.adapter.replies[1]
    return replace(
        ending.adapter, replies=[ending.adapter.replies[0], reply[:place] + [token] * 96], ended=[True, False]
    )


def test_a_model_that_does_not_end_the_adapters_reply_is_refused(ending: Reference) -> None:
    """Whether its own reply ends or not: by chance it may take a way that does."""
    last = ending.adapter.last_logprobs
    endless = replace(ending.adapter, last_logprobs=[last[0], last[1] - 3])
    with pytest.raises(TuituneError, match=r"does not end a reply where the adapter does: the token that ends it has"):
        parity.judged("gguf:q8_0", ending, endless)
    assert parity.judged("gguf:q2_k", ending, endless).ended == 2, "so much is within the bounds of the smallest kinds"


def test_a_model_that_nothing_stops_at_the_end_of_a_reply_is_refused(ending: Reference) -> None:
    reply = ending.adapter.replies[1]
    with pytest.raises(TuituneError, match="not stopped by the token that ends a reply, so replies would never end"):
        parity.judged("merged_16bit", ending, gone_on(ending, len(reply), reply[-1]))


def test_a_reply_that_goes_on_is_refused_where_it_left_a_token_that_the_adapter_is_sure_of(ending: Reference) -> None:
    place = 0
    while len(choices := sorted(ending.choices[1][place].items(), key=lambda choice: -choice[1])) < 2:
        place += 1
    (_, first), (second, _) = choices[:2]
    assert choices[0][0] == ending.adapter.replies[1][place], "greedy"
    other = next(token for token in range(9, 4000) if token not in ending.adapter.replies[1] and token != second)
    answers = gone_on(ending, place, second)
    answers.replies[1][place + 1 :] = [other] * 95

    def with_second_at(gap: float) -> Reference:
        changed = [list(choices) for choices in ending.choices]
        changed[1][place] = {**changed[1][place], second: first - gap}
        return replace(ending, choices=changed)

    judged = parity.judged("merged_16bit", with_second_at(0.2), answers)
    assert (judged.ended, judged.parted_undecided) == (1, 1)
    assert "1 went on, having left the adapter's where two tokens were about as likely" in judged.words()
    with pytest.raises(TuituneError, match=r"does not end within 96 tokens where the adapter's does, and leaves it at"):
        parity.judged("merged_16bit", with_second_at(2.0), answers)


def test_an_adapter_whose_replies_do_not_end_is_not_held_to_more(expected: Reference) -> None:
    endless = replace(expected, adapter=replace(expected.adapter, ended=[True, False]))
    assert parity.judged("gguf:q8_0", endless, endless.adapter).ended == 1


def test_a_merged_model_whose_settings_stop_nowhere_is_refused(run: Run, expected: Reference, tmp_path: Path) -> None:
    """transformers and vLLM stop where generation_config.json says; no other token ends a reply there."""
    endless = tmp_path / "model"
    shutil.copytree(DEMO, endless)
    settings = json.loads((endless / "generation_config.json").read_text())
    (endless / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": None}))
    config = json.loads((endless / "config.json").read_text())
    (endless / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    adapter = answers_of(run, DEMO, expected)
    assert all(adapter.ended)
    ended = replace(expected, adapter=adapter)
    with pytest.raises(TuituneError, match="not stopped by the token that ends a reply"):
        parity.judged("merged_16bit", ended, answers_of(run, endless, ended))


def test_other_roundings_move_the_adapter_as_much_as_merging_does(run: Run, expected: Reference) -> None:
    """Where a model computes in bfloat16 from the start, they say what rounding does to it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def adapted() -> Any:
        base = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.bfloat16)
        return PeftModel.from_pretrained(base, str(run.adapter)).eval()

    def scores(model: Any) -> list[float]:
        return asking._scores(model, expected.questions, never).logprobs

    beside, moved = adapted(), adapted()
    assert asking.round_otherwise(moved)
    rounding, merging = (asking.apart(scores(m), scores(beside)) for m in (moved, adapted().merge_and_unload()))
    assert rounding and merging
    assert merging / 3 < rounding < 3 * merging


def test_bounds_are_no_narrower_than_what_rounding_does_to_the_adapter_itself(expected: Reference) -> None:
    assert expected.rounding is not None and 0 < expected.rounding < 0.05
    shaky = replace(expected, rounding=0.2)
    moved = replace(expected.adapter, logprobs=[logprob - 0.3 for logprob in expected.adapter.logprobs])
    assert parity.judged("merged_16bit", shaky, moved).bound_logprob_difference == 0.4


def test_a_figure_beyond_the_bound_of_its_kind_is_refused(expected: Reference) -> None:
    far = replace(expected, base_logprobs=[logprob - 5 for logprob in expected.adapter.logprobs])
    moved = replace(expected.adapter, logprobs=[logprob - 0.3 for logprob in expected.adapter.logprobs])
    with pytest.raises(TuituneError, match=r"are 0\.30 from the adapter's .*, and 0\.1 is the most for this kind"):
        parity.judged("gguf:q8_0", far, moved)
    assert parity.judged("gguf:q4_k_m", far, moved).logprob_difference == pytest.approx(0.3), "within q4's"
    sure = replace(far, adapter=replace(expected.adapter, sureness=[math.log(0.9)] * len(moved.logprobs)))
    others = replace(sure.adapter, likeliest=[token + 1 for token in expected.adapter.likeliest])
    with pytest.raises(TuituneError, match=r"Only 0% of the next tokens .* and 96% is the least"):
        parity.judged("gguf:q8_0", sure, others)


@pytest.mark.cold  # it is killed by its command line
def test_a_converter_that_is_killed_is_said_and_leaves_all_as_it_was(run: Run, tmp_path: Path) -> None:
    if llama_cpp.find() is None:
        pytest.skip("llama.cpp's converter is not here")
    adapter = {path: path.read_bytes() for path in run.adapter.iterdir()}
    killed: list[int] = []

    def kill(*_: object) -> bool:  # asked between looks at the child, as whether the user stopped it
        for child in [] if killed else psutil.Process().children():
            if "convert.py" in " ".join(child.cmdline()):
                killed.append(child.pid)
                os.kill(child.pid, signal.SIGKILL)
        return False

    out = tmp_path / "out"
    with pytest.raises(TuituneError, match=r"was killed \(SIGKILL\), perhaps for want of memory"):
        export(run, ["adapter_gguf"], out, lambda *_: None, lambda question: True, kill)
    assert killed and not list(out.iterdir())
    assert {path: path.read_bytes() for path in run.adapter.iterdir()} == adapter
