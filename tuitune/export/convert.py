"""Run llama.cpp's own converter on a model folder, telling it what it cannot know about a new vocabulary.

A program of its own, started by `tuitune.export.gguf` as a child process:
`python convert.py LLAMA_CPP MODEL OUTFILE f16|bf16|q8_0 NAME EOT_ID BOS`, or for an adapter
`python convert.py LLAMA_CPP ADAPTER OUTFILE f16 --lora BASE`. EOT_ID is the id of the token that ends a
turn, BOS `1` where the chat template begins with the begin-of-text token, else `0`. It ends when its stdin does,
so that it never outlives the program that started it. Exit code 3: the last line on stderr is written for the user.
"""

import importlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

REFUSED = 3

# llama.cpp names a pre-tokenizer by the model that brought it (src/llama-vocab.cpp holds what each name means).
# The patterns are those of the `Split` step in these models' published tokenizer.json; merges are ignored for whole
# words where the model says so, and llama.cpp decides that by name as well.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|"
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_PATTERNS: dict[tuple[str, bool], str] = {
    (_WORDS + r"\p{N}{1,3}" + _REST, True): "llama-bpe",
    (_WORDS + r"\p{N}{1,3}" + _REST, False): "smaug-bpe",
    (_WORDS + r"\p{N}" + _REST, False): "qwen2",
    (_CASED % (_SHORT, _SHORT) + r"\p{N}{1,3}" + _CASED_REST, False): "gpt-4o",
    (_CASED % ("", "") + r"\p{N}" + _CASED_REST, True): "tekken",
}


class Unrecognised(Exception):
    """A tokenizer whose way of splitting text llama.cpp does not have; the message is written for the user."""


def pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level BPE tokenizer (the data in tokenizer.json) splits text into words.

    Raises Unrecognised rather than guess: a wrong name makes a model that reads its prompts wrongly.
    """
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise Unrecognised(f"its tokenizer is {model.get('type')!r}, not byte-level BPE")
    normalizer = tokenizer.get("normalizer")
    if normalizer and normalizer.get("type") != "NFC":
        raise Unrecognised(f"its tokenizer rewrites text first (normalizer {normalizer.get('type')!r})")
    outer = tokenizer.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers", []) if outer.get("type") == "Sequence" else [outer]
    kinds = [step.get("type") for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        raise Unrecognised(f"its tokenizer splits text with {kinds}, not ending in ByteLevel without prefix space")
    whole_words = bool(model.get("ignore_merges"))
    own_pattern = steps[-1].get("use_regex", True)  # ByteLevel's own pattern is GPT-2's
    before = steps[:-1]
    if not before and own_pattern and not whole_words:
        return "gpt-2"
    if len(before) == 1 and own_pattern and not whole_words:
        if before[0].get("type") == "Digits" and before[0].get("individual_digits"):
            return "smollm"
    elif len(before) == 1 and before[0].get("type") == "Split" and not own_pattern:
        split = before[0]
        pattern = (split.get("pattern") or {}).get("Regex")
        name = _PATTERNS.get((str(pattern), whole_words))
        if name and split.get("behavior") == "Isolated" and not split.get("invert"):
            return name
    raise Unrecognised("llama.cpp has no name for the pattern by which its tokenizer splits text into words")


def _watch_parent() -> None:
    """End with the parent: it holds the other end of stdin, and nothing here may ask the terminal anything."""
    pipe = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)

    def wait() -> None:
        while os.read(pipe, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(argv: list[str]) -> int:
    llama_cpp, model, outfile, outtype, name, *options = argv
    _watch_parent()
    sys.path.insert(0, llama_cpp)
    sys.path.insert(0, str(Path(llama_cpp) / "gguf-py"))
    if name == "--lora":
        sys.argv = [
            "convert_lora_to_gguf.py",
            model,
            f"--base={options[0]}",
            f"--outfile={outfile}",
            f"--outtype={outtype}",
        ]
        importlib.import_module("runpy").run_path(f"{llama_cpp}/convert_lora_to_gguf.py", run_name="__main__")
        return 0
    eot_id, bos = options
    converter: Any = importlib.import_module("convert_hf_to_gguf")
    base: Any = importlib.import_module("conversion.base")
    TextModel: Any = base.TextModel
    base.ModelBase.no_mtp = True  # transformers loads no layers that predict further tokens, so a merged model has none
    known, prepare = TextModel.get_vocab_base_pre, TextModel.prepare_metadata

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            return pre_tokenizer(json.loads((Path(model) / "tokenizer.json").read_text(encoding="utf-8")))

    def prepare_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        prepare(self, *args, **kwargs)
        if eot_id:
            self.gguf_writer.add_eot_token_id(int(eot_id))
        # llama.cpp puts the token before a chat by itself, whatever the template that the model was trained on does.
        self.gguf_writer.add_add_bos_token(bos == "1")

    TextModel.get_vocab_base_pre = get_vocab_base_pre
    TextModel.prepare_metadata = prepare_metadata
    sys.argv = ["convert_hf_to_gguf.py", model, f"--outfile={outfile}", f"--outtype={outtype}", f"--model-name={name}"]
    try:
        converter.main()
    except Unrecognised as error:
        print(error, file=sys.stderr)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
