"""Prove an export: asked the same as the adapter, in the engine that it is for, it answers as the adapter does.

The adapter on its 16-bit base is asked once for all kinds of an export: a few prompts, greedily, and the probabilities
of the tokens of some held-out replies. What differs more than a kind of storage may make it differ is an error.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tuitune.atomic import write_atomic
from tuitune.backends.loading import explained
from tuitune.chat.gguf_engine import GgufModel, open_gguf
from tuitune.chat.sampling import Sampling
from tuitune.conversation import Conversation
from tuitune.errors import TuituneError
from tuitune.model.config import auto_class, training_config
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run

FILE = "parity.json"
PROMPTS, ROWS, SCORED_TOKENS, REPLY_TOKENS = 4, 8, 120, 96
_SURE = 0.5
"""Agreement is counted where the adapter gives a token at least this probability: elsewhere two are as good."""
_SECONDS = 240.0
_WIDEST = 1000  # token probabilities asked of llama.cpp at each place


@dataclass(frozen=True)
class Bounds:
    """The most that a kind may differ: mean |log p of the export − log p of the adapter|, and least agreement."""

    logprob: float
    agreement: float


BOUNDS: dict[str, Bounds] = {
    "16": Bounds(0.06, 0.97),
    "q8_0": Bounds(0.10, 0.96),
    "q6_k": Bounds(0.20, 0.94),
    "q5": Bounds(0.35, 0.90),
    "q4": Bounds(0.60, 0.85),
    "merged_4bit": Bounds(0.60, 0.85),
    "smaller": Bounds(1.50, 0.60),
}
"""By kind. They rest on one small model, the demo's, which `python -m benchmarks.export_parity` measures, and are
some 30 to 300 times what that one differs by: rounding moves others more, and no larger model has been measured."""


def bounds_of(kind: str) -> Bounds:
    """The bounds for a kind of export by its name."""
    type_ = kind.rpartition(":")[2]
    if kind == "merged_4bit" or type_ in ("q8_0", "q6_k"):
        return BOUNDS[type_]
    if type_ in ("adapter", "adapter_gguf", "merged_16bit", "f16", "bf16"):
        return BOUNDS["16"]
    return BOUNDS.get(type_[:2], BOUNDS["smaller"])


@dataclass(frozen=True)
class Asked:
    """What is asked: conversations that want a reply, and token ids of whole rows with the places that are scored."""

    prompts: list[Conversation]
    rows: list[tuple[list[int], list[int]]]


@dataclass
class Answers:
    """What one engine said. For each prompt its ids, the reply's ids and whether it ended; for each scored place the
    log-probability of the row's own token, the likeliest token and its log-probability."""

    prompt_ids: list[list[int]] = field(default_factory=list)
    replies: list[list[int]] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    likeliest: list[int] = field(default_factory=list)
    sureness: list[float] = field(default_factory=list)

    def perplexity(self) -> float | None:
        """Of the scored tokens."""
        return math.exp(-sum(self.logprobs) / len(self.logprobs)) if self.logprobs else None


@dataclass(frozen=True)
class Reference:
    """The adapter's answers, and the bare base's log-probabilities at the same places."""

    asked: Asked
    adapter: Answers
    base_logprobs: list[float]


def asked_of(run: Run, tokenizer: Any, cancelled: Callable[[], bool]) -> Asked:
    """What to ask of a run's exports: its own prompts and held-out rows, as far as they can still be read."""
    from tuitune.data.prepare import prepare

    recipe = run.resolved()
    prompts: list[Conversation] = [[{"role": "user", "content": text}] for text in recipe.samples.prompts]
    rows: list[tuple[list[int], list[int]]] = []
    try:
        prepared = prepare(recipe, tokenizer, cancelled=cancelled)
        prompts += [prompt for prompt in prepared.prompts(PROMPTS) if prompt not in prompts]
        dataset = prepared.eval if prepared.eval is not None and len(prepared.eval) else prepared.train
        if {"input_ids", "labels"} <= set(dataset.column_names):
            rows = _scored(dataset.select(range(min(ROWS, len(dataset)))))
    except (TuituneError, OSError):  # the data may be gone; the prompts remain
        pass
    return Asked(prompts[:PROMPTS] or [[{"role": "user", "content": "Hello!"}]], rows)


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


