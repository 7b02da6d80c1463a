"""How far each kind of export is from its adapter, on the demo: what the bounds of tuitune/export/parity.py rest on.

    python -m benchmarks.export_parity RUN [--kinds KIND …]

RUN is the folder of a finished run, such as the demo's. Every kind is made and asked the same as the adapter. Writes
benchmarks/results/export_parity.json.
"""

import argparse
import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

from tuitune.export import KINDS, Exported, export
from tuitune.runs.folder import Run

RESULTS = Path(__file__).parent / "results"
OTHERS = ["gguf:q5_k_s", "gguf:q4_k_s", "gguf:q4_0", "gguf:q3_k_l", "gguf:q3_k_m", "gguf:q3_k_s"]
FIGURES = ("scored_tokens", "agreement", "logprob_difference", "base_logprob_difference", "perplexity", "same_replies")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    usual = [kind.name for kind in KINDS if kind.form in ("adapter_gguf", "merged_16bit", "merged_4bit", "gguf")]
    parser.add_argument("--kinds", nargs="*", default=[*usual, *OTHERS])
    arguments = parser.parse_args()
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as out:
        for exported in export(
            Run(arguments.run.absolute()),
            arguments.kinds,
            Path(out),
            lambda *_: None,
            lambda question: True,
            lambda: False,
        ):
            if not isinstance(exported, Exported):
                measured[exported.kind] = {"refused": str(exported.error)}
                continue
            folder, beside = exported.path / "parity.json", Path(f"{exported.path}.parity.json")
            parity = json.loads((folder if exported.path.is_dir() else beside).read_text())
            measured[exported.kind] = {figure: parity[figure] for figure in FIGURES}
            print(f"{exported.kind:14} {parity['logprob_difference']:.4f} {exported.proof}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    result = {"date": str(datetime.date.today()), "kinds": measured}
    (RESULTS / "export_parity.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
