"""What the `--help` of each command ends with: lines to type, and what they do."""

from tuitune.language import N_, _

EXAMPLES: dict[str, list[tuple[str, str]]] = {
    "demo": [("tuitune demo", N_("the app, filled in with a model and data that come with tuitune"))],
    "run": [
        ("tuitune run recipe.yaml", N_("train, and follow it here")),
        ("tuitune run recipe.yaml --set train.max_steps=200 --name second", N_("with a field changed")),
        ("tuitune run recipe.yaml --detach --then 'sudo poweroff'", N_("leave it to itself")),
        ("tuitune run recipe.yaml --nnodes 2 --rdzv 10.0.0.1:29500", N_("with a second host, which joins")),
        ("tuitune run --from first --set data.path=more.jsonl", N_("go on from another run's adapter")),
    ],
    "resume": [
        ("tuitune resume first", N_("from its newest whole checkpoint")),
        ("tuitune resume first --set train.max_steps=500", N_("train a finished run further")),
    ],
    "join": [
        ("tuitune join 10.0.0.1:29500", N_("after `tuitune run … --nnodes 2 --rdzv 10.0.0.1:29500` there")),
        ("tuitune join 10.0.0.1:29500 --model ~/llama --data chats.jsonl", N_("where they lie at other paths here")),
    ],
    "stop": [
        ("tuitune stop first", N_("after the step, with checkpoint and adapter")),
        ("tuitune stop first --now", N_("at once, without them")),
    ],
    "pause": [("tuitune pause first", N_("then `tuitune resume first` goes on"))],
    "change": [
        ("tuitune change first --set max_steps=400", N_("a longer run")),
        ("tuitune change first --set learning_rate=1e-4", N_("a slower one")),
    ],
    "checkpoint": [("tuitune checkpoint first", N_("save after this step, and go on"))],
    "then": [
        ("tuitune then first 'rsync -a exports/ me@host:'", N_("when the run has ended")),
        ("tuitune then first --cancel", N_("run nothing")),
    ],
    "inspect": [
        ("tuitune inspect recipe.yaml", N_("columns, format, counts")),
        ("tuitune inspect recipe.yaml --rows 1:3", N_("the masks of the first three rows")),
        ("tuitune inspect recipe.yaml --rows 7 --json", N_("one row, for a program")),
    ],
    "audit": [("tuitune audit recipe.yaml", N_("every problem of the whole set, with its rows"))],
    "rewards": [
        ("tuitune rewards recipe.yaml", N_("answers to four prompts, with their values")),
        ("tuitune rewards recipe.yaml --confirm", N_("with a rewards' file of your own, once you have seen it")),
    ],
    "estimate": [
        ("tuitune estimate recipe.yaml", N_("steps, memory and time")),
        ("tuitune estimate recipe.yaml --set lora.r=64", N_("with another rank")),
        ("tuitune estimate recipe.yaml --gpus 8 --hosts 2", N_("what 2 hosts of 8 cards would bring")),
    ],
    "chat": [
        ("tuitune chat first", N_("a conversation")),
        ("tuitune chat first --prompt 'Who are you?'", N_("one reply")),
        ("tuitune chat first --prompt 'Who are you?' --base", N_("without the adapter, to compare")),
    ],
    "export": [
        ("tuitune export first --to adapter --to gguf:q8_0", N_("two forms at once")),
        ("tuitune export first --to merged_16bit --out /data/model", N_("into a folder of yours")),
    ],
    "runs": [
        ("tuitune runs", N_("every run, the newest first")),
        ("tuitune runs llama done", N_("those in which both words stand")),
        ("tuitune runs --csv > runs.csv", N_("for a spreadsheet")),
    ],
    "compare": [("tuitune compare first second", N_("losses, and the recipe fields that differ"))],
    "rename": [("tuitune rename first baseline", N_("its folder is renamed too"))],
    "note": [
        ("tuitune note first 'cleaner data, same rank'", N_("keep a note")),
        ("tuitune note first", N_("print it")),
    ],
    "delete": [("tuitune delete first", N_("asks first; --yes does not"))],
    "attach": [
        ("tuitune attach", N_("the run that is live, else the newest")),
        ("tuitune attach first", N_("this one")),
    ],
    "doctor": [("tuitune doctor", N_("each check, and the command that mends what is wrong"))],
    "completion": [
        ("tuitune completion bash > ~/.local/share/bash-completion/completions/tuitune", ""),
        ("tuitune completion zsh > ~/.zfunc/_tuitune", N_("a folder in $fpath")),
        ("tuitune completion fish > ~/.config/fish/completions/tuitune.fish", ""),
    ],
}


def epilog(command: str) -> str:
    """The examples as `--help` prints them."""
    examples = [(line, _(meaning)) for line, meaning in EXAMPLES[command]]
    width = max(len(line) for line, _meaning in examples)
    if width > 60:
        lines = [f"  {line}" + (f"\n      {meaning}" if meaning else "") for line, meaning in examples]
    else:
        lines = [f"  {line:<{width}}  {meaning}".rstrip() for line, meaning in examples]
    return "\n".join([_("examples:"), *lines])
