"""GRPO in an exported script: trl's trainer, the run's own prompts, and the code of the recipe's rewards."""

import ast
import inspect
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tuitune.errors import UnusableInput
from tuitune.method_sections import GRPO
from tuitune.reward_sections import JSONSchema, PythonFile, Reward, UnitTests, titles
from tuitune.rewards import answer, form, worker
from tuitune.rewards.confirmed import require_confirmed
from tuitune.train.methods.script_part import ScriptPart, constants_source

_CODE_OF = {
    "exact_match": (answer, "exact_match({options!r}, row['reply'], row['columns'][{options[column]!r}])"),
    "numeric_match": (answer, "numeric_match({options!r}, row['reply'], row['columns'][{options[column]!r}])"),
    "format": (form, "format_match({options!r}, row['reply'])"),
    "length": (form, "length_within({options!r}, row['reply'], row['tokens'])"),
    "json_schema": (form, "json_of_schema({options!r}, row['reply'])"),
}
"""Of each reward the module that computes it, and the value of one `row` of answers as an expression."""

_ANSWERS = '''
rows = rows.rename_column("row", "prompt")  # as JSON: the messages, and every column of the data
PROMPT_IDS = dict(zip(rows["prompt"], rows["prompt_ids"]))
CONFIGURED = model.generation_config.eos_token_id
ENDS = {END, tokenizer.eos_token_id, *(CONFIGURED if isinstance(CONFIGURED, list) else [CONFIGURED])} - {None}


def answers(prompts, trainer):
    """One answer to each prompt, by the weights of the moment and from the run's own token ids."""
    prompt_ids = [list(PROMPT_IDS[prompt]) for prompt in prompts]
    longest = max(map(len, prompt_ids))
    filled = [[tokenizer.pad_token_id] * (longest - len(ids)) + ids for ids in prompt_ids]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids]
    if FastLanguageModel is not None:
        FastLanguageModel.for_inference(model)
    model.eval()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16 if bf16 else torch.float16, enabled=on_gpu):
        output = model.generate(
            input_ids=torch.tensor(filled, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            eos_token_id=sorted(ENDS),
            pad_token_id=tokenizer.pad_token_id,
            do_sample=True,
            **SAMPLING,
        )
    if FastLanguageModel is not None:
        FastLanguageModel.for_training(model, use_gradient_checkpointing="unsloth" if GRADIENT_CHECKPOINTING else False)
    model.train()
    completions = []
    for ids in output[:, longest:].tolist():
        end = next((place for place, token in enumerate(ids) if token in ENDS), len(ids))
        completions.append(ids[: end + 1])
    return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None}


def reward(title, values):
    """What trl calls with the answers of a step; `values` gives a number for each row of them."""

    def function(prompts, completions, completion_ids, **_):
        judged = []
        for prompt, reply, ids in zip(prompts, completions, completion_ids):
            columns = json.loads(prompt)
            messages = columns.pop("prompt")
            judged.append({"prompt": messages, "reply": reply, "tokens": len(ids), "columns": columns})
        return [checked(value) for value in values(judged)]

    function.__name__ = title
    return function

'''


def grpo_part(section: GRPO, end: int | None, eos_token_id: int | None) -> ScriptPart:
    """`end` is the token that ends a reply. Raises UnusableInput where a script could not repeat the run."""
    if section.mask_truncated_completions and end != eos_token_id:
        raise UnusableInput(
            "A script cannot repeat a run with method.mask_truncated_completions where replies do not end with the "
            "tokenizer's own end token; `tuitune run` with its recipe can."
        )
    code, functions, files = _rewards(section.rewards)
    sampling = {
        "max_new_tokens": section.max_completion_length,
        "temperature": section.temperature,
        "top_p": section.top_p,
        "top_k": section.top_k,
        "min_p": section.min_p or None,
    }
    high = section.epsilon if section.epsilon_high is None else section.epsilon_high
    fields = ("num_generations", "max_completion_length", "loss_type", "beta", "scale_rewards", "epsilon")
    more = ("importance_sampling_level", "num_iterations", "mask_truncated_completions")
    return ScriptPart(
        imports="import inspect\nimport json\nimport math\nimport re\nimport runpy\n"
        "from collections.abc import Callable\nfrom typing import Any\n\nfrom trl import GRPOConfig, GRPOTrainer",
        definitions=f"\n{constants_source({'END': end, 'SAMPLING': sampling})}\n{_ANSWERS}\n{code}\n\n{functions}\n",
        config="GRPOConfig",
        trainer="""GRPOTrainer(
    model=model,
    processing_class=tokenizer,
    reward_funcs=rewards,
    rollout_func=answers,
    train_dataset=rows,
    args=arguments,
)""",
        arguments={
            **{name: getattr(section, name) for name in (*fields, *more)},
            "temperature": section.temperature,
            "epsilon_high": 1 + high if section.loss_type == "cispo" else high,  # trl bounds the ratio itself there
            "reward_weights": [judge.weight for judge in section.rewards],
        },
        rows="the run's own prompts, as token ids, each with its row of the data. Answers are drawn\n"
        "by other random numbers than tuitune's, so the adapter becomes alike, and not the same",
        saving=', selected_adapters=["default"]' if section.beta else "",  # trl keeps the reference as another one
        files=files,
        libraries=("jsonschema",) if any(isinstance(judge, JSONSchema) for judge in section.rewards) else (),
    )


_TEXTS = """
Sentence = str


def _(message, /, **values):
    return message.format(**values)
"""
"""What the code of rewards words its complaints with: in a script, in English."""


def _rewards(rewards: Sequence[Reward]) -> tuple[str, str, dict[str, str]]:
    """Source that the rewards need, source of the list of them, and their files by name. Raises UnusableInput."""
    modules: dict[str, ModuleType] = {}
    lines: list[str] = []
    own_functions: list[str] = []
    files: dict[str, str] = {}
    for title, judge in zip(titles(list(rewards)), rewards, strict=True):
        if isinstance(judge, UnitTests):
            raise UnusableInput(
                "A script cannot repeat a run with the reward unit_tests, whose code runs in tuitune's locked-down "
                "process; `tuitune run` with its recipe can."
            )
        if isinstance(judge, PythonFile):
            name = f"{Path(judge.path).stem}_{len(files) + 1}.py"
            files[name] = require_confirmed(judge)
            own_functions.append(f"function_{len(files)} = runpy.run_path(str(HERE / {name!r}))[{judge.title!r}]")
            values = f"lambda judged: call(function_{len(files)}, judged)"
        else:
            module, expression = _CODE_OF[judge.name]
            modules[module.__name__] = module
            options: dict[str, Any] = judge.model_dump(mode="json", exclude={"name", "weight"})
            values = f"lambda judged: [{expression.format(options=options)} for row in judged]"
        lines.append(f"    reward({title!r}, {values}),")
    pieces = [_TEXTS, *(_body(module) for module in modules.values())]
    pieces += [inspect.getsource(worker.Misbehaved), inspect.getsource(worker.checked)]
    if files:
        pieces += ["Row = dict[str, Any]", inspect.getsource(worker.call)]
    code = "\n\n".join(piece.strip("\n") + "\n" for piece in pieces)
    return code, "\n".join([*own_functions, "rewards = [", *lines, "]"]), files


def _body(module: ModuleType) -> str:
    """The source of a module without what it begins with: its docstring and imports."""
    source = inspect.getsource(module)
    start = next(
        node.lineno for node in ast.parse(source).body[1:] if not isinstance(node, ast.Import | ast.ImportFrom)
    )
    return "".join(source.splitlines(keepends=True)[start - 1 :])
