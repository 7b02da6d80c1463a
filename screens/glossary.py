"""The words on each screen that someone who has never fine-tuned may not know, in one sentence each."""

from screens.steps import StepName

_WORDS = {
    "adapter": "the small matrices that training adds beside the model's own weights; the only ones that change",
    "LoRA": "training such an adapter instead of the whole model",
    "QLoRA": "LoRA on a model whose weights are held in 4-bit: a quarter of the memory",
    "base model": "one that continues text and was not taught to converse; an instruct model was",
    "proven": "this architecture was tried here from loading to export",
    "token": "a piece of a word; what a model reads, writes and is measured in",
    "trained tokens": "the ones between ▸ and ◂, from which the model learns",
    "held-out": "rows that are never trained on, so that their loss tells what was learnt and not what was memorised",
    "chat template": "how a conversation is written down as one text for this model",
    "max_length": "the longest row in tokens; what is longer is cut",
    "rank (r)": "how much the adapter can hold",
    "learning rate": "how far each step moves the adapter",
    "batch": "rows in one pass × passes in one step",
    "epoch": "one pass over all rows",
    "loss": "how surprised the model was by the trained tokens; lower is better",
    "smoothed": "the average of the last losses, the newest counting most",
    "grad norm": "how strongly a step pulls at the adapter; sudden peaks are a bad sign",
    "tokens/s": "how many tokens are trained a second, padding not counted",
    "checkpoint": "the run as it stood after a step, from which it can go on",
    "merged": "a whole model into which the adapter was added",
    "GGUF": "one file for llama.cpp, Ollama and LM Studio",
    "f16, q8_0, q4_k_m": "kinds of GGUF: all 16 bits; 8 bits, half the size and nearly as good; 4 bits, a quarter",
    "temperature": "how freely the next token is drawn; 0 always takes the likeliest",
}
_ON: dict[StepName | None, tuple[str, ...]] = {
    None: ("adapter", "held-out", "checkpoint"),
    "model": ("QLoRA", "base model", "proven", "token"),
    "data": ("token", "trained tokens", "chat template", "max_length", "held-out"),
    "lora": ("LoRA", "rank (r)", "learning rate", "batch", "epoch", "held-out"),
    "train": ("loss", "held-out", "smoothed", "grad norm", "tokens/s", "checkpoint"),
    "chat": ("adapter", "temperature", "token"),
    "export": ("adapter", "merged", "GGUF", "f16, q8_0, q4_k_m"),
}


def words_on(step: StepName | None) -> list[tuple[str, str]]:
    """The words of a step's screen, or of home's, each with what it means."""
    return [(word, _WORDS[word]) for word in _ON[step]]
