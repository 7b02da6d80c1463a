"""What an empty chat says of itself."""

from textual.content import Content

from screens.actions import ACTIONS, key_name
from screens.dashboard import MUTED
from tuitune.language import N_, _
from tuitune.runs.folder import Run
from tuitune.text import one_line


def hint(run: Run | None, prompts: list[str]) -> Content:
    """What to do in an empty chat; `prompts` are those that the run was sampled with."""
    name = one_line(run.name, max_length=60) if run else _("the run")
    before, after = _("Ask {run} something it was trained for.", run="\n").split("\n")
    lines = [Content.assemble(before, (name, "bold"), after)]
    if prompts:
        lines.append(Content.styled(_("The run's own sample prompts, which ↑ brings into the line:"), MUTED))
        lines += [Content(f"  {one_line(prompt, max_length=64)}") for prompt in prompts]
    keys = (
        ("choose_sides", N_("asks the base model, checkpoints or other runs too")),
        ("attach_documents", N_("looks things up in your documents")),
        ("next_preset", N_("changes how freely it answers")),
    )
    for action, what in keys:
        lines.append(Content.assemble((key_name(ACTIONS[action]), "bold"), (f" {_(what)}", MUTED)))
    return Content("\n").join(lines)
