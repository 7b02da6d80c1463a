"""An importance matrix of training rows: the sums that llama.cpp would collect, and weights rounded by them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.exporting import export, moved_run
from tuitune.data.prepare import prepare
from tuitune.export import Exported, ExportOptions, importance, llama_cpp
from tuitune.export.answers import ROWS
from tuitune.runs.folder import Run

KIND = "q4_k_s"


@pytest.fixture(scope="module", autouse=True)
def few_tokens() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importance, "TOKENS", 4096)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return moved_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def exports(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """The merged model, it as bf16, and it in a small type without and with an importance matrix."""
    if llama_cpp.find() is None or llama_cpp.kernels() is None:
        pytest.skip("llama.cpp's converter and kernels are not here")
    out = tmp_path_factory.mktemp("out")

    def make(kinds: list[str], folder: Path, *, imatrix: bool) -> list[Exported]:
        options = ExportOptions(imatrix=imatrix)
        return export(run, kinds, folder, lambda *_: None, lambda question: True, lambda: False, options)

    merged, source, plain = make(["merged_16bit", "gguf:bf16", f"gguf:{KIND}"], out, imatrix=False)
    (weighed,) = make([f"gguf:{KIND}"], out / "weighed", imatrix=True)
    return {"merged": merged, "source": source, "plain": plain, "weighed": weighed}


@pytest.fixture(scope="module")
def matrix(run: Run, exports: dict[str, Exported], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Name to content of the tensors in the file of the matrix."""
    from gguf import GGUFReader

    matrix_file = tmp_path_factory.mktemp("matrix") / "imatrix.gguf"
    merged, source = exports["merged"].path, exports["source"].path
    importance.write_importance(merged, run, source, matrix_file, lambda done, total: None, lambda: False)
    reader = GGUFReader(matrix_file)
    assert str(reader.fields["general.type"].contents()) == "imatrix"
    return {tensor.name: np.array(tensor.data).reshape(-1) for tensor in reader.tensors}


def test_the_sums_are_those_of_what_the_weights_are_multiplied_with(
    run: Run, exports: dict[str, Exported], matrix: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(exports["merged"].path, dtype=torch.float32)
    rows = prepare(run.resolved(), AutoTokenizer.from_pretrained(run.adapter)).train["input_ids"]
    expected, left = torch.zeros(model.config.hidden_size), importance.TOKENS
    with torch.inference_mode():
        for row in list(rows)[ROWS:]:
            ids = torch.tensor(row[:left])
            left -= len(ids)
            expected += model.model.layers[0].input_layernorm(model.model.embed_tokens(ids)).square().sum(0)
            if not left:
                break
    for name in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(matrix[f"blk.0.{name}.weight.in_sum2"], expected.numpy(), rtol=1e-3)
    assert matrix["blk.0.attn_q.weight.counts"] == importance.TOKENS - left
    assert len(matrix) == 2 * 7 * model.config.num_hidden_layers, "seven matrices a layer, and not the head"


def test_weights_that_see_much_are_rounded_more_exactly(exports: dict[str, Exported], matrix: dict[str, Any]) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    def weights(name: str) -> dict[str, Any]:
        tensors = GGUFReader(exports[name].path).tensors
        return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in tensors}

    exact, plain, weighed = weights("source"), weights("plain"), weights("weighed")
    names = [name.removesuffix(".in_sum2") for name in matrix if name.endswith(".in_sum2")]
    lost = {"plain": 0.0, "weighed": 0.0}
    for name in names:
        seen = matrix[f"{name}.in_sum2"]
        lost["plain"] += float((np.square(plain[name] - exact[name]) * seen).sum())
        lost["weighed"] += float((np.square(weighed[name] - exact[name]) * seen).sum())
    assert lost["weighed"] < 0.95 * lost["plain"]
    assert np.array_equal(plain["token_embd.weight"], weighed["token_embd.weight"]), "what has no entry stays"


def test_the_file_and_the_user_are_told(exports: dict[str, Exported]) -> None:
    from gguf import GGUFReader

    fields = GGUFReader(exports["weighed"].path).fields
    assert fields["quantize.imatrix.dataset"].contents() == "training rows"
    assert "quantize.imatrix.dataset" not in GGUFReader(exports["plain"].path).fields
    assert any("importance matrix of 35 weights" in notice for notice in exports["weighed"].notices)
    assert exports["weighed"].proof and not any("importance" in notice for notice in exports["plain"].notices)


def test_a_weight_whose_columns_are_in_another_order_has_no_entry(exports: dict[str, Exported]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exports["merged"].path, dtype=torch.float32)
    name = "model.layers.1.mlp.down_proj"
    columns = model.get_submodule(name).weight.detach().square().sum(0).numpy()
    seen = {name: np.ones_like(columns)}
    source = exports["source"].path
    assert list(importance._named_as(source, seen, {name: columns})) == ["blk.1.ffn_down.weight"]
    assert not importance._named_as(source, seen, {name: columns[::-1]})
