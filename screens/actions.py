"""The one registry of actions: a key, its footer entry, its palette entry, its tooltip and its line of help."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from textual.binding import Binding, BindingType
from textual.dom import DOMNode
from textual.screen import Screen


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
    Action("go_on", "enter,ctrl+n", "Go on", "Take what is on this screen and go to the next step."),
    Action("open_start", "enter", "Go on", "Begin a run, or open the one under the cursor."),
    Action("go_back", "escape", "Back", "Go to the step before; nothing is lost.", footer=False),
    Action("explain", "f1,question_mark", "Help", "Explain this step, its keys, and whatever has the focus."),
    Action(
        "fold", "f2", "Explanation", "Show or fold away the paragraph on what this step does, for good.", footer=False
    ),
    Action("show_home", "", "Home", "Go to this machine and its runs."),
    Action("show_history", "h", "History", "Every run so far: compare, repeat with changes, rename, note, delete."),
    Action("show_model", "1", "Step 1: Model", "Go to the choice of the model.", footer=False),
    Action("show_data", "2", "Step 2: Data", "Go to the data and what of it is trained.", footer=False),
    Action("show_lora", "3", "Step 3: Settings", "Go to the settings of adapter and training.", footer=False),
    Action("show_train", "4", "Step 4: Train", "Go to the run's dashboard.", footer=False),
    Action("show_chat", "5", "Step 5: Chat", "Go to the chat with the trained model.", footer=False),
    Action("show_export", "6", "Step 6: Export", "Go to the exports of the run.", footer=False),
    Action("pick_gpu", "g", "GPU", "Choose the GPU to work on; a run that is going stays on its own."),
    Action("search_hub", "ctrl+f", "Search the Hub", "Search the Hugging Face Hub for the words in the field."),
    Action("next_view", "ctrl+t", "View", "Set by goal, field by field, or as YAML."),
    Action(
        "start_stop",
        "s",
        "Stop",
        "Stop after this step, and save checkpoint and adapter; once more: stop now. Asks first.",
    ),
    Action("resume", "r", "Resume", "Go on with this run from its newest checkpoint that is whole."),
    Action(
        "pause",
        "p",
        "Pause",
        "End for a while after this step: a checkpoint is saved and the GPU is given back; r goes on.",
        footer=False,
    ),
    Action(
        "change", "e", "Change", "Change steps and learning rate of this run, also to train a finished one further."
    ),
    Action("replies_before", "comma", "Replies before", "Show the sample replies of an earlier step.", footer=False),
    Action("replies_after", "full_stop", "Replies after", "Show the sample replies of a later step.", footer=False),
    Action("save_checkpoint", "c", "Save", "Save a checkpoint after this step and go on training."),
    Action("next_metric", "m", "Curve", "Show the next curve: loss, learning rate, gradient norm, tokens per second."),
    Action("next_pane", "l", "Log", "Show the next pane below: messages, sample replies, log."),
    Action("filter_runs", "slash", "Find", "Show only runs in which the words stand that you type; Esc shows all."),
    Action("mark_run", "space", "Mark", "Mark this run, to compare it with others, or take its mark away."),
    Action("compare_runs", "c", "Compare", "Show the marked runs' losses on one plot, and how their recipes differ."),
    Action("duplicate_run", "d", "Duplicate", "Take this run's recipe to the steps, to change it and train again."),
    Action("rename_run", "r", "Rename", "Give this run another name.", footer=False),
    Action("note_run", "n", "Note", "Keep a note with this run.", footer=False),
    Action("delete_run", "x,delete", "Delete", "Delete this run with all its files. Asks first.", footer=False),
    Action("next_losses", "m", "Curve", "Show the held-out losses, or the training losses."),
    Action("previous_row", "ctrl+up", "Row before", "Show the row before this one.", footer=False),
    Action("next_row", "ctrl+down", "Next", "Show the row after this one.", footer=False),
    Action("go_to_row", "ctrl+g", "Go to row", "Show the row of a number.", footer=False),
    Action("pick_file", "ctrl+f", "Files", "Pick the dataset from a tree of files."),
    Action(
        "search_datasets",
        "ctrl+s",
        "Hub",
        "Search the Hugging Face Hub for a dataset, and choose its split.",
        footer=False,
    ),
    Action("next_source", "ctrl+r", "Source", "Show the rows of the next dataset of the recipe.", footer=False),
    Action("audit", "ctrl+t", "Audit", "Look at every row: lengths, duplicates, empty replies, secrets and more."),
    Action("next_method", "ctrl+y", "Method", "Learn from this data by the next method that it lends itself to."),
    Action(
        "preview_rewards",
        "f4",
        "Rewards",
        "Have the model answer a few prompts as it is, and show what each reward says of the answers.",
        footer=False,
    ),
    Action("map_columns", "ctrl+o", "Columns", "Say which column is the question and which the answer.", footer=False),
    Action("choose_template", "ctrl+l", "Template", "Choose the chat template of a tokenizer that has none."),
    Action("choose_sides", "ctrl+b", "Who", "Choose who answers: adapter, base model, checkpoints, other runs."),
    Action("regenerate", "ctrl+r", "Again", "Ask the same again, with another seed, in a branch of its own."),
    Action(
        "attach_documents",
        "ctrl+d",
        "Docs",
        "Attach files and folders that things are looked up in.",
        priority=True,  # the prompt would delete a character
    ),
    Action(
        "next_preset",
        "ctrl+t",
        "Preset",
        "Choose tokens by the next preset, from greedy to the notebook's.",
        footer=False,
    ),
    Action(
        "chat_settings", "ctrl+o", "Sampling", "Show or hide the system prompt and the sampling settings.", footer=False
    ),
    Action("pick_message", "ctrl+up", "Pick", "Go to the messages: edit, go back, keep one as training data."),
    Action("edit_message", "e", "Edit", "Change what was said and ask it anew; what was said stays as a branch."),
    Action("back_here", "b", "Back", "Go on from this message; what followed it stays as a branch."),
    Action("previous_branch", "comma,left", "Branch before", "Show what was said in this place before.", footer=False),
    Action("next_branch", "full_stop,right", "Branch", "Show what else was said in this place."),
    Action("good_reply", "g", "Good", "Keep this reply as a row to train on."),
    Action("correct_reply", "c", "Correct", "Write the reply as it should be, and keep that as a row to train on."),
    Action("prefer_reply", "p", "Prefer", "Keep this reply as chosen against the others: a preference row."),
    Action(
        "copy_reply",
        "ctrl+y",
        "Copy",
        "Copy the last reply.",
        footer=False,
        priority=True,  # the prompt would redo
    ),
    Action(
        "save_transcript",
        "ctrl+s",
        "Save",
        "Save the conversation in the run's folder: JSONL to train on, and Markdown.",
        footer=False,
    ),
    Action("clear_chat", "ctrl+l", "New chat", "Forget this conversation and start a new one.", footer=False),
    Action("export_now", "enter,ctrl+e", "Export", "Make the chosen exports."),
    Action(
        "endings",
        "f3",
        "Costs and endings",
        "Say what an hour costs, who is told of a run's end, and which command follows it.",
        footer=False,
    ),
    Action("change_theme", "", "Theme", "Choose the colours: dark, light, colour-blind-safe and others."),
    Action("toggle_ascii", "", "ASCII", "Draw with ASCII characters only, or with lines and glyphs again."),
    Action("toggle_motion", "", "Motion", "Animate nothing, or animate again."),
    Action("toggle_notifications", "", "Notifications", "Ring and notify when a run has ended, or do not."),
    Action(
        "leave", "ctrl+q", "Quit", "Leave the app. A run that is going goes on, and can be come back to.", priority=True
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
