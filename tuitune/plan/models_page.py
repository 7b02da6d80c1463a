"""`python -m tuitune.plan.models_page` writes docs/models.md: what is proven, and what the catalogue offers."""

from tuitune.plan.catalogue import known_models
from tuitune.plan.proven import architectures, proof


def table() -> str:
    """The Markdown of docs/models.md."""
    lines = [
        "# Models",
        "",
        "Written by `python -m tuitune.plan.models_page` from `proven.yaml` and `models.yaml` beside it. A proven",
        "architecture went from loading to the merged model as a tiny model with random weights: rows kept apart, loss",
        "falling, chat, the adapter saved and loaded equal, the merge equal to base and adapter. What is not proven",
        "may train as well, but nobody has looked.",
        "",
        "## Architectures",
        "",
        "| architecture | backend | rows | attention | first step, cold and warm | adapted by `auto` | GGUF | limits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for architecture in architectures():
        for backend in ("unsloth", "transformers"):
            proven = proof(architecture, backend)
            if proven is None:
                lines.append(f"| {architecture} | {backend} | not proven | | | | | |")
                continue
            first_step = "{:g} s, {:g} s".format(*proven.first_step_s) if proven.first_step_s else ""
            gguf = {True: "yes", False: "no", None: "not tried"}[proven.gguf]
            cells = (architecture, backend, proven.rows, proven.attention, first_step)
            lines.append(f"| {' | '.join((*cells, ', '.join(proven.targets), gguf, ' '.join(proven.limits)))} |")
    lines += [
        "",
        "## The catalogue",
        "",
        "| model | architecture | with Unsloth | with transformers |",
        "|---|---|---|---|",
    ]
    for known in known_models():
        words = (_word(known.architecture, backend) for backend in ("unsloth", "transformers"))
        unchecked = " (sizes from one source)" if known.unchecked else ""
        lines.append(f"| {known.name}{unchecked} | {known.architecture} | {' | '.join(words)} |")
    return "\n".join(lines) + "\n"


def _word(architecture: str, backend: str) -> str:
    proven = proof(architecture, backend)
    return f"proven, rows {proven.rows}" if proven else "not proven"


if __name__ == "__main__":
    print(table(), end="")
