"""The decoder for a model: the fast one where it proves right on the model itself, else transformers' `generate`."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from tuitune.backends.loaded import LoadedModel
from tuitune.backends.plain import NotPlain
from tuitune.chat.choice import Choice
from tuitune.chat.decoding import CanDecode, Decoded, DecodeRequest
from tuitune.chat.fast_decoder import Decoder
from tuitune.errors import TuituneError, explain
from tuitune.language import _
from tuitune.text import one_line

_MOST_DIFFERENCE = {torch.float32: 1e-3, torch.bfloat16: 0.12, torch.float16: 0.03}
"""Mean difference of a token's log-probability that rounding explains; a wrong layer brings several."""
_PROOF_TOKENS = 16


def decoder_of(loaded: LoadedModel, prompt: Sequence[int], tell: Callable[[str], None]) -> CanDecode:
    """What decodes with this model; `tell` gets a sentence where it is slow. `prompt` is what it is tried on."""
    try:
        decoder = Decoder(loaded)
        difference = disagreement(decoder, loaded, prompt)
    except torch.OutOfMemoryError:
        raise
    except NotPlain as error:
        tell(_("Replies of this model are generated slowly, because {reason}.", reason=error.sentence))
        return Generating(loaded)
    except Exception as error:  # of whatever a layer does that no plain module of it can
        reason = one_line(explain(error), max_length=160)
        tell(_("Replies of this model are generated slowly ({reason}).", reason=reason))
        return Generating(loaded)
    if math.isnan(difference) and logprobs_of(loaded, prompt, prompt[-1:]).isnan().any():
        raise TuituneError(
            "The model gives no token a probability (NaN), so it cannot reply: its files are damaged, or its "
            "numbers overflow in this precision. Load it anew, or in another precision."
        )
    if not difference <= _MOST_DIFFERENCE.get(decoder.plain.dtype, 0.12):
        tell(
            _(
                "Replies of this model are generated slowly, because the fast decoder's probabilities are not those of "
                "the training (a token's logarithm differs by {difference:.2g} on average).",
                difference=difference,
            )
        )
        return Generating(loaded)
    return decoder


def disagreement(decoder: CanDecode, loaded: LoadedModel, prompt: Sequence[int]) -> float:
    """Mean difference between the log-probabilities of decoded tokens and those of the model that is trained.

    Both for a greedy continuation of two prompts of different lengths, decoded together.
    """
    prompts = [list(prompt)[-512:], list(prompt)[-max(1, min(512, len(prompt)) // 2) :]]
    greedy = Choice(temperature=0)
    decoded = decoder.decode(
        DecodeRequest(prompts=prompts, choice=greedy, seeds=[0, 0], max_new_tokens=_PROOF_TOKENS, ends=set())
    )
    differences = [
        logprobs_of(loaded, ids, result.ids) - torch.tensor(result.logprobs)
        for ids, result in zip(prompts, decoded, strict=True)
    ]
    return float(torch.cat(differences).abs().mean())


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is untyped
def logprobs_of(loaded: LoadedModel, prompt: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities (len(ids),) of `ids` after `prompt` by the model that is trained, in fp32 on the CPU."""
    model = loaded.model
    loaded.backend.for_inference(loaded)
    whole = torch.tensor([[*prompt, *ids]], device=model.device)
    with trained_precision(loaded):
        logits = model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    logprobs = F.log_softmax(logits, dim=-1)
    return logprobs.gather(-1, whole[0, len(prompt) :, None])[:, 0].cpu()


def trained_precision(loaded: LoadedModel) -> Any:
    """The autocast that the trainer uses."""
    from tuitune.machine.precision import gpu_has_bf16

    if loaded.model.device.type != "cuda":
        return contextlib.nullcontext()
    return torch.autocast("cuda", dtype=torch.bfloat16 if gpu_has_bf16() else torch.float16)


class Generating:
    """transformers' `generate` behind the decoder's interface; seeds hold for the whole batch only."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is untyped
    def decode(self, request: DecodeRequest) -> list[Decoded]:
        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        prompts, ends = request.prompts, request.ends
        self._loaded.backend.for_inference(self._loaded)
        longest = max(map(len, prompts))
        filling = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
        ids = [[filling] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        if request.choice.temperature > 0:
            torch.manual_seed(request.seeds[0])
        without = not request.adapter and hasattr(model, "disable_adapter")
        with model.disable_adapter() if without else contextlib.nullcontext(), trained_precision(self._loaded):
            output = model.generate(
                input_ids=torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                **request.choice.for_generate(),
                max_new_tokens=request.max_new_tokens,
                eos_token_id=sorted(ends) or None,
                pad_token_id=filling,
                streamer=_Tokens(request.on_token) if request.on_token else None,
                stopping_criteria=[
                    lambda ids, scores, **_: torch.full((len(ids),), request.cancelled(), device=ids.device)
                ],
            )
        results = []
        for prompt, row in zip(prompts, output[:, longest:].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in ends), None)
            new = row if end is None else row[: end + 1]
            results.append(
                Decoded(new, logprobs_of(self._loaded, prompt, new).tolist() if new else [], end is not None)
            )
        return results

    def forget(self) -> None:
        """Nothing is kept."""


class _Tokens:
    """A streamer of `generate` for one sequence that passes each new token on."""

    def __init__(self, on_token: Callable[[int, int], None]) -> None:
        self._on_token, self._prompt_seen = on_token, False

    def put(self, value: Any) -> None:
        for token in value.reshape(-1).tolist() if self._prompt_seen else ():
            self._on_token(0, token)
        self._prompt_seen = True

    def end(self) -> None:
        """The last token was put before."""
