"""Ask an adapter and what was exported of it the same, each in the engine that it is for, and keep what they say.

A few prompts are answered greedily, and the probabilities of the tokens of some held-out replies are looked at.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuitune.backends.loading import explained
from tuitune.backends.loftq import base_in_4bit
from tuitune.backends.new_rows import add_rows
from tuitune.chat.gguf_engine import GgufModel, NextToken, open_gguf
from tuitune.chat.sampling import Sampling
from tuitune.chat_template.turn_end import end_of_turn_id
from tuitune.conversation import Conversation, UnusableRow
from tuitune.errors import TuituneError
from tuitune.language import N_, _
from tuitune.masking import Masker
from tuitune.model.config import auto_class, training_config
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run

PROMPTS, ROWS, SCORED_TOKENS, REPLY_TOKENS = 4, 8, 120, 96
_CHOICES = 20  # the adapter's likeliest tokens that are kept for each place of its replies
_SECONDS = 240.0
_NEW_TOKENS = 8
_WIDER, _ALL = 1000, 2**24  # token probabilities asked of llama.cpp at each place


@dataclass(frozen=True)
class Questions:
    """What is asked: conversations that want a reply, and token ids of whole rows with the places that are scored."""

    prompts: list[Conversation]
    rows: list[tuple[list[int], list[int]]]


@dataclass
class Answers:
    """What one engine said.

    For each prompt: its ids, the reply's ids, whether it ended, and the log-probability of the last token of the
    adapter's reply after all that stands before it. For each scored place: the log-probability of the row's own token,
    the likeliest token and its log-probability.
    """

    prompt_ids: list[list[int]] = field(default_factory=list)
    replies: list[list[int]] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    last_logprobs: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    likeliest: list[int] = field(default_factory=list)
    sureness: list[float] = field(default_factory=list)

    def perplexity(self) -> float | None:
        """Of the scored tokens."""
        return math.exp(-sum(self.logprobs) / len(self.logprobs)) if self.logprobs else None


@dataclass(frozen=True)
class Reference:
    """The adapter's answers, and the bare base's log-probabilities at the same places.

    `choices` has, for each place of each of the adapter's replies, its likeliest tokens with their log-probabilities.
    `rounding` is what the adapter's own log-probabilities change by, on average, where it computes in bfloat16, or
    where it did so from the start, by other roundings of the weights that it is merged into. None where these are
    quantised.
    """

    questions: Questions
    adapter: Answers
    base_logprobs: list[float]
    choices: list[list[dict[int, float]]]
    rounding: float | None


def questions_of(run: Run, tokenizer: Any, cancelled: Callable[[], bool]) -> Questions:
    """What to ask of a run's exports: its own prompts and held-out rows, as far as they can still be read.

    New tokens come first, with text around them, which not every engine divides as the tokenizer does.
    """
    from tuitune.data.prepare import prepare

    recipe = run.resolved()
    texts = [*recipe.samples.prompts]
    if tokens := recipe.model.new_tokens[:_NEW_TOKENS]:
        texts.insert(0, f"The {' and '.join(tokens)} there")
    prompts: list[Conversation] = [[{"role": "user", "content": text}] for text in texts]
    rows: list[tuple[list[int], list[int]]] = []
    try:
        prepared = prepare(recipe, tokenizer, cancelled=cancelled)
        prompts += [prompt for prompt in prepared.prompts(PROMPTS) if prompt not in prompts]
        dataset = prepared.eval if prepared.eval is not None and len(prepared.eval) else prepared.train
        if {"input_ids", "labels"} <= set(dataset.column_names):
            rows = _scored(dataset.select(range(min(ROWS, len(dataset)))))
    except (TuituneError, OSError):  # the data may be gone; the prompts remain
        pass
    masker = Masker(tokenizer, "last", recipe.data.max_length)
    prompts = [prompt for prompt in prompts if _fits(prompt, masker, recipe.data.max_length)]
    return Questions(prompts[:PROMPTS] or [[{"role": "user", "content": "Hello!"}]], rows)


def _fits(prompt: Conversation, masker: Masker, max_length: int) -> bool:
    """Whether a prompt is no longer than what was trained: how models differ beyond that says nothing."""
    try:
        return len(masker.prompt_ids(prompt)) <= max_length
    except UnusableRow:
        return False


def _scored(rows: Any) -> list[tuple[list[int], list[int]]]:
    """Ids, and the places whose token was trained, so many of each row that all rows have a share."""
    share = SCORED_TOKENS // max(1, len(rows))
    scored = []
    for row in rows:
        places = [place for place, label in enumerate(row["labels"]) if place and label != -100][:share]
        if places:
            scored.append((list(row["input_ids"])[: places[-1] + 1], places))
    return scored


# --- the engines ----------------------------------------------------------------------------------------------


def reference(
    run: Run, recipe: Recipe, tokenizer: Any, questions: Questions, cancelled: Callable[[], bool]
) -> Reference:
    """Ask the run's adapter on its base in 16 bits (float32 where a CPU has room), and the base alone. Raises
    TuituneError where memory or the base is lacking."""
    import torch
    from peft import PeftModel

    masker = Masker(tokenizer, "last", recipe.data.max_length)
    prompt_ids = [masker.prompt_ids(prompt, thinks=run.thinks()) for prompt in questions.prompts]
    with explained(recipe, N_("asking the adapter on")), loaded(recipe.model.name, recipe) as model:
        adapted = PeftModel.from_pretrained(model, str(run.adapter), is_trainable=False).eval()
        answers = _scores(adapted, questions, cancelled)
        ends = {*_stops(model), tokenizer.eos_token_id, end_of_turn_id(tokenizer)} - {None}
        _reply_to(prompt_ids, adapted, ends, answers, cancelled)
        choices = []
        for ids, reply in zip(prompt_ids, answers.replies, strict=True):
            logprobs = _logprobs(adapted, ids + reply)[len(ids) - 1 : -1]
            answers.last_logprobs.append(float(logprobs[-1, reply[-1]]))
            top = logprobs.topk(min(_CHOICES, logprobs.shape[1]))
            choices.append(
                [
                    dict(zip(tokens, values, strict=True))
                    for tokens, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
                ]
            )
        with adapted.disable_adapter():
            base = _scores(adapted, questions, cancelled)
        rounding = None
        if model.dtype == torch.float32:
            rounding = apart(_scores(adapted.to(torch.bfloat16), questions, cancelled).logprobs, answers.logprobs)
        elif round_otherwise(adapted):
            rounding = apart(_scores(adapted, questions, cancelled).logprobs, answers.logprobs)
    return Reference(questions, answers, base.logprobs, choices, rounding)


def round_otherwise(adapted: Any) -> bool:
    """Move the weights under an adapter by as much as rounding a sum to their type does; False where none is a float.

    A merge rounds each of them anew, and what that changes by itself differs by model.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    moved = False
    for module in adapted.modules():
        weight = getattr(module.get_base_layer(), "weight", None) if isinstance(module, LoraLayer) else None
        if weight is None or not weight.dtype.is_floating_point:
            continue
        generator = torch.Generator(weight.device).manual_seed(weight.numel())
        for row in weight.data.split(1024):  # not as much memory again as the weight takes
            share = torch.rand(row.shape, generator=generator, device=row.device) - 0.5
            row.copy_(row.float() * (1 + torch.finfo(row.dtype).eps * share))
        moved = True
    return moved


