"""A GGUF file runs in llama.cpp, in a process of its own, and answers as transformers does with the same weights."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tuitune.chat import gguf_engine
from tuitune.chat.gguf_engine import open_gguf
from tuitune.chat.sampling import Sampling
from tuitune.conversation import Conversation
from tuitune.errors import TuituneError, UnusableInput

MESSAGES: Conversation = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def transformers_model(demo_model: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32), AutoTokenizer.from_pretrained(
        demo_model
    )


def test_llama_cpp_reads_and_continues_a_prompt_as_transformers_does(
    demo_gguf: Path, transformers_model: tuple[Any, Any]
) -> None:
    model, tokenizer = transformers_model
    expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    output = model.generate(
        torch.tensor([expected]), attention_mask=torch.ones(1, len(expected)), max_new_tokens=64, do_sample=False
    )
    reply = output[0, len(expected) :].tolist()
    logprobs = model(torch.tensor([expected])).logits[0, -1].detach().log_softmax(-1)
    pieces: list[str] = []
    with open_gguf(demo_gguf, context=512) as gguf:
        assert gguf.prompt_ids(MESSAGES) == expected
        completion = gguf.complete(expected, Sampling(), on_text=pieces.append)
        assert completion.ended and completion.ids == reply
        assert "".join(pieces) == completion.text and len(pieces) > 1
        after = gguf.next_token(expected, count=len(logprobs))
        assert after.likeliest == int(logprobs.argmax()) and len(after.logprobs) == len(logprobs)
        assert max(abs(after.logprobs[token] - float(logprobs[token])) for token in after.logprobs) < 0.05
        varied = Sampling(temperature=1.5, min_p=0.1, seed=7)
        assert gguf.reply(MESSAGES, varied).text == gguf.reply(MESSAGES, varied).text


def test_a_reply_can_be_stopped_and_llama_cpps_end_is_said(demo_gguf: Path) -> None:
    pieces: list[str] = []
    others = psutil.Process().children()
    with open_gguf(demo_gguf, context=2048) as gguf:
        (server,) = set(psutil.Process().children()).difference(others)
        endless = Sampling(max_new_tokens=1900)  # it repeats itself for seconds
        stopped = gguf.complete([5], endless, on_text=pieces.append, cancelled=lambda: len(pieces) > 3)
        assert not stopped.ended and pieces and len(stopped.ids) < 1900
        assert gguf.reply(MESSAGES, Sampling()).ended, "the model is still there"
        assert not any(connection.laddr for connection in server.net_connections("inet"))
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(TuituneError, match=r"llama\.cpp ended while it ran .*\.gguf"):
            gguf.reply(MESSAGES, Sampling())
    assert not server.is_running()


def test_it_ends_with_what_started_it_even_where_that_ends_at_once(demo_gguf: Path, tmp_path: Path) -> None:
    """As a session does that is killed while the model is being loaded."""
    program = Path(gguf_engine.__file__).with_name("gguf_server.py")
    settings = json.dumps({"model": str(demo_gguf), "lora": None, "context": 256, "threads": 1})
    for number in range(8):
        command = [sys.executable, "-P", str(program), str(tmp_path / f"{number}.sock"), settings]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            server.stdout.close()  # nobody hears that it is ready
            try:
                server.wait(timeout=60)
            finally:
                server.kill()
        assert server.returncode == 0


def test_what_cannot_be_loaded_is_said_in_a_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UnusableInput, match=r"llama\.cpp cannot load .*broken\.gguf"), open_gguf(broken):
        pass
    with pytest.raises(UnusableInput, match="not a file"), open_gguf(tmp_path / "absent.gguf"):
        pass
