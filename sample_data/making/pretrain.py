"""Makes the demo model from nothing: its tokenizer, then its weights, from the generated world alone.

From the repository, in minutes on a GPU, or a smoke test anywhere:

    python -m sample_data.making.pretrain --out sample_data/demo_model
    python -m sample_data.making.pretrain --out /tmp/tiny --steps 20 --conversations 2000 --batch_tokens 4096
"""

import argparse
import math
import multiprocessing
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sample_data.making import world

VOCABULARY = 3072
CONTEXT = 2048
BUCKETS = (32, 48, 64, 96, 128, 192, 256, 384, 512)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# The sixteen levels of the nf4 data type, as its paper gives them.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What a pretraining run is made of."""

    steps: int
    conversations: int
    batch_tokens: int
    learning_rate: float
    rounding_from: float
    seed: int


def make_tokenizer(chats: list[list[world.Message]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with GPT-2's way of splitting text, so that any text can be encoded and GGUF tools know it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"{each['role']}\n{each['content']}" for chat in chats for each in chat), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHATML,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def weights_of(ids: NDArray[np.int64], tokenizer: PreTrainedTokenizerFast) -> NDArray[np.float32]:
    """Loss weight of each token in flattened chats: 1 in replies with their end token, a little elsewhere."""
    start, end, assistant = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "assistant"])
    starts = np.flatnonzero(ids == start)
    turn = np.cumsum(ids == start) - 1
    in_reply = ids[starts + 1][turn] == assistant
    after_header = np.arange(len(ids)) - starts[turn] >= 3
    after_end = np.roll(ids, 1) == end
    return np.where(in_reply & after_header & ~after_end, 1.0, 0.1).astype(np.float32)


def make_rows(
    chats: list[list[world.Message]], tokenizer: PreTrainedTokenizerFast, device: str
) -> list[tuple[Tensor, Tensor]]:
    """The chats as (ids, weights), one pair a length bucket, padded at the end."""
    texts = ["".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in chat) for chat in chats]
    encoded = [np.array(each.ids) for each in tokenizer.backend_tokenizer.encode_batch(texts)]
    assert encoded[0].tolist() == tokenizer.apply_chat_template(chats[0], return_dict=False)
    weights = np.split(weights_of(np.concatenate(encoded), tokenizer), np.cumsum([len(each) for each in encoded])[:-1])
    rows = []
    for shorter, longest in zip((0, *BUCKETS), BUCKETS, strict=False):
        chosen = [index for index, each in enumerate(encoded) if shorter < len(each) <= longest]
        ids = np.full((len(chosen), longest), tokenizer.pad_token_id, dtype=np.int64)
        weight = np.zeros((len(chosen), longest), dtype=np.float32)
        for row, index in enumerate(chosen):
            ids[row, : len(encoded[index])] = encoded[index]
            weight[row, : len(encoded[index])] = weights[index]
        rows.append((torch.from_numpy(ids).to(device), torch.from_numpy(weight).to(device)))
    return rows


def batches(rows: list[tuple[Tensor, Tensor]], batch_tokens: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless shuffled batches of about `batch_tokens`, each from one bucket."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    while True:
        chunks = [
            (bucket, chosen)
            for bucket, (ids, _) in enumerate(rows)
            if len(ids)
            for chosen in torch.randperm(len(ids), generator=generator).split(max(1, batch_tokens // ids.shape[1]))
        ]
        rng.shuffle(chunks)
        for bucket, chosen in chunks:
            ids, weights = rows[bucket]
            here = chosen.to(ids.device)
            yield ids[here], weights[here]


class Nf4Rounding(nn.Module):  # type: ignore[misc]
    """Rounds a weight as a 4-bit load would, with gradients passed straight through."""

    levels: Tensor
    borders: Tensor

    def __init__(self) -> None:
        super().__init__()
        levels = torch.tensor(NF4)
        self.register_buffer("levels", levels)
        self.register_buffer("borders", (levels[1:] + levels[:-1]) / 2)
        self.active = False

    def forward(self, weight: Tensor) -> Tensor:
        if not self.active:
            return weight
        blocks = weight.detach().reshape(-1, 64)
        scale = blocks.abs().amax(1, keepdim=True).clamp_min(1e-8)
        rounded = self.levels[torch.bucketize(blocks / scale, self.borders)] * scale
        return weight + (rounded.reshape(weight.shape) - weight.detach())


def train(model: LlamaForCausalLM, rows: list[tuple[Tensor, Tensor]], settings: Settings, device: str) -> None:
    """Trains in place; towards the end every other step sees 4-bit weights, so that the demo answers as well in nf4."""
    model.to(device).train()
    rounding = Nf4Rounding().to(device)
    linears = [module for layer in model.model.layers for module in layer.modules() if isinstance(module, nn.Linear)]
    for linear in linears:
        parametrize.register_parametrization(linear, "weight", rounding)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=device == "cuda"
    )
    started = time.monotonic()
    for step, (ids, weights) in zip(
        range(settings.steps), batches(rows, settings.batch_tokens, settings.seed), strict=False
    ):
        progress = step / settings.steps
        rate = settings.learning_rate * min(1, (step + 1) / 200) * (0.51 + 0.49 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rounding.active = progress >= settings.rounding_from and step % 2 == 1
        with torch.autocast(device, torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        losses = nn.functional.cross_entropy(logits.float(), ids[:, 1:].flatten(), reduction="none")
        share = weights[:, 1:].flatten()
        loss = (losses * share).sum() / share.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step + 1 == settings.steps:
            reply = (losses * (share == 1)).sum() / (share == 1).sum()
            print(f"step {step} loss {loss.item():.4f} replies {reply.item():.4f} {time.monotonic() - started:.0f} s")
    for linear in linears:
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)


def generate(count: int, seed: int) -> list[list[world.Message]]:
    """The training text, made by one process a core; the parts are the same on any number of cores."""
    part = 10_000
    jobs = [(min(part, count - done), seed * 1_000_000 + done) for done in range(0, count, part)]
    with multiprocessing.get_context("fork").Pool() as workers:
        return [chat for chats in workers.starmap(world.conversations, jobs) for chat in chats]


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the demo model on its generated world.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--conversations", type=int, default=800_000)
    parser.add_argument("--batch_tokens", type=int, default=65_536)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--rounding_from", type=float, default=0.5, help="share of the run before 4-bit steps begin")
    parser.add_argument("--seed", type=int, default=1)
    arguments = vars(parser.parse_args())
    out: Path = arguments.pop("out")
    settings = Settings(**arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(settings.seed)
    started = time.monotonic()
    chats = generate(settings.conversations, settings.seed)
    tokenizer = make_tokenizer(chats[:100_000])
    rows = make_rows(chats, tokenizer, device)
    tokens = sum(int((weights > 0).sum()) for _, weights in rows)
    model = make_model(tokenizer)
    parameters = sum(each.numel() for each in model.parameters())
    print(f"{tokens} tokens, vocabulary {len(tokenizer)}, {parameters} parameters, {time.monotonic() - started:.0f} s")
    train(model, rows, settings, device)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
