"""How far each kind of export is from its adapter, on the demo: what the bounds of tuitune/export/parity.py rest on.

    python -m benchmarks.export_parity RUN [--kinds KIND …]

RUN is the folder of a finished run, such as the demo's. Every kind is made and asked the same as the adapter; small
GGUFs a second time, rounded by an importance matrix of training rows. Writes benchmarks/results/export_parity.json.
"""

import argparse
import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

from tuitune.export import KINDS, Exported, ExportOptions, export
from tuitune.runs.folder import Run

RESULTS = Path(__file__).parent / "results"
OTHERS = ["gguf:q5_k_s", "gguf:q4_k_s", "gguf:q4_0", "gguf:q3_k_l", "gguf:q3_k_m", "gguf:q3_k_s"]
WEIGHED = ["gguf:q4_k_m", "gguf:q3_k_m"]
"""What an importance matrix is measured on."""
FIGURES = ("scored_tokens", "agreement", "logprob_difference", "base_logprob_difference", "perplexity", "same_replies")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    usual = [kind.name for kind in KINDS if kind.form in ("adapter_gguf", "merged_16bit", "merged_4bit", "gguf")]
    parser.add_argument("--kinds", nargs="*", default=[*usual, *OTHERS])
    arguments = parser.parse_args()
    run = Run(arguments.run.absolute())
    result = {
        "date": str(datetime.date.today()),
        "kinds": measured(run, arguments.kinds),
        "with_imatrix": measured(run, [kind for kind in WEIGHED if kind in arguments.kinds], imatrix=True),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "export_parity.json").write_text(json.dumps(result, indent=2) + "\n")


def measured(run: Run, kinds: list[str], *, imatrix: bool = False) -> dict[str, Any]:
    """The figures of each kind, or why it was refused."""
    figures: dict[str, Any] = {}
    options = ExportOptions(imatrix=imatrix)
    with tempfile.TemporaryDirectory() as out:
        for exported in export(run, kinds, Path(out), lambda *_: None, lambda _question: True, lambda: False, options):
            if not isinstance(exported, Exported):
                figures[exported.kind] = {"refused": str(exported.error)}
                continue
            folder, beside = exported.path / "parity.json", Path(f"{exported.path}.parity.json")
            parity = json.loads((folder if exported.path.is_dir() else beside).read_text())
            figures[exported.kind] = {figure: parity[figure] for figure in FIGURES}
            weighed = "by importance" if imatrix else ""
            print(f"{exported.kind:14} {weighed:13} {parity['logprob_difference']:.4f} {exported.proof}", flush=True)
    return figures


if __name__ == "__main__":
    main()
