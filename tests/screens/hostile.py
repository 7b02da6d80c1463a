"""Real things that are hostile wherever outside text can stand: a model that speaks it, data, recipes, runs, a Hub.

Each place has a word of its own before the hostile text, by which a test sees that the text was shown there.
"""

import json
import os
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import yaml
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.engine.hub_server import Hub
from tuitune.recipe import Recipe
from tuitune.recipe_sections import SourceSection
from tuitune.runs.events import Checkpoint, Event, Failed, Notice, Output, Phase, Reply, Started
from tuitune.runs.folder import create_run

KINDS = {
    "short": "[/b]\x9b2J\u202e\x1b]77;EVIL\x07\x1b[?7777h",
    "markup": "[red]red[/red] [/b][@click=app.quit]quit[/] [link=http://evil]x[/link] [$foreground",
    "escapes": "a\x1b]0;EVIL\x07b\x1b]52;c;RVZJTA==\x07c\x1b[2Jd\x1bP0;1|EVIL\x1b\\e\x1b]8;;http://evil\x07f",
    "c1": "a\x9b2Jb\x9d0;EVIL\x9cc\x90EVIL\x9c",
    "bidi": "user\u202etxt.exe\u2066x\u2069 \u200b\u200e\ufeff",
    "wide": "日本語の長い文章と絵文字🎉👨‍👩‍👧 " * 5,
    "combining": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞",
    "controls": "a\x00c\x08d\re\x7f\x0bf\x0c",
    "surrogate": "a\ud800b",
    "markdown": "# h\n```\nunclosed\n| a | b |\n|---\n<script>alert(1)</script> ![x](http://evil/x.png)" + "\n> " * 200,
}
LONG_WORD = {"long word": "w" * 100_000}
NOT_UTF8 = os.fsdecode(b"\xff")
_FILE_NAME_BYTES = 200
"""Of the 255 that file systems allow: what is made beside a file has a longer name."""
_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|pad|>")
_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def pasted(text: str) -> str:
    """The text as a terminal pastes it: it keeps back the controls that it has keys for, and no others."""
    return re.sub("[\x00-\x1f\x7f]", "", text)


@dataclass
class Place:
    """`folder` holds a model, recipes and data, `runs` the runs; everything in them is hostile with these `kinds`."""

    folder: Path
    kinds: dict[str, str]

    @property
    def runs(self) -> Path:
        return self.folder.parent / self.name("runsfolder")

    @property
    def in_utf8(self) -> list[str]:
        """The kinds that UTF-8 can hold."""
        return [kind for name, kind in self.kinds.items() if name != "surrogate"]

    def text(self, word: str) -> str:
        """The word and all the kinds that UTF-8 can hold."""
        return f"{word} {' '.join(self.in_utf8)}"

    def each(self, word: str) -> list[str]:
        """The word and one kind, for each of them."""
        return [f"{word} {kind}" for kind in self.kinds.values()]

    def name(self, word: str, suffix: str = "") -> str:
        """As much of `text` as a file's name can hold."""
        text = self.text(word).replace("/", "_").replace("\0", "").encode()
        return text[:_FILE_NAME_BYTES].decode(errors="ignore") + suffix


def make(folder: Path, kinds: dict[str, str]) -> Place:
    """Make all but the runs that a session makes itself."""
    place = Place(folder / "here", kinds)
    place.folder.mkdir()
    model = place.folder / place.name("modelfolder", " modelend")
    make_model(model, ["replytext ", *place.in_utf8, "\n\nreplyend"])
    column = place.text("turnscolumn")
    data, also, pairs = (place.folder / place.name(word, ".jsonl") for word in ("datafile", "alsofile", "pairsfile"))
    data.write_text("\n".join(map(json.dumps, _rows(place, column))))
    also.write_text(json.dumps({column: _turns("And?", place.text("othertext"))}))
    pairs.write_text("\n".join(json.dumps({f"paircolumn {kind}": "x" for kind in place.in_utf8}) for _ in range(5)))
    recipe = Recipe.from_data(
        {
            "model": {"name": str(model), "load_in_4bit": False},
            "data": {"path": str(data), "columns": {"messages": column}, "max_length": 256},
            "train": {"max_steps": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1},
            "samples": {"prompts": [place.text("sampleprompt")], "max_new_tokens": 16},
        }
    )
    (place.folder / place.name("recipefile", f"{NOT_UTF8}.yaml")).write_text(recipe.to_yaml())
    (place.folder / pasted(place.name("refusedfolder"))).write_text("a file, so no folder for exports")
    (place.folder / "broken.yaml").write_text(yaml.safe_dump({"model": {place.text("unknownsetting"): 1}}))
    mixed = recipe.data.model_copy(update={"also": [SourceSection(path=str(also), columns={"messages": column})]})
    _make_runs(place, recipe.model_copy(update={"data": mixed}))
    return place


def _turns(asked: str, answered: str, role: str = "user", **fields: str) -> list[dict[str, str]]:
    return [{"role": role, "content": asked, **fields}, {"role": "assistant", "content": answered}]


