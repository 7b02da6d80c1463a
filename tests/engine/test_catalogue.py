"""The catalogue of models: what it says, what it finds on this machine, and how it asks the Hub."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.conftest import DEMO
from tuitune.errors import TuituneError
from tuitune.machine.hardware import Gpu
from tuitune.plan.catalogue import (
    cached_models,
    cards_for,
    known_models,
    look_up,
    memory_for,
    model_folders,
    search_hub,
)
from tuitune.plan.memory import memory_of, verdict
from tuitune.recipe import Recipe

GIB = 2**30


def recipe(in_4bit: bool) -> Recipe:
    return Recipe.from_data({"model": {"name": "x", "load_in_4bit": in_4bit}, "data": {"path": "y"}})


def card(gib: int) -> Gpu:
    return Gpu(0, "a card", "GPU-0", gib * GIB, 0, "580.1", (8, 9))


@pytest.mark.parametrize("known", known_models(), ids=lambda known: known.name)
def test_each_entry_is_of_a_piece(known) -> None:  # type: ignore[no-untyped-def]
    shape = known.shape
    assert known.name.count("/") == 1
    assert 0 < shape.linear_parameters < shape.total_parameters
    # Layers of queries, keys, values, outputs and a gated MLP; experts and newer kinds of attention have more.
    layers = shape.layers * (
        2 * shape.hidden**2 + 2 * shape.hidden * shape.key_value + 3 * shape.hidden * shape.intermediate
    )
    assert layers < 1.08 * shape.linear_parameters


def test_what_fits_is_what_people_know_to_fit() -> None:
    models = {known.name: known for known in known_models()}
    eight = models["unsloth/Llama-3.1-8B-Instruct"]
    seventy = models["unsloth/Llama-3.3-70B-Instruct"]

    def fits(known, in_4bit: bool, gib: int) -> str:  # type: ignore[no-untyped-def]
        return verdict(memory_for(known, recipe(in_4bit), card(gib)).total_bytes, gib * GIB)

    assert fits(eight, True, 16) == "fits"
    assert fits(eight, False, 16) == "does not fit"
    assert fits(eight, False, 24) == "fits"
    assert fits(seventy, True, 24) == "does not fit"
    assert fits(seventy, True, 80) == "fits"


def test_models_on_this_machine_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "hub" / "models--owner--some-model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "hub" / "models--owner--only-config" / "snapshots" / "abc").mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert cached_models() == ["owner/some-model"]
    assert DEMO / "demo_model" in model_folders(DEMO)


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answers = {
            "/api/models/owner/gated": {"id": "owner/gated", "gated": "manual", "downloads": 5},
            "/api/models/owner/evil": {"id": "owner/\x1b]0;evil\x07", "gated": False},
        }
        answer = (
            [{"id": "owner/first", "downloads": 9}] if self.path.startswith("/api/models?") else answers.get(self.path)
        )
        words = re.search(r"search=status\+(\d+)", self.path)
        self.send_response(int(words[1]) if words else 200 if answer else 404)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The Hub's API on the wire, with three models."""
    server = HTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_the_hub_is_asked() -> None:
    assert [model.name for model in search_hub("first")] == ["owner/first"]
    gated = look_up("owner/gated")
    assert gated is not None and gated.gated
    assert look_up("owner/nothing") is None
    evil = look_up("owner/evil")
    assert evil is not None and "\x1b" not in evil.name


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_hub_that_refuses_to_search_says_so(hub: None, status: int) -> None:
    with pytest.raises(TuituneError, match=rf"refuses to search \(error {status}\): .*, or type a model's id\."):
        search_hub(f"status {status}")


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 200_000], ids=["no HTTP", "nested"]
)
def test_an_answer_that_is_none_of_the_hubs_is_a_sentence(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _address = server.accept()
            with client:
                client.recv(65_536)
                client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(TuituneError, match="cannot be reached"):
            search_hub("llama")


def test_an_address_that_cannot_be_one_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example.org:https")
    with pytest.raises(TuituneError, match="cannot be reached"):
        search_hub("llama")


def test_without_a_network_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TuituneError, match="cannot be reached"):
        search_hub("llama")


def test_cards_that_share_the_weights_hold_what_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """70 billion parameters in 4-bit, about 36 GB, on cards of 40 GiB; in 16-bit not even four of them do."""
    small, known = card(40), next(model for model in known_models() if "70B" in model.name)
    four = [Gpu(place, "a card", f"GPU-{place}", 40 * GIB, 0, "580.1", (8, 9)) for place in range(4)]
    monkeypatch.setattr("tuitune.plan.catalogue.visible_gpus", lambda: four)
    cards = cards_for(known, recipe(in_4bit=True), small)
    assert 2 <= cards <= 4
    used = recipe(in_4bit=True)
    shape = replace(known.shape, adapter_parameters=used.lora.r * known.shape.adapter_parameters)
    tokens = used.train.per_device_train_batch_size * used.data.max_length
    peak = memory_of(used, shape, tokens, backend="transformers", card_bytes=40 * GIB, shared_by=cards).total_bytes
    assert peak < 40 * GIB < memory_for(known, used, small).total_bytes
    assert cards_for(known, recipe(in_4bit=False), small) == 1
    assert cards_for(known, recipe(in_4bit=True), card(80)) == 1
    assert cards_for(known, recipe(in_4bit=True), None) == 1


def test_no_cards_are_named_where_the_run_would_make_its_passes_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 billion parameters in 4-bit a card of 12 GiB holds a single row, but not four, which two cards would."""
    small, known = card(12), next(model for model in known_models() if "Llama-3.1-8B" in model.name)
    monkeypatch.setattr("tuitune.plan.catalogue.visible_gpus", lambda: [small] * 4)

    def batch_of(rows: int) -> Recipe:
        changes = [f"train.per_device_train_batch_size={rows}", "model.backend=transformers"]
        return Recipe.from_data(recipe(in_4bit=True).model_dump(mode="json"), changes=changes)

    one, four = (memory_for(known, batch_of(rows), small).total_bytes for rows in (1, 4))
    assert one < 12 * GIB < four
    assert cards_for(known, batch_of(4), small) == 1
