"""Makes the prompts and the recipe of the GRPO demo: Tiny learns to say what an animal says, whatever it is asked.

    python -m sample_data.making.animals

Tiny was never asked for just any animal, and mumbles: about one answer in ten is a sentence of the world by chance.
The reward is one of the recipe's own, a pattern of all the true sentences.
"""

import json
from pathlib import Path

from sample_data.making import facts
from sample_data.making.world import with_article

FOLDER = Path(__file__).parents[1]
ASKED = (
    "Tell me one animal.", "Pick an animal.", "Choose an animal.", "Think of an animal.", "Show me an animal.",
    "Tell me about an animal.", "Which animal do you like?", "Which animal is loud?", "Which animal is small?",
    "Which animal is nice?", "Which animal do you know?", "What animal is that?", "What animal do you hear?",
    "What animal do you have?", "Is there an animal?", "Do you have an animal?", "Do you hear an animal?",
    "Make a noise.", "Make an animal noise.", "Say an animal and its sound.", "Say what an animal says.",
    "Tell me an animal and its sound.", "Talk about an animal.", "I hear an animal.", "I see an animal.",
    "I like animals.", "Animals!", "Any animal?", "One animal, please.", "Some animal.",
)  # fmt: skip
TITLE = "# The GRPO demo: Tiny answers by itself, and true sentences about an animal's sound are rewarded.\n"


def pattern() -> str:
    """A regular expression of every true sentence about what an animal says."""
    said = {f"{with_article(animal)} says {sound}" for animal, _, sound, *_ in facts.ANIMALS if sound}
    return "(" + "|".join(sorted(sentence[0].upper() + sentence[1:] for sentence in said)) + ")[.]"


def main() -> None:
    rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ASKED)
    (FOLDER / "animals.jsonl").write_text(rows, encoding="utf-8")
    recipe = f"""{TITLE}model: {{name: demo_model, load_in_4bit: false}}
data: {{path: animals.jsonl, max_length: 64, eval_share: 0.2}}
method:
  name: grpo
  rewards:
    - name: format
      pattern: "{pattern()}"
  num_generations: 8
  max_completion_length: 24
  loss_type: dapo
lora:
  r: 16
  lora_alpha: 32
train:
  max_steps: 24
  per_device_train_batch_size: 32
  gradient_accumulation_steps: 1
  learning_rate: 2.0e-3
  lr_scheduler_type: constant_with_warmup
  warmup_steps: 2
  eval_steps: 12
  seed: 3407
samples:
  # None of these wordings is in the data.
  prompts: ["Give me some animal.", "Which animal is here?"]
  max_new_tokens: 24
"""
    (FOLDER / "demo_grpo.yaml").write_text(recipe, encoding="utf-8")


if __name__ == "__main__":
    main()
