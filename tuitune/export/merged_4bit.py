"""Export the merged model quantised to 4-bit by bitsandbytes."""

from pathlib import Path
from typing import Any

from tuitune.backends.loading import explained
from tuitune.errors import TuituneError
from tuitune.export.card import mark, model_card
from tuitune.export.merged import quiet
from tuitune.language import N_
from tuitune.model.config import auto_class
from tuitune.runs.folder import Run
from tuitune.text import one_line


def quantise(run: Run, merged: Path, folder: Path) -> None:
    """Write the merged 16-bit model in folder `merged` as nf4 with double quantisation into the new `folder`.

    The weights are quantised as `load_in_4bit` does (Dettmers et al. 2023), so what is loaded from `folder` computes
    what the merged model loaded in 4-bit does. Raises TuituneError.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig

    config = AutoConfig.from_pretrained(merged, trust_remote_code=False)
    dtype = torch.float16 if config.dtype == torch.float16 else torch.bfloat16
    in_4bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    with explained(run.resolved(), N_("quantising the merged model of")), quiet():
        model = auto_class(config).from_pretrained(
            merged,
            dtype=dtype,
            quantization_config=in_4bit,
            device_map={"": "cuda:0" if torch.cuda.is_available() else "cpu"},
            use_safetensors=True,
            trust_remote_code=False,
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(merged, trust_remote_code=False).save_pretrained(folder)
    state = {name: weight for name, weight in model.state_dict().items() if weight.dtype == torch.uint8}
    _prove(folder, state)
    (folder / "README.md").write_text(model_card(run, "merged_4bit"), encoding="utf-8")
    mark(folder, run, "merged_4bit")


def _prove(folder: Path, packed: dict[str, Any]) -> None:
    """Every packed 4-bit weight is in the files as it was in memory. Raises TuituneError."""
    import torch
    from safetensors import safe_open

    missing = {name for name in packed if name.endswith(".weight")}
    if not missing:
        raise TuituneError("No weight of the merged model could be quantised to 4-bit: export merged_16bit instead.")
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in missing & set(file.keys()):
                if not torch.equal(file.get_tensor(name), packed[name].cpu()):
                    raise TuituneError(
                        "The 4-bit weight {name} is not the same when it is opened again: nothing was exported.",
                        name=one_line(name),
                    )
                missing.discard(name)
    if missing:
        raise TuituneError(
            "The 4-bit weight {name} is missing from the files: nothing was exported.",
            name=one_line(sorted(missing)[0]),
        )
