"""The words on each screen that someone who has never fine-tuned may not know, in one sentence each."""

from screens.steps import StepName
from tuitune.language import N_, _

_WORDS = {
    N_("adapter"): N_(
        "the small matrices that training adds beside the model's own weights; the only ones that change"
    ),
    "LoRA": N_("training such an adapter instead of the whole model"),
    "QLoRA": N_("LoRA on a model whose weights are held in 4-bit: a quarter of the memory"),
    N_("base model"): N_("one that continues text and was not taught to converse; an instruct model was"),
    N_("proven"): N_("this architecture was tried here from loading to export"),
    N_("token"): N_("a piece of a word; what a model reads, writes and is measured in"),
    N_("trained tokens"): N_("the ones between ▸ and ◂, from which the model learns"),
    N_("held-out"): N_(
        "rows that are never trained on, so that their loss tells what was learnt and not what was memorised"
    ),
    N_("chat template"): N_("how a conversation is written down as one text for this model"),
    "max_length": N_("the longest row in tokens; what is longer is cut"),
    N_("rank (r)"): N_("how much the adapter can hold"),
    N_("learning rate"): N_("how far each step moves the adapter"),
    N_("batch"): N_("rows in one pass × passes in one step"),
    N_("epoch"): N_("one pass over all rows"),
    N_("loss"): N_("how surprised the model was by the trained tokens; lower is better"),
    N_("smoothed"): N_("the average of the last losses, the newest counting most"),
    N_("grad norm"): N_("how strongly a step pulls at the adapter; sudden peaks are a bad sign"),
    N_("tokens/s"): N_("how many tokens are trained a second, padding not counted"),
    N_("checkpoint"): N_("the run as it stood after a step, from which it can go on"),
    N_("merged"): N_("a whole model into which the adapter was added"),
    "GGUF": N_("one file for llama.cpp, Ollama and LM Studio"),
    "f16, q8_0, q4_k_m": N_("kinds of GGUF: all 16 bits; 8 bits, half the size and nearly as good; 4 bits, a quarter"),
    N_("temperature"): N_("how freely the next token is drawn; 0 always takes the likeliest"),
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
    return [(_(word), _(_WORDS[word])) for word in _ON[step]]