def reference(run: Run, recipe: Recipe, tokenizer: Any, asked: Asked, cancelled: Callable[[], bool]) -> Reference:
    """Ask the run's adapter on its base in 16 bits (float32 where a CPU has room), and the base alone. Raises
    TuituneError where memory or the base is lacking."""
    from peft import PeftModel

    from tuitune.masking import Masker

    masker = Masker(tokenizer, "last", recipe.data.max_length)
    prompt_ids = [masker.prompt_ids(prompt, thinks=run.thinks()) for prompt in asked.prompts]
    with explained(recipe, "asking the adapter on"), _loaded(recipe.model.name, recipe) as model:
        adapted = PeftModel.from_pretrained(model, str(run.adapter), is_trainable=False).eval()
        answers = _transformers_answers(adapted, tokenizer, prompt_ids, asked, cancelled)
        with adapted.disable_adapter():
            base = _scores(adapted, asked, cancelled)
    return Reference(asked, answers, base.logprobs)


def transformers_answers(folder: Path, recipe: Recipe, asked: Asked, cancelled: Callable[[], bool]) -> Answers:
    """What the model in a folder says, loaded as anyone would load it. Raises TuituneError."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    prompt_ids = [template_ids(tokenizer, prompt) for prompt in asked.prompts]
    with explained(recipe, "asking the exported model of"), _loaded(str(folder), None) as model:
        return _transformers_answers(model, tokenizer, prompt_ids, asked, cancelled)


def template_ids(tokenizer: Any, prompt: Conversation) -> list[int]:
    """The ids that an exported tokenizer's own template makes of a prompt."""
    ids: list[int] = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    return ids


@contextmanager
def _loaded(name: str, recipe: Recipe | None) -> Iterator[Any]:
    """A model in memory: the base of a recipe, as it is trained, or what lies in a folder. Raises TuituneError."""
    import torch
    from transformers import AutoConfig

    from tuitune.export import place

    load_options: dict[str, Any] = {}
    if recipe is not None:
        config = training_config(recipe)
        load_options = {"config": config, "revision": recipe.model.revision or "main"}
    else:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    from accelerate import init_empty_weights

    with init_empty_weights():
        weights = auto_class(config).from_config(config, trust_remote_code=False).num_parameters()
    on_gpu = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 2.5 * weights
    quantised = getattr(config, "quantization_config", None) is not None
    dtype = torch.bfloat16
    if not on_gpu:
        place.require_memory(int(2.2 * weights), "Asking the model")
        if weights < 1e9:
            dtype = torch.float32
    loaded = auto_class(config).from_pretrained(
        name,
        **load_options,
        dtype="auto" if quantised else dtype,
        device_map={"": "cuda:0" if on_gpu else "cpu"},
        use_safetensors=True,
        trust_remote_code=False,
    )
    try:
        yield loaded.eval()
    finally:
        del loaded
        if on_gpu:
            torch.cuda.empty_cache()


def _transformers_answers(
    model: Any, tokenizer: Any, prompt_ids: list[list[int]], asked: Asked, cancelled: Callable[[], bool]
) -> Answers:
    import torch

    answers = _scores(model, asked, cancelled)
    answers.prompt_ids = prompt_ids
    configured = model.generation_config.eos_token_id
    named = set(configured if isinstance(configured, list) else [configured])
    named |= {tokenizer.eos_token_id, _end(tokenizer)}
    ends = sorted(token for token in named if token is not None)
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
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0],
            )
        reply = output[0, len(ids) :].tolist()
        answers.replies.append(reply)
        answers.ended.append(bool(reply) and reply[-1] in ends)
    return answers