def transformers_answers(folder: Path, recipe: Recipe, expected: Reference, cancelled: Callable[[], bool]) -> Answers:
    """What the model in a folder says, loaded as anyone would load it, who stops where it says. Raises TuituneError."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    prompt_ids = [template_ids(tokenizer, prompt) for prompt in expected.questions.prompts]
    with explained(recipe, N_("asking the exported model of")), loaded(str(folder), None) as model:
        answers = _scores(model, expected.questions, cancelled)
        _reply_to(prompt_ids, model, _stops(model), answers, cancelled)
        for ids, reply in zip(prompt_ids, expected.adapter.replies, strict=True):
            answers.last_logprobs.append(float(_logprobs(model, ids + reply)[-2, reply[-1]]))
    return answers


def template_ids(tokenizer: Any, prompt: Conversation) -> list[int]:
    """The ids that an exported tokenizer's own template makes of a prompt."""
    ids: list[int] = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    return ids


@contextmanager
def loaded(name: str, recipe: Recipe | None) -> Iterator[Any]:
    """A model in memory: the base of a recipe, as it is trained, or what lies in a folder. Raises TuituneError."""
    import torch
    from transformers import AutoConfig

    from tuitune.export import place

    load_options: dict[str, Any] = {}
    if recipe is not None:
        config = training_config(recipe)
        load_options = {"config": config, "revision": recipe.model.revision or "main", **base_in_4bit(recipe)}
    else:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    from accelerate import init_empty_weights

    with init_empty_weights():
        weights = auto_class(config).from_config(config, trust_remote_code=False).num_parameters()
    on_gpu = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 2.5 * weights
    quantised = getattr(config, "quantization_config", None) is not None or "quantization_config" in load_options
    dtype = torch.bfloat16
    if not on_gpu:
        place.require_memory(int(2.2 * weights), _("Asking the model"))
        if weights < 1e9:
            dtype = torch.float32
    model = auto_class(config).from_pretrained(
        name,
        **load_options,
        dtype="auto" if quantised else dtype,
        device_map={"": "cuda:0" if on_gpu else "cpu"},
        use_safetensors=True,
        trust_remote_code=False,
    )
    if recipe is not None:
        add_rows(model, recipe.model)
    try:
        yield model.eval()
    finally:
        del model
        if on_gpu:
            torch.cuda.empty_cache()


