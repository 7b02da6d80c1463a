"""The one registry of actions: a key, its footer entry, its palette entry, its tooltip and its line of help."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from textual.binding import Binding, BindingType
from textual.dom import DOMNode
from textual.screen import Screen

from tuitune.language import N_


@dataclass(frozen=True)
class Action:
    """Something the user can do; `name` is the method `action_<name>` of the app or of the screen that has it.

    `key` may name several keys, separated by commas; the first one is shown. An action without a key
    is reached through the palette.
    """

    name: str
    key: str
    label: str
    help: str
    footer: bool = True
    priority: bool = False


_ALL = (
    Action("go_on", "enter,ctrl+n", N_("Go on"), N_("Take what is on this screen and go to the next step.")),
    Action("open_start", "enter", N_("Go on"), N_("Begin a run, or open the one under the cursor.")),
    Action("go_back", "escape", N_("Back"), N_("Go to the step before; nothing is lost."), footer=False),
    Action("explain", "f1,question_mark", N_("Help"), N_("Explain this step, its keys, and whatever has the focus.")),
    Action(
        "fold",
        "f2",
        N_("Explanation"),
        N_("Show or fold away the paragraph on what this step does, for good."),
        footer=False,
    ),
    Action("show_home", "", N_("Home"), N_("Go to this machine and its runs.")),
    Action(
        "show_history", "h", N_("History"), N_("Every run so far: compare, repeat with changes, rename, note, delete.")
    ),
    Action("show_model", "1", N_("Step 1: Model"), N_("Go to the choice of the model."), footer=False),
    Action("show_data", "2", N_("Step 2: Data"), N_("Go to the data and what of it is trained."), footer=False),
    Action("show_lora", "3", N_("Step 3: Settings"), N_("Go to the settings of adapter and training."), footer=False),
    Action("show_train", "4", N_("Step 4: Train"), N_("Go to the run's dashboard."), footer=False),
    Action("show_chat", "5", N_("Step 5: Chat"), N_("Go to the chat with the trained model."), footer=False),
    Action("show_export", "6", N_("Step 6: Export"), N_("Go to the exports of the run."), footer=False),
    Action(
        "change_language",
        "l",
        N_("Language"),
        N_("Show everything in the next language: English, Japanese."),
        footer=False,
    ),
    Action("pick_gpu", "g", N_("GPU"), N_("Choose the GPU to work on; a run that is going stays on its own.")),
    Action("search_hub", "ctrl+f", N_("Search the Hub"), N_("Search the Hugging Face Hub for the words in the field.")),
    Action("next_view", "ctrl+t", N_("View"), N_("Set by goal, field by field, or as YAML.")),
    Action(
        "start_stop",
        "s",
        N_("Stop"),
        N_("Stop after this step, and save checkpoint and adapter; once more: stop now. Asks first."),
    ),
    Action("resume", "r", N_("Resume"), N_("Go on with this run from its newest checkpoint that is whole.")),
    Action(
        "pause",
        "p",
        N_("Pause"),
        N_("End for a while after this step: a checkpoint is saved and the GPU is given back; r goes on."),
    ),
    Action(
        "change",
        "e",
        N_("Change"),
        N_("Change steps and learning rate of this run, also to train a finished one further."),
    ),
    Action(
        "replies_before", "comma", N_("Replies before"), N_("Show the sample replies of an earlier step."), footer=False
    ),
    Action(
        "replies_after", "full_stop", N_("Replies after"), N_("Show the sample replies of a later step."), footer=False
    ),
    Action(
        "save_checkpoint", "c", N_("Save"), N_("Save a checkpoint after this step and go on training."), footer=False
    ),
    Action(
        "next_metric",
        "m",
        N_("Curve"),
        N_("Show the next curve: loss, learning rate, gradient norm, tokens per second."),
    ),
    Action("next_pane", "l", N_("Log"), N_("Show the next pane below: messages, sample replies, log."), footer=False),
    Action(
        "filter_runs", "slash", N_("Find"), N_("Show only runs in which the words stand that you type; Esc shows all.")
    ),
    Action("mark_run", "space", N_("Mark"), N_("Mark this run, to compare it with others, or take its mark away.")),
    Action(
        "compare_runs",
        "c",
        N_("Compare"),
        N_("Show the marked runs' losses on one plot, and how their recipes differ."),
    ),
    Action(
        "duplicate_run", "d", N_("Duplicate"), N_("Take this run's recipe to the steps, to change it and train again.")
    ),
    Action("rename_run", "r", N_("Rename"), N_("Give this run another name."), footer=False),
    Action("note_run", "n", N_("Note"), N_("Keep a note with this run."), footer=False),
    Action("delete_run", "x,delete", N_("Delete"), N_("Delete this run with all its files. Asks first."), footer=False),
    Action("next_losses", "m", N_("Curve"), N_("Show the held-out losses, or the training losses.")),
    Action("previous_row", "ctrl+up", N_("Row before"), N_("Show the row before this one."), footer=False),
    Action("next_row", "ctrl+down", N_("Next"), N_("Show the row after this one."), footer=False),
    Action("go_to_row", "ctrl+g", N_("Go to row"), N_("Show the row of a number."), footer=False),
    Action("pick_file", "ctrl+f", N_("Files"), N_("Pick the dataset from a tree of files.")),
    Action(
        "search_datasets",
        "ctrl+s",
        N_("Hub"),
        N_("Search the Hugging Face Hub for a dataset, and choose its split."),
        footer=False,
    ),
    Action("next_source", "ctrl+r", N_("Source"), N_("Show the rows of the next dataset of the recipe."), footer=False),
    Action(
        "audit", "ctrl+t", N_("Audit"), N_("Look at every row: lengths, duplicates, empty replies, secrets and more.")
    ),
    Action(
        "next_method", "ctrl+y", N_("Method"), N_("Learn from this data by the next method that it lends itself to.")
    ),
    Action(
        "preview_rewards",
        "f4",
        N_("Rewards"),
        N_("Have the model answer a few prompts as it is, and show what each reward says of the answers."),
        footer=False,
    ),
    Action(
        "map_columns",
        "ctrl+o",
        N_("Columns"),
        N_("Say which column is the question and which the answer."),
        footer=False,
    ),
    Action("choose_template", "ctrl+l", N_("Template"), N_("Choose the chat template of a tokenizer that has none.")),
    Action(
        "choose_sides", "ctrl+b", N_("Who"), N_("Choose who answers: adapter, base model, checkpoints, other runs.")
    ),
    Action("regenerate", "ctrl+r", N_("Again"), N_("Ask the same again, with another seed, in a branch of its own.")),
    Action(
        "attach_documents",
        "ctrl+d",
        N_("Docs"),
        N_("Attach files and folders that things are looked up in."),
        priority=True,  # the prompt would delete a character
    ),
    Action(
        "next_preset",
        "ctrl+t",
        N_("Preset"),
        N_("Choose tokens by the next preset, from greedy to the notebook's."),
        footer=False,
    ),
    Action(
        "chat_settings",
        "ctrl+o",
        N_("Sampling"),
        N_("Show or hide the system prompt and the sampling settings."),
        footer=False,
    ),
    Action("pick_message", "ctrl+up", N_("Pick"), N_("Go to the messages: edit, go back, keep one as training data.")),
    Action(
        "edit_message", "e", N_("Edit"), N_("Change what was said and ask it anew; what was said stays as a branch.")
    ),
    Action("back_here", "b", N_("Back"), N_("Go on from this message; what followed it stays as a branch.")),
    Action(
        "previous_branch",
        "comma,left",
        N_("Branch before"),
        N_("Show what was said in this place before."),
        footer=False,
    ),
    Action("next_branch", "full_stop,right", N_("Other"), N_("Show what else was said in this place.")),
    Action("good_reply", "g", N_("Good"), N_("Keep this reply as a row to train on.")),
    Action("correct_reply", "c", N_("Fix"), N_("Write the reply as it should be, and keep that as a row to train on.")),
    Action("prefer_reply", "p", N_("Prefer"), N_("Keep this reply as chosen against the others: a preference row.")),
    Action(
        "copy_reply",
        "ctrl+y",
        N_("Copy"),
        N_("Copy the last reply."),
        footer=False,
        priority=True,  # the prompt would redo
    ),
    Action(
        "save_transcript",
        "ctrl+s",
        N_("Save"),
        N_("Save the conversation in the run's folder: JSONL to train on, and Markdown."),
        footer=False,
    ),
    Action("clear_chat", "ctrl+l", N_("New chat"), N_("Forget this conversation and start a new one."), footer=False),
    Action("export_now", "enter,ctrl+e", N_("Export"), N_("Make the chosen exports.")),
    Action(
        "endings",
        "f3",
        N_("Costs and endings"),
        N_("Say what an hour costs, who is told of a run's end, and which command follows it."),
        footer=False,
    ),
    Action("change_theme", "", N_("Theme"), N_("Choose the colours: dark, light, colour-blind-safe and others.")),
    Action("toggle_ascii", "", N_("ASCII"), N_("Draw with ASCII characters only, or with lines and glyphs again.")),
    Action("toggle_motion", "", N_("Motion"), N_("Animate nothing, or animate again.")),
    Action("toggle_notifications", "", N_("Notifications"), N_("Ring and notify when a run has ended, or do not.")),
    Action(
        "leave",
        "ctrl+q",
        N_("Quit"),
        N_("Leave the app. A run that is going goes on, and can be come back to."),
        priority=True,
    ),
)

ACTIONS = {action.name: action for action in _ALL}


def bind(*names: str) -> list[BindingType]:
    """The key bindings of the named actions, for a `BINDINGS`."""
    bindings: list[BindingType] = []
    for name in names:
        action = ACTIONS[name]
        bindings.append(
            Binding(
                action.key,
                action.name,
                action.label,
                show=action.footer,
                priority=action.priority,
                tooltip=action.help,
                id=action.name,
            )
        )
    return bindings


def available(screen: Screen[Any]) -> Iterator[tuple[Action, DOMNode]]:
    """The registered actions that can be had on `screen` at this moment, and the node that does each.

    What the app itself does can be had everywhere: through the palette where its key is not bound.
    """
    bound = {active.binding.id: active.node for active in screen.active_bindings.values()}
    for name, action in ACTIONS.items():
        if name in bound:
            yield action, bound[name]
            continue
        for node in (screen, screen.app) if not action.key else (screen.app,):
            if hasattr(node, f"action_{name}"):
                yield replace(action, key=""), node
                break


def key_name(action: Action, *, last: bool = False) -> str:
    """The action's first key as a person reads it; its last one where the first belongs to what has the focus."""
    return name_of(action.key.split(",")[-1 if last else 0])


def name_of(key: str) -> str:
    """A key as a person reads it: `^t` for Ctrl+T."""
    names = {"escape": "Esc", "enter": "Enter", "space": "Space", "f1": "F1", "f2": "F2", "f3": "F3", "f4": "F4"}
    names |= {"left": "←", "right": "→", "ctrl+up": "^↑", "ctrl+down": "^↓"}
    names |= {"question_mark": "?", "comma": ",", "full_stop": ".", "slash": "/"}
    return names.get(key, key.replace("ctrl+", "^"))
