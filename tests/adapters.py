"""An adapter that changes what its model says, for tests that train none."""

from typing import Any


def draw_adapter(model: Any, std: float, seed: int = 0) -> None:
    """Draw every LoRA B, which begins at zero, from a normal distribution around zero."""
    import torch

    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=std)