def _end(tokenizer: Any) -> int | None:
    from tuitune.chat_template.turn_end import end_of_turn_id

    return end_of_turn_id(tokenizer)


def _scores(model: Any, asked: Asked, cancelled: Callable[[], bool]) -> Answers:
    import torch

    answers = Answers()
    for ids, places in asked.rows:
        _stop_if(cancelled)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float()
        logprobs = logits[[place - 1 for place in places]].log_softmax(-1)
        targets = torch.tensor([ids[place] for place in places], device=logprobs.device)
        answers.logprobs += logprobs.gather(1, targets[:, None])[:, 0].tolist()
        sureness, likeliest = logprobs.max(-1)
        answers.likeliest += likeliest.tolist()
        answers.sureness += sureness.tolist()
    return answers


def llama_cpp_answers(
    path: Path,
    asked: Asked,
    cancelled: Callable[[], bool],
    *,
    lora: Path | None = None,
    prompt_ids: list[list[int]] | None = None,
) -> Answers:
    """What llama.cpp says with a GGUF file: fewer places are scored where it is slow. Raises TuituneError.

    `prompt_ids` are asked as they are, in place of those that the file's own template makes.
    """
    answers = Answers()
    longest = max([1024, *(len(ids) + REPLY_TOKENS for ids in prompt_ids or []), *(len(ids) for ids, _ in asked.rows)])
    with open_gguf(path, lora=lora, context=longest + REPLY_TOKENS, cancelled=cancelled) as gguf:
        answers.prompt_ids = prompt_ids or [gguf.prompt_ids(prompt) for prompt in asked.prompts]
        for ids in answers.prompt_ids:
            _stop_if(cancelled)
            completion = gguf.complete(ids, Sampling(max_new_tokens=REPLY_TOKENS), cancelled=cancelled)
            answers.replies.append(completion.ids)
            answers.ended.append(completion.ended)
        _score_by(gguf, asked, answers, cancelled)
    return answers