def _rows(place: Place, column: str) -> list[dict[str, Any]]:
    return [
        {column: _turns(place.text("askedtext"), "Aye.")},
        {column: _turns("And?", place.text("trainedtext"))},
        *({column: _turns("x", "x"), name: name} for name in place.each("unusedcolumn")),
        *({column: _turns("x", "x", role)} for role in place.each("unknownrole")),
        *({column: _turns("x", "x", **{field: "x"})} for field in place.each("unknownfield")),
    ]


def _make_runs(place: Place, recipe: Recipe) -> None:
    """A run that failed, and one whose recipe cannot be read."""
    events: list[Event] = [
        Started(run=place.text("runname"), attempt=1, pid=1),
        Phase(name="data", text=place.text("phasetext"), done=1, total=2),
        *(Notice(text=text) for text in place.each("noticetext")),
        *(
            Reply(step=step, prompt=place.text("prompttext")[:length], reply=place.text(f"reply{step}text")[:length])
            for length in (60, None)
            for step in (0, 1)
        ),
        Checkpoint(attempt=1, step=1, path=place.text("checkpoint")),
        Output(text=place.text("outputtext")),
        Failed(message=place.text("failedtext")),
    ]
    writer = create_run(recipe, place.runs)
    for event in events:
        writer.append(event)
    log = "\n".join([*place.each("logline"), place.text("loglast")[:60]])
    writer.run.log_file.write_bytes(log.encode(errors="surrogatepass") + b"\xff\xfe\n")
    writer.close()
    failed = writer.run.folder.rename(place.runs / place.name("failedrun", NOT_UTF8))
    unreadable = create_run(recipe, place.runs)
    unreadable.write("recipe.yaml", json.dumps(place.text("unreadable")))
    unreadable.close()
    broken = unreadable.run.folder.rename(place.runs / place.name("brokenrun"))
    for age, folder in enumerate((failed, broken)):
        os.utime(folder / "events.jsonl", (1_700_000_000 - age,) * 2)


def put_on_hub(place: Place, hub: Hub) -> None:
    """A model with a hostile name, and a dataset with hostile configurations and splits."""
    hub.repositories["models/sea/" + place.text("hubmodel")] = {"main": place.folder}
    folder = place.folder.parent / "hubdataset"
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text(json.dumps({"messages": _turns("x", "x")}))
    # `datasets` refuses these characters in a configuration's name, and makes a file's name of it.
    names = [re.sub(r"[<>:/\\|?*\0]", "_", f"configname {kind[:20]}") for kind in place.in_utf8]
    configs = [{"config_name": name, "data_files": "rows.jsonl"} for name in names]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    hub.repositories["datasets/sea/shanties"] = {"main": folder}


def write_nvml(folder: Path, name: str) -> None:
    """A stand-in for NVML's Python interface, for a process that has `folder` on its PYTHONPATH: two such cards."""
    (folder / "pynvml.py").write_text(
        f"""
from types import SimpleNamespace


class NVMLError(Exception):
    pass


def nvmlInit(): pass
def nvmlSystemGetDriverVersion(): return {name!r}
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetMemoryInfo(handle): return SimpleNamespace(total=2**34, used=handle)
def nvmlDeviceGetCudaComputeCapability(handle): return (9, 0)
def nvmlDeviceGetName(handle): return {name!r}
def nvmlDeviceGetUUID(handle): return {name!r}
"""
    )


def make_model(folder: Path, pieces: list[str]) -> None:
    """A small Llama that answers everything with these pieces, one token each, and then ends its turn.

    Attention and MLP are random and weak, so a token's own embedding reaches the last layer; there it makes the token
    that comes after it in the chain the likeliest.
    """
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*_SPECIAL])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|pad|>", "model_max_length": 8192}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": _TEMPLATE, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))

    vocabulary, hidden, inner = tokenizer.get_vocab_size(), 64, 64
    config = {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32"},
        **{"vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 8192},
        **{"eos_token_id": tokenizer.token_to_id("<|im_end|>"), "pad_token_id": tokenizer.token_to_id("<|pad|>")},
        **{"rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": None},
    }
    (folder / "config.json").write_text(json.dumps(config))
    random = numpy.random.default_rng(0)

    def weights(*shape: int, scale: float = 0.02) -> Any:
        return (random.standard_normal(shape) * scale).astype(numpy.float32)

    embeddings, head = weights(vocabulary, hidden, scale=1.0), weights(vocabulary, hidden)
    newline = tokenizer.encode("\n").ids[-1]  # what the template writes before a reply
    chain = [newline, *(tokenizer.token_to_id(piece) for piece in pieces), config["eos_token_id"]]
    for before, after in pairwise(chain):
        head[after] += embeddings[before]
    tensors = {"model.embed_tokens.weight": embeddings, "lm_head.weight": head}
    tensors["model.norm.weight"] = numpy.ones(hidden, numpy.float32)
    for layer in (f"model.layers.{number}" for number in range(2)):
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{name}.weight"] = numpy.ones(hidden, numpy.float32)
        for name in "qkvo":
            tensors[f"{layer}.self_attn.{name}_proj.weight"] = weights(hidden, hidden)
        for name in ("gate", "up"):
            tensors[f"{layer}.mlp.{name}_proj.weight"] = weights(inner, hidden)
        tensors[f"{layer}.mlp.down_proj.weight"] = weights(hidden, inner)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
