"""What the `--help` of each command ends with: lines to type, and what they do."""

EXAMPLES: dict[str, list[tuple[str, str]]] = {
    "demo": [("tuitune demo", "the app, filled in with a model and data that come with tuitune")],
    "run": [
        ("tuitune run recipe.yaml", "train, and follow it here"),
        ("tuitune run recipe.yaml --set train.max_steps=200 --name second", "with a field changed"),
        ("tuitune run recipe.yaml --detach --then 'sudo poweroff'", "leave it to itself"),
        ("tuitune run recipe.yaml --nnodes 2 --rdzv 10.0.0.1:29500", "with a second host, which joins"),
        ("tuitune run --from first --set data.path=more.jsonl", "go on from another run's adapter"),
    ],
    "resume": [
        ("tuitune resume first", "from its newest whole checkpoint"),
        ("tuitune resume first --set train.max_steps=500", "train a finished run further"),
    ],
    "join": [("tuitune join 10.0.0.1:29500", "after `tuitune run … --nnodes 2 --rdzv 10.0.0.1:29500` there")],
    "stop": [
        ("tuitune stop first", "after the step, with checkpoint and adapter"),
        ("tuitune stop first --now", "at once, without them"),
    ],
    "pause": [("tuitune pause first", "then `tuitune resume first` goes on")],
    "change": [
        ("tuitune change first --set max_steps=400", "a longer run"),
        ("tuitune change first --set learning_rate=1e-4", "a slower one"),
    ],
    "checkpoint": [("tuitune checkpoint first", "save after this step, and go on")],
    "then": [
        ("tuitune then first 'rsync -a exports/ me@host:'", "when the run has ended"),
        ("tuitune then first --cancel", "run nothing"),
    ],
    "inspect": [
        ("tuitune inspect recipe.yaml", "columns, format, counts"),
        ("tuitune inspect recipe.yaml --rows 1:3", "the masks of the first three rows"),
        ("tuitune inspect recipe.yaml --rows 7 --json", "one row, for a program"),
    ],
    "audit": [("tuitune audit recipe.yaml", "every problem of the whole set, with its rows")],
    "rewards": [
        ("tuitune rewards recipe.yaml", "answers to four prompts, with their values"),
        ("tuitune rewards recipe.yaml --confirm", "with a rewards' file of your own, once you have seen it"),
    ],
    "estimate": [
        ("tuitune estimate recipe.yaml", "steps, memory and time"),
        ("tuitune estimate recipe.yaml --set lora.r=64", "with another rank"),
        ("tuitune estimate recipe.yaml --gpus 8 --hosts 2", "what 2 hosts of 8 cards would bring"),
    ],
    "chat": [
        ("tuitune chat first", "a conversation"),
        ("tuitune chat first --prompt 'Who are you?'", "one reply"),
        ("tuitune chat first --prompt 'Who are you?' --base", "without the adapter, to compare"),
    ],
    "export": [
        ("tuitune export first --to adapter --to gguf:q8_0", "two forms at once"),
        ("tuitune export first --to merged_16bit --out /data/model", "into a folder of yours"),
    ],
    "runs": [
        ("tuitune runs", "every run, the newest first"),
        ("tuitune runs llama done", "those in which both words stand"),
        ("tuitune runs --csv > runs.csv", "for a spreadsheet"),
    ],
    "compare": [("tuitune compare first second", "losses, and the recipe fields that differ")],
    "rename": [("tuitune rename first baseline", "its folder is renamed too")],
    "note": [
        ("tuitune note first 'cleaner data, same rank'", "keep a note"),
        ("tuitune note first", "print it"),
    ],
    "delete": [("tuitune delete first", "asks first; --yes does not")],
    "attach": [
        ("tuitune attach", "the run that is live, else the newest"),
        ("tuitune attach first", "this one"),
    ],
    "doctor": [("tuitune doctor", "each check, and the command that mends what is wrong")],
    "completion": [
        ("tuitune completion bash > ~/.local/share/bash-completion/completions/tuitune", ""),
        ("tuitune completion zsh > ~/.zfunc/_tuitune", "a folder in $fpath"),
        ("tuitune completion fish > ~/.config/fish/completions/tuitune.fish", ""),
    ],
}


def epilog(command: str) -> str:
    """The examples as `--help` prints them."""
    width = max(len(line) for line, _ in EXAMPLES[command])
    if width > 60:
        lines = [f"  {line}" + (f"\n      {meaning}" if meaning else "") for line, meaning in EXAMPLES[command]]
    else:
        lines = [f"  {line:<{width}}  {meaning}".rstrip() for line, meaning in EXAMPLES[command]]
    return "\n".join(["examples:", *lines])