def _score_by(gguf: GgufModel, asked: Asked, answers: Answers, cancelled: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + _SECONDS
    for ids, places in asked.rows:
        for place in places:
            _stop_if(cancelled)
            if time.monotonic() > ends_at:
                return
            prediction = gguf.next_token(ids[:place], count=_WIDEST, cancelled=cancelled)
            least = min(prediction.logprobs.values())
            answers.logprobs.append(prediction.logprobs.get(ids[place], least))
            answers.likeliest.append(prediction.likeliest)
            answers.sureness.append(prediction.logprobs[prediction.likeliest])


def _stop_if(cancelled: Callable[[], bool]) -> None:
    from tuitune.export.kinds import Cancelled

    if cancelled():
        raise Cancelled


# --- the judgement --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parity:
    """How an export compares with its adapter. Figures are None where no row could be scored."""

    kind: str
    prompts: int
    same_prompt_ids: int
    ended: int
    same_replies: int
    scored_tokens: int
    agreement: float | None
    logprob_difference: float | None
    base_logprob_difference: float | None
    perplexity: float | None
    adapter_perplexity: float | None
    bound_logprob_difference: float
    bound_agreement: float

    def words(self) -> str:
        """In a sentence for the user."""
        text = f"Asked {self.prompts} prompts: {self.same_replies} replies as the adapter's, {self.ended} ended"
        if self.logprob_difference is None:
            return f"{text}; no held-out row could be compared."
        agreement = "" if self.agreement is None else f"{self.agreement:.0%} of sure next tokens the same, "
        return (
            f"{text}; on {self.scored_tokens} held-out tokens {agreement}log-probabilities "
            f"{self.logprob_difference:.3f} apart on average (at most {self.bound_logprob_difference:g}), perplexity "
            f"{self.perplexity:.2f} beside the adapter's {self.adapter_perplexity:.2f}."
        )


def judged(kind: str, expected: Reference, answers: Answers, *, template_told: bool = False) -> Parity:
    """Compare an export's answers with the adapter's. Raises TuituneError with what is wrong.

    `template_told` says that the user knows already that the exported template begins replies differently.
    """
    adapter, bounds = expected.adapter, bounds_of(kind)
    scored = len(answers.logprobs)
    sure_places = [n for n in range(scored) if adapter.sureness[n] >= math.log(_SURE)]
    agreement = (
        sum(answers.likeliest[n] == adapter.likeliest[n] for n in sure_places) / len(sure_places)
        if sure_places
        else None
    )
    compared = Answers(logprobs=adapter.logprobs[:scored])
    parity = Parity(
        kind=kind,
        prompts=len(adapter.prompt_ids),
        same_prompt_ids=sum(one == other for one, other in zip(adapter.prompt_ids, answers.prompt_ids, strict=True)),
        ended=sum(answers.ended),
        same_replies=sum(one == other for one, other in zip(adapter.replies, answers.replies, strict=True)),
        scored_tokens=scored,
        agreement=agreement,
        logprob_difference=_apart(answers.logprobs, adapter.logprobs),
        base_logprob_difference=_apart(answers.logprobs, expected.base_logprobs),
        perplexity=answers.perplexity(),
        adapter_perplexity=compared.perplexity(),
        bound_logprob_difference=bounds.logprob,
        bound_agreement=bounds.agreement,
    )
    _require_same(parity, expected, answers, template_told=template_told)
    return parity


def _require_same(parity: Parity, expected: Reference, answers: Answers, *, template_told: bool) -> None:
    adapter = expected.adapter
    if parity.same_prompt_ids < parity.prompts and not template_told:
        raise TuituneError(
            "The exported chat template makes other tokens of a prompt than the run was trained on, so replies would "
            "be worse: nothing was exported. Export the adapter and use the run's own tokenizer."
        )
    if any(before and not after for before, after in zip(adapter.ended, answers.ended, strict=True)):
        raise TuituneError(
            f"A reply of the exported model does not end within {REPLY_TOKENS} tokens where the adapter's does: "
            "nothing was exported. Choose a kind with more bits."
        )
    difference, from_base = parity.logprob_difference, parity.base_logprob_difference
    if difference is None or from_base is None:
        return
    scored = parity.scored_tokens
    learned = _apart(adapter.logprobs[:scored], expected.base_logprobs[:scored]) or 0.0
    if learned == 0.0:
        raise TuituneError(
            "The adapter changes nothing: with and without it the model gives every held-out token the same "
            "probability. Train longer, or with a higher learning_rate."
        )
    if learned > parity.bound_logprob_difference and from_base < difference:
        raise TuituneError(
            "The exported model answers as the base model does and not as the adapter: nothing was exported. Export "
            "the adapter instead, and report this."
        )
    if difference > parity.bound_logprob_difference:
        raise TuituneError(
            f"The exported model's log-probabilities are {difference:.2f} from the adapter's on held-out tokens, and "
            f"{parity.bound_logprob_difference:g} is the most for this kind: choose a kind with more bits."
        )
    if parity.agreement is not None and parity.agreement < parity.bound_agreement:
        raise TuituneError(
            f"Only {parity.agreement:.0%} of the next tokens that the adapter is sure of are the exported model's too, "
            f"and {parity.bound_agreement:.0%} is the least for this kind: choose a kind with more bits."
        )


def _apart(one: list[float], other: list[float]) -> float | None:
    """Mean absolute difference over the places that both have."""
    pairs = list(zip(one, other, strict=False))
    return sum(abs(a - b) for a, b in pairs) / len(pairs) if pairs else None


def write(parity: Parity, path: Path) -> None:
    """Write the figures as JSON."""
    write_atomic(path, json.dumps({**asdict(parity), "words": parity.words()}, indent=2) + "\n")
