"""What the doctor finds on this machine, and what it says where something is missing."""

import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tuitune.machine import doctor
from tuitune.machine.doctor import Finding
from tuitune.machine.hardware import Gpu, gpus

GIB = 2**30


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor.examine()}


def test_a_machine_that_runs_these_tests_can_train(findings: dict[str, Finding]) -> None:
    assert not [finding for finding in findings.values() if finding.status == "fail"]
    assert findings["PyTorch"].text.startswith("2.")
    assert "quantises to nf4" in findings["4-bit weights"].text


def test_every_warning_says_what_to_do(findings: dict[str, Finding]) -> None:
    assert all(finding.remedy for finding in findings.values() if finding.status != "ok")


@pytest.mark.skipif(bool(gpus()), reason="for machines without a GPU")
def test_without_a_gpu_the_cpu_is_named(findings: dict[str, Finding]) -> None:
    assert findings["GPU"].status == "warn"
    assert "CPU" in findings["GPU"].text
    assert findings["PyTorch"].text.endswith("computes on the CPU")


def test_findings_are_plain_data(findings: dict[str, Finding]) -> None:
    assert json.loads(json.dumps([finding.as_dict() for finding in findings.values()]))


def test_the_token_is_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "none" in doctor._hub_token().text
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert doctor._hub_token().text == "present (not shown)"


WHERE = """
import json
from huggingface_hub import get_token
from tuitune.machine import doctor
from tuitune.hub import reach as hub
print(json.dumps([get_token() is not None, hub.has_token(), "present" in doctor._hub_token().text]))
"""


@pytest.mark.parametrize(
    "environment",
    [
        {"HUGGING_FACE_HUB_TOKEN": "hf_secret"},
        {"XDG_CACHE_HOME": "{}"},
        {"XDG_CACHE_HOME": "{}/none", "HF_HOME": "$PLACE/huggingface", "PLACE": "{}"},
        {"HF_TOKEN_PATH": "~/huggingface/token", "HOME": "{}"},
        {"HF_TOKEN": " ", "HF_HOME": "{}"},
    ],
)
def test_a_token_is_looked_for_where_the_hubs_library_finds_it(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "huggingface").mkdir()
    (tmp_path / "huggingface" / "token").write_text("hf_secret")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    given = {name: value.format(tmp_path) for name, value in environment.items()}
    said = subprocess.run(
        [sys.executable, "-c", WHERE],
        env={**clean, "XDG_CACHE_HOME": "/none", **given},
        capture_output=True,
        check=True,
    )
    there = json.loads(said.stdout)
    assert there == [environment.get("HF_TOKEN") is None] * 3


def test_a_runs_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert doctor._runs(file / "runs").status == "fail"
    assert doctor._runs(tmp_path / "not" / "there" / "yet").status == "ok"
    assert not (tmp_path / "not").exists()


def test_a_busy_card_is_warned_about() -> None:
    card = Gpu(0, "Tesla T4", "GPU-a", 15 * GIB, 14 * GIB, "525.60.13", (7, 5))
    card_finding, driver = doctor._gpu([card])
    assert (card_finding.status, driver.status) == ("warn", "ok")
    assert "fp16 only" in card_finding.text
    assert "nvidia-smi" in (card_finding.remedy or "")


@pytest.mark.parametrize(
    ("driver", "status", "says"),
    [
        ("470.82.01", "fail", "too old for any torch"),
        ("525.60.13", "ok", "built for CUDA 12 (cu126"),
        ("550.54.15", "ok", "built for CUDA 12 (cu126"),
        ("580.65.06", "ok", "built for CUDA 12 and 13"),
    ],
)
def test_a_driver_is_told_with_what_it_runs(driver: str, status: str, says: str) -> None:
    finding = doctor._driver(Gpu(0, "NVIDIA L4", "GPU-a", 23 * GIB, 0, driver, (8, 9)))
    assert finding.status == status
    assert says in finding.text


@pytest.mark.parametrize(
    ("driver", "cuda", "tag"),
    [("535.183.01", "13.0", "cu126"), ("580.65.06", None, "cu130"), ("580.1", "12.6", "cu130")],
)
def test_a_torch_that_cannot_use_the_card_gets_the_command_that_mends_it(
    driver: str, cuda: str | None, tag: str
) -> None:
    card = Gpu(0, "NVIDIA L4", "GPU-a", 23 * GIB, 0, driver, (8, 9))
    finding = doctor._torch({"torch": "2.13.0", "cuda": cuda, "cuda_available": False}, [card])
    assert finding.status == "fail"
    words = shlex.split(finding.remedy or "")
    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    assert words[4:6] == ["--extra-index-url", f"https://download.pytorch.org/whl/{tag}"]
    assert words[6].startswith("torch==2.") and words[6].endswith(f"+{tag}")
    assert words[7].startswith("torchvision==0.") and words[7].endswith(f"+{tag}")


def test_a_library_of_another_version_gets_the_command_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"trl": "1.15.0", "peft": version("peft")}
    monkeypatch.setattr(doctor, "requires", lambda name: ["trl<1.12,>=1.11", "peft>=0.21", 'unsloth; extra == "gpu"'])
    monkeypatch.setattr(doctor, "version", installed.__getitem__)
    finding = doctor._versions()
    assert (finding.status, finding.text) == ("fail", "trl 1.15.0 is not <1.12,>=1.11")
    assert shlex.split(finding.remedy or "") == [sys.executable, "-m", "pip", "install", "trl<1.12,>=1.11"]


def test_the_versions_that_the_doctor_names_are_the_tested_ones() -> None:
    constraints = (Path(__file__).parents[2] / "constraints.txt").read_text()
    assert all(f"\n{name}=={version}\n" in constraints for name, version in doctor._TESTED.items())


def test_a_cpu_build_of_torch_beside_a_card_fails() -> None:
    card = Gpu(0, "NVIDIA L4", "GPU-a", 23 * GIB, 0, "580.1", (8, 9))
    finding = doctor._torch({"torch": "2.13.0+cpu", "cuda": None, "cuda_available": False}, [card])
    assert (finding.status, finding.text) == ("fail", "2.13.0+cpu is a CPU build")


@pytest.mark.parametrize("code", ["import os; os.kill(os.getpid(), 11)", "print('no json')", "raise SystemExit(3)"])
def test_a_library_that_kills_its_process_is_a_finding(code: str) -> None:
    finding = doctor._torch(doctor._probe(code), [])
    assert finding.status == "fail"
    assert finding.remedy


def test_the_command_prints_only_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tuitune", "doctor", "--json"]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HOME": str(tmp_path)}
    )
    assert ended.returncode == 0
    assert {finding["name"] for finding in json.loads(ended.stdout)["findings"]} >= {
        "Python",
        "PyTorch",
        "Disk",
        "Terminal",
    }
