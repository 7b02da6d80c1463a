"""The six steps of the wizard, and what each does to the model, for someone who has never fine-tuned."""

from dataclasses import dataclass
from typing import Literal

from tuitune.language import N_

StepName = Literal["model", "data", "lora", "train", "chat", "export"]


@dataclass(frozen=True)
class Step:
    """A step of the wizard; `lead` is one line of at most 76 characters, `about` one paragraph."""

    name: StepName
    title: str
    lead: str
    about: str


STEPS: tuple[Step, ...] = (
    Step(
        "model",
        N_("Model"),
        N_("Choose what to start from. Its weights stay frozen: nothing can damage it."),
        N_(
            "Fine-tuning starts from a model that someone has already trained. Its weights stay frozen: "
            "nothing you do here can damage it. In 4-bit they take about a quarter of the memory, at a small "
            "cost in accuracy, so that a larger model fits on the same card. Choose an instruct model unless "
            "you have a great many examples."
        ),
    ),
    Step(
        "data",
        N_("Data"),
        N_("What the model learns from: what stands between ▸ and ◂ is trained."),
        N_(
            "The model learns from conversations. It reads every token, but only the marked ones are trained: "
            "by default what the assistant says, so that it learns to answer rather than to imitate questions. "
            "What you see here is, token for token, what the trainer gets."
        ),
    ),
    Step(
        "lora",
        N_("Settings"),
        N_("LoRA trains two small matrices beside each layer. The usual values are good."),
        N_(
            "LoRA adds two small matrices beside each chosen layer and trains only these: often less than one "
            "percent of the weights. The rank r sets how much they can hold, the learning rate how fast they "
            "change, and the steps how often. The usual values are good; change them when a run has shown you "
            "why."
        ),
    ),
    Step(
        "train",
        N_("Train"),
        N_("Each step shows the model a few rows and moves the adapter a little."),
        N_(
            "Each step shows the model a few rows, measures how far it is from what they teach (the loss), and "
            "moves the adapter a little towards that. The loss should fall and then level off; where the model "
            "learns from rewards, these should rise. The run lives in a process of its own: close this window, "
            "and it goes on."
        ),
    ),
    Step(
        "chat",
        N_("Chat"),
        N_("Talk to the result. With the adapter switched off, the base model answers."),
        N_(
            "Talk to the result. The adapter can be switched off at any moment, which gives back the base "
            "model unchanged: ask both the same thing, and see what the training did."
        ),
    ),
    Step(
        "export",
        N_("Export"),
        N_("Take the adapter, a merged model or a GGUF file home."),
        N_(
            "What was trained is the adapter, a small file that needs its base model. Merging adds it into a "
            "copy of the weights. GGUF is one file for llama.cpp, Ollama and LM Studio, with the chat template "
            "inside."
        ),
    ),
)

STEP_NAMES: tuple[StepName, ...] = tuple(step.name for step in STEPS)
STEP = {step.name: step for step in STEPS}
