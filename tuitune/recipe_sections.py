"""The recipe's sections beside `method`: model, data, lora, train and samples, each a few fields and their bounds."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tuitune.language import _
from tuitune.method_sections import Section
from tuitune.text import safe_text

TARGET_WORDS = ("auto", "attention", "all")


ChatTemplateName = Literal[
    "chatml", "llama-3", "gemma", "mistral", "phi-3", "phi-4", "zephyr", "vicuna", "alpaca", "deepseek"
]


class ModelSection(Section):
    """Which base model, and how its weights are held in memory."""

    name: str = Field(min_length=1)
    """A model folder or a Hugging Face Hub id."""
    load_in_4bit: bool = True
    """Hold the frozen base weights in 4-bit nf4 (QLoRA): about a quarter of the memory of 16-bit."""
    load_in_8bit: bool = False
    """Hold them in 8-bit instead (LLM.int8): set load_in_4bit to false with it."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    chat_template: ChatTemplateName | None = None
    """Named chat template, only for a tokenizer that has none."""
    backend: Literal["auto", "unsloth", "transformers"] = "auto"
    """What loads and trains the model: Unsloth on an NVIDIA GPU where it is installed, else plain transformers."""
    new_tokens: tuple[str, ...] = Field((), max_length=10_000)
    """Texts that get a token each, whose embedding begins as the mean of the tokens they were and is trained too."""

    @model_validator(mode="after")
    def _one_precision(self) -> Self:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError(_("load_in_4bit and load_in_8bit exclude each other: set one of them to false"))
        return self

    @field_validator("new_tokens")
    @classmethod
    def _each_once(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for place, text in enumerate(texts):
            if not text.strip():
                raise ValueError(_("entry {number} is blank: leave it out", number=place + 1))
            if text in texts[:place]:
                raise ValueError(_("{text!r} stands there twice: leave one out", text=safe_text(text, max_length=60)))
        return texts

    @model_validator(mode="after")
    def _rows_by_transformers(self) -> Self:
        if self.new_tokens and self.backend == "unsloth":
            raise ValueError(
                _("new_tokens are trained by transformers and PEFT alone: set backend to auto or transformers")
            )
        return self


HUB = "hub:"
DATASET_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")


class SourceSection(Section):
    """One more dataset mixed into the training data."""

    path: str = Field(min_length=1)
    """The dataset file, or `hub:` and a Hugging Face dataset id."""
    weight: float = Field(1.0, gt=0, le=100)
    """How often each row is taken: 2 twice, 0.5 a seeded half of the rows."""
    columns: dict[str, str] | None = None
    """Role to column name, only where the format is not recognised."""
    config: str | None = None
    """Configuration of a Hub dataset."""
    split: str = Field("train", min_length=1)
    """Split of a Hub dataset; `train[:10%]` and `train[100:200]` take a part of one, or of a file."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""


class DataSection(Section):
    """Which conversations, and which of their tokens are trained."""

    path: str = Field(min_length=1)
    """The dataset file (JSONL, JSON, CSV, TSV, Parquet, Arrow), or `hub:` and a Hugging Face dataset id."""
    weight: float = Field(1.0, gt=0, le=100)
    """How often each row is taken: 2 twice, 0.5 a seeded half of the rows."""
    also: list[SourceSection] = Field([], max_length=64)
    """Further datasets mixed in, each with a path, weight, columns, config, split and revision of its own."""
    config: str | None = None
    """Configuration of a Hub dataset."""
    split: str = Field("train", min_length=1)
    """Split of a Hub dataset; `train[:10%]` and `train[100:200]` take a part of one, or of a file."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    columns: dict[str, str] | None = None
    """Role to column name (`user: question`), only where the format is not recognised."""
    max_length: int = Field(2048, ge=8, le=10_000_000)
    """Longest row in tokens."""
    over_length: Literal["cut", "drop", "split"] = "cut"
    """What becomes of a longer row: its end is cut, the row is left out, or it is split between its turns."""
    bad_rows: Literal["skip", "refuse"] = "skip"
    """Whether a row that cannot be used is left out and counted, or stops the run before training."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Which tokens are trained: every assistant reply, only the last one, or everything."""
    eval_share: float = Field(0.0, ge=0.0, le=0.5)
    """Share of the rows held out from training and used to measure the loss."""
    eval_path: str | None = Field(None, min_length=1)
    """A dataset file of its own to measure the loss on; its rows that are also in the training data are left out."""
    eval_split: str | None = Field(None, min_length=1)
    """Split of the Hub dataset, or part of the file (`train[90%:]`), to measure the loss on, treated like eval_path."""
    eval_revision: str | None = None
    """Branch, tag or commit of the Hub dataset that eval_path names, where that is another than path."""


class LoraSection(Section):
    """The adapter: the only weights that are trained."""

    r: int = Field(16, ge=1, le=4096)
    """Rank of the two small matrices added to each target module."""
    lora_alpha: float = Field(16, gt=0)
    """Scale of the adapter: its output is multiplied by lora_alpha / r."""
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of adapter inputs dropped during training."""
    target_modules: Literal["auto", "attention", "all"] | list[str] = "auto"
    """Linear layers that get an adapter: `auto` (those usual for the architecture), `attention`, `all`, or names."""
    bias: Literal["none", "lora_only", "all"] = "none"
    """Which biases are trained beside the adapter: none, those of the adapted layers, or all."""
    use_rslora: bool = False
    """Scale the adapter by lora_alpha / sqrt(r) instead, which keeps high ranks learning (Kalajdzievski 2023)."""
    use_dora: bool = False
    """Train a magnitude beside the direction of each weight: slower, often better at low rank (Liu et al. 2024)."""
    init_lora_weights: Literal[True, "loftq"] = True
    """How the adapter begins: true changes nothing at first, loftq makes up for what 4-bit loses (Li et al. 2023)."""
    init_adapter: str | None = Field(None, min_length=1)
    """Folder of a saved adapter to begin with, of the same base model, layers and rank; `run --from RUN` sets it."""
    modules_to_save: list[str] = Field([])
    """Layers trained whole beside the adapter, such as embed_tokens and lm_head for a new language."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _word_or_names(cls, value: Any) -> Any:
        names = isinstance(value, list | tuple) and value and all(isinstance(name, str) and name for name in value)
        if not names and value not in TARGET_WORDS:
            raise ValueError(
                _("should be {words}, or a list of names such as [q_proj, v_proj]", words=list(TARGET_WORDS))
            )
        return value


class TrainSection(Section):
    """How long and how fast to train."""

    max_steps: int = Field(60, ge=-1)
    """Optimizer steps; -1 trains for `num_train_epochs` instead."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the data, where `max_steps` is -1."""
    per_device_train_batch_size: int = Field(2, ge=1)
    """Rows in one forward pass."""
    gradient_accumulation_steps: int = Field(4, ge=1)
    """Forward passes in one optimizer step."""
    learning_rate: float = Field(2.0e-4, gt=0, le=1)
    """Peak step size of the optimizer; left out, it is the method's own (5e-6 for dpo)."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate changes over the run."""
    warmup_steps: int = Field(5, ge=0)
    """Steps over which the learning rate rises from 0."""
    weight_decay: float = Field(0.01, ge=0)
    """Pull of the adapter weights towards 0."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients longer than this are scaled down to it; 0 leaves them."""
    save_steps: int = Field(50, ge=1)
    """Steps between checkpoints."""
    eval_steps: Literal["auto"] | int = "auto"
    """Steps between measurements of the held-out loss, with replies: `auto` ten a run in 5% of its time, 0 none."""
    early_stopping_patience: Literal["auto"] | int = "auto"
    """Measurements in a row without gain that end the run: `auto` 3 on held-out rows in over two epochs, 0 never."""
    early_stopping_threshold: float = Field(0.0, ge=0)
    """By how much the held-out loss must fall below its best to count as a gain."""
    gpus: Literal["auto", "all"] | list[int] = "auto"
    """Cards that train together, as nvidia-smi numbers them: `auto` the one that was chosen, `all`, or a list."""
    shard: bool | Literal["auto"] = "auto"
    """Share the frozen weights out to the cards, as FSDP does: `auto` where one of several cards cannot hold them."""
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field([])
    """Where the figures of each step are sent to as well, with whatever login that library has on this machine."""
    seed: int = Field(3407, ge=0, lt=2**32)
    """Start of every random choice: adapter weights, row order, the held-out rows."""
    optim: Literal["auto", "adamw_8bit", "adamw_torch_fused"] = "auto"
    """How the optimizer keeps its state: `auto` takes fp32 in one fused kernel, 8-bit where fp32 would be large."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations again in the backward pass: less memory, about a third slower."""
    padding_free: bool | None = None
    """Lay the rows of a batch end to end instead of padding them; empty does so where attention can."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the model's own parts with torch: minutes before the first step, for steps that are somewhat faster."""
    dequantize_once: bool | Literal["auto"] = "auto"
    """Keep the 16-bit values of 4-bit weights while training: a few percent faster, where memory has room for both."""
    cuda_graphs: bool | Literal["auto"] = "auto"
    """Capture small passes as CUDA graphs and replay them: `auto` where `fit` finds it faster within this run."""
    fit: bool = True
    """On a GPU, time a few ways to run the same steps before the first one, and take the fastest that fits."""

    @field_validator("eval_steps", "early_stopping_patience", mode="before")
    @classmethod
    def _auto_or_count(cls, value: Any) -> Any:
        if isinstance(value, str) and value.strip().isdecimal():
            return int(value)
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise ValueError(_("should be auto, or a whole number from 0 on"))
        return value

    @field_validator("gpus", mode="before")
    @classmethod
    def _words_or_cards(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("auto", "all"):
            value = [part.strip() for part in value.split(",")]
        if value in ("auto", "all"):
            return value
        if isinstance(value, list | tuple):  # numbers that were written are text
            value = [int(card) if isinstance(card, str) and card.isdecimal() else card for card in value]
        numbers = isinstance(value, list | tuple) and all(type(card) is int and card >= 0 for card in value)
        if not numbers or len(value) < 2 or len(set(value)) < len(value):
            raise ValueError(_("should be auto, all, or the numbers of two cards or more, such as [0, 2]"))
        return list(value)

    @field_validator("max_steps")
    @classmethod
    def _not_zero(cls, value: int) -> int:
        if value == 0:
            raise ValueError(_("must be at least 1, or -1 to train by epochs"))
        return value


class SamplesSection(Section):
    """Prompts that the model answers before and after training, for the report."""

    prompts: list[str] = Field([], max_length=32)
    """The prompts; empty takes the first ones of the held-out rows, or of the data."""
    max_new_tokens: int = Field(128, ge=1, le=8192)
    """Longest reply in tokens."""


class ExportSection(Section):
    """What the result is for: whether it can be made is looked at before training; `tuitune export` makes it."""

    to: list[str] = Field([], max_length=64)
    """Kinds of export, such as `merged_16bit` or `gguf:q4_k_m`; a run whose kinds cannot be made here is refused."""
    hub_repo: str | None = Field(None, min_length=1)
    """Repository for `hub:` kinds (NAME or OWNER/NAME); name and write access are checked before training."""
    hub_public: bool = False
    """Make a new repository public; else it is private."""
    imatrix: bool = False
    """Round GGUFs under 8 bits by what the weights see in training rows (an importance matrix)."""