def _stops(model: Any) -> set[int]:
    """The tokens at which `generate` stops by the model's own settings."""
    named = model.generation_config.eos_token_id
    return set(named) if isinstance(named, list) else {named} - {None}


def _reply_to(
    prompt_ids: list[list[int]], model: Any, ends: set[int], answers: Answers, cancelled: Callable[[], bool]
) -> None:
    """Add to `answers` what the model replies greedily to each prompt, up to one of the tokens `ends`."""
    import torch

    answers.prompt_ids = prompt_ids
    for ids in prompt_ids:
        _stop_if(cancelled)
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor([ids], device=model.device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=REPLY_TOKENS,
                eos_token_id=sorted(ends) or None,
                pad_token_id=min(ends, default=0),
            )
        reply = output[0, len(ids) :].tolist()
        answers.replies.append(reply)
        answers.ended.append(reply[-1] in ends)


def _logprobs(model: Any, ids: list[int]) -> Any:
    """Log-probabilities of all tokens after each of `ids`: (ids, vocabulary)."""
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float().log_softmax(-1)


def _scores(model: Any, questions: Questions, cancelled: Callable[[], bool]) -> Answers:
    import torch

    answers = Answers()
    for ids, places in questions.rows:
        _stop_if(cancelled)
        logprobs = _logprobs(model, ids)[[place - 1 for place in places]]
        targets = torch.tensor([ids[place] for place in places], device=logprobs.device)
        answers.logprobs += logprobs.gather(1, targets[:, None])[:, 0].tolist()
        sureness, likeliest = logprobs.max(-1)
        answers.likeliest += likeliest.tolist()
        answers.sureness += sureness.tolist()
    return answers


def llama_cpp_answers(
    path: Path, expected: Reference, cancelled: Callable[[], bool], *, lora: Path | None = None
) -> Answers:
    """What llama.cpp says with a GGUF file: fewer places are scored where it is slow. Raises TuituneError.

    With an adapter `lora` on a base's file the adapter's own prompts are asked, else those of the file's template.
    """
    answers, questions = Answers(), expected.questions
    prompt_ids = expected.adapter.prompt_ids
    longest = max([1024, *map(len, prompt_ids), *(len(ids) for ids, _ in questions.rows)])
    with open_gguf(path, lora=lora, context=longest + 2 * REPLY_TOKENS, cancelled=cancelled) as gguf:
        answers.prompt_ids = prompt_ids if lora else [gguf.prompt_ids(prompt) for prompt in questions.prompts]
        for ids in answers.prompt_ids:
            _stop_if(cancelled)
            completion = gguf.complete(ids, Sampling(max_new_tokens=REPLY_TOKENS), cancelled=cancelled)
            answers.replies.append(completion.ids)
            answers.ended.append(completion.ended)
        for ids, reply in zip(answers.prompt_ids, expected.adapter.replies, strict=True):
            _stop_if(cancelled)
            _likeliest, logprob = _predicted(gguf, ids + reply[:-1], reply[-1], cancelled)
            answers.last_logprobs.append(logprob)
        _score_by(gguf, questions, answers, cancelled)
    return answers


def _score_by(gguf: GgufModel, questions: Questions, answers: Answers, cancelled: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + _SECONDS
    for ids, places in questions.rows:
        for place in places:
            _stop_if(cancelled)
            if time.monotonic() > ends_at:
                return
            prediction, logprob = _predicted(gguf, ids[:place], ids[place], cancelled)
            answers.logprobs.append(logprob)
            answers.likeliest.append(prediction.likeliest)
            answers.sureness.append(prediction.logprobs[prediction.likeliest])


def _predicted(gguf: GgufModel, ids: list[int], token: int, cancelled: Callable[[], bool]) -> tuple[NextToken, float]:
    """What llama.cpp thinks likely after `ids`, and the log-probability of `token` there."""
    prediction = gguf.next_token(ids, count=_WIDER, cancelled=cancelled)
    if token not in prediction.logprobs:  # one that is far from likely: all are asked for, which takes its time
        prediction = gguf.next_token(ids, count=_ALL, cancelled=cancelled)
    return prediction, prediction.logprobs[token]


def _stop_if(cancelled: Callable[[], bool]) -> None:
    from tuitune.export.kinds import Cancelled

    if cancelled():
        raise Cancelled


def apart(one: list[float], other: list[float]) -> float | None:
    """Mean absolute difference over the places that both have."""
    pairs = list(zip(one, other, strict=False))
    return sum(abs(a - b) for a, b in pairs) / len(pairs) if pairs else None
