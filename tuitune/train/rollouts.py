"""Answers that the model gives itself, with what they are worth: one generation of GRPO."""

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuitune.backends.loaded import LoadedModel
from tuitune.chat.choice import Choice
from tuitune.chat.decoding import CanDecode, Decoded, DecodeRequest
from tuitune.chat.reply import end_tokens
from tuitune.method_sections import GRPO
from tuitune.rewards.judge import Answer, Cancelled, Judge, differ
from tuitune.train.control import Stopped
from tuitune.train.ranks import ALONE, Ranks

_SMALL = 1e-4
"""Added to a spread that rewards are divided by, so that equal rewards are no division by 0."""


@dataclass(frozen=True)
class Completion:
    """One answer: its tokens after the prompt's, and its values by each reward."""

    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]
    """Of `ids`, by the decoder, at the sampling temperature."""
    ended: bool
    """Whether it ended by itself, and not at the most tokens."""
    prompt: str
    """The last message of the prompt."""
    text: str
    values: dict[str, float]
    reward: float


@dataclass(frozen=True)
class Generation:
    """The answers of one generation, `group` answers to each prompt after one another."""

    completions: list[Completion]
    group: int
    advantages: NDArray[np.float64]  # (answers,)
    seconds: float
    """What decoding took."""

    @property
    def without_spread(self) -> float:
        """Share of the prompts whose answers all have one reward: nothing is learned from them."""
        rewards = [completion.reward for completion in self.completions]
        groups = [rewards[at : at + self.group] for at in range(0, len(rewards), self.group)]
        return sum(not differ(group) for group in groups) / len(groups)

    def figures(self) -> dict[str, float]:
        """What a dashboard shows of it, by the names that TRL uses."""
        rewards = [completion.reward for completion in self.completions]
        lengths = [len(completion.ids) for completion in self.completions]
        groups = [rewards[at : at + self.group] for at in range(0, len(rewards), self.group)]
        spreads = [statistics.pstdev(group) for group in groups]
        names = self.completions[0].values
        return {
            "reward": statistics.fmean(rewards),
            "reward_std": statistics.fmean(spreads),
            "frac_reward_zero_std": self.without_spread,
            **{
                f"rewards/{name}/mean": statistics.fmean(completion.values[name] for completion in self.completions)
                for name in names
            },
            "completions/mean_length": statistics.fmean(lengths),
            "completions/max_length": float(max(lengths)),
            "completions/clipped_ratio": sum(not completion.ended for completion in self.completions) / len(lengths),
        }


class Roller:
    """Generates and judges; keep it for a run, since the decoder keeps what it has captured.

    Each of several `ranks` decodes its share of the answers; the first one has them all judged.
    """

    def __init__(
        self, loaded: LoadedModel, section: GRPO, decoder: CanDecode, judge: Judge, ranks: Ranks = ALONE
    ) -> None:
        self._loaded, self._section, self._ranks = loaded, section, ranks
        self.decoder, self.judge = decoder, judge
        self._ends = end_tokens(loaded)

    def generate(
        self,
        rows: Sequence[Mapping[str, Any]],
        group: int,
        *,
        seed: int,
        temperature: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generation:
        """`group` answers to the prompt of each of the tokenised rows, drawn by `seed` alone; the same on all ranks.

        Raises Stopped where that was asked of one of them on the way, and RewardFailed.
        """
        section = self._section
        choice = Choice(
            temperature=section.temperature if temperature is None else temperature,
            top_p=section.top_p,
            top_k=section.top_k,
            min_p=section.min_p,
        )
        prompts = [list(map(int, row["prompt_ids"])) for row in rows for _ in range(group)]
        began = time.monotonic()
        self._loaded.backend.for_inference(self._loaded)
        seeds = np.random.SeedSequence(seed).generate_state(len(prompts), np.uint64).astype(np.int64).tolist()
        rank, world = self._ranks.rank, self._ranks.world
        own = slice(len(prompts) * rank // world, len(prompts) * (rank + 1) // world)
        request = DecodeRequest(
            prompts=prompts[own],
            choice=choice,
            seeds=seeds[own],
            max_new_tokens=section.max_completion_length,
            ends=self._ends,
            cancelled=cancelled,
        )
        decoded = self.decoder.decode(request) if request.prompts else []
        self._loaded.backend.for_training(self._loaded)
        if any(self._ranks.any(cancelled())):
            raise Stopped
        if world > 1:
            decoded = [
                Decoded(**answer) for share in self._ranks.pooled(list(map(asdict, decoded))) for answer in share
            ]
        decoded_at = time.monotonic()
        tokenizer = self._loaded.tokenizer
        texts = [tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in decoded]
        columns = [json.loads(row["row"]) for row in rows]
        row_prompts = [data.pop("prompt") for data in columns]
        answers = [
            Answer(row_prompts[place // group], text, len(answer.ids), columns[place // group])
            for place, (text, answer) in enumerate(zip(texts, decoded, strict=True))
        ]
        values: list[list[float]] | None = None
        if self._ranks.is_first:
            with suppress(Cancelled):
                values = self.judge.values(answers, cancelled)
        values = self._ranks.share(values)
        if values is None:
            raise Stopped
        totals = self.judge.totals(values)
        completions = [
            Completion(
                prompt_ids=prompts[place],
                ids=answer.ids,
                logprobs=answer.logprobs,
                ended=answer.ended,
                prompt=str(answers[place].prompt[-1]["content"]),
                text=texts[place],
                values={title: column[place] for title, column in zip(self.judge.titles, values, strict=True)},
                reward=totals[place],
            )
            for place, answer in enumerate(decoded)
        ]
        return Generation(
            completions,
            group,
            advantages(totals, group, section.scale_rewards if group > 1 else "none"),
            decoded_at - began,
        )


def advantages(rewards: Sequence[float], group: int, scale: str) -> NDArray[np.float64]:
    """How much better than its group's mean each answer is, (answers,).

    Divided by the spread of its group (Shao et al. 2024), of the whole batch, or by nothing (Liu et al. 2025).
    """
    table = np.array(rewards, dtype=np.float64).reshape(-1, group)
    centred = table - table.mean(axis=1, keepdims=True)
    if scale == "group":
        centred = centred / (table.std(axis=1, ddof=1, keepdims=True) + _SMALL)
    elif scale == "batch":
        centred = centred / (table.std(ddof=1) + _SMALL)
    values: NDArray[np.float64] = centred.reshape(-1)
    assert all(map(math.isfinite, values.tolist()))
    return values
