"""What a recipe's rewards say of the model's answers, on plain output, and the confirmation of a file of one's own."""

import asyncio
import sys
from typing import Any

from rich.text import Text

from tuitune.commands.output import print_json
from tuitune.commands.status import DONE
from tuitune.commands.viewer import plain_console
from tuitune.errors import UnusableInput
from tuitune.language import _
from tuitune.recipe import Recipe
from tuitune.reward_sections import PythonFile
from tuitune.rewards.confirmed import confirm, source_of, unconfirmed
from tuitune.session.client import Session
from tuitune.session.preparing_requests import PreviewRewards
from tuitune.text import one_line, safe_text


def preview_rewards(recipe: Recipe, prompts: int, *, asks: bool, as_json: bool) -> int:
    """Each prompt with its answers and their values; where it `asks`, files of the user's own are confirmed first."""
    if asks:
        for reward in unconfirmed(recipe.method.judges()):
            _ask(reward)
    preview = asyncio.run(_preview(recipe, prompts, quiet=as_json))
    if as_json:
        print_json(preview)
    else:
        _show(preview)
    return DONE


def _ask(reward: PythonFile) -> None:
    """Show the file, and keep the answer where it is yes. Raises UnusableInput for any other."""
    if not sys.stdin.isatty():
        raise UnusableInput("--confirm shows code and asks about it: use it in a terminal.")
    print(f"── {one_line(reward.path, max_length=200)} ──\n{safe_text(source_of(reward))}\n──")
    try:
        answer = input(_("This code will run on this machine, with all that you may do. Run it? [y/N] "))
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UnusableInput("The rewards' file was not confirmed, so nothing of it is run.")
    confirm(reward)


async def _preview(recipe: Recipe, prompts: int, *, quiet: bool) -> dict[str, Any]:
    session = await Session.start()
    try:
        request = PreviewRewards(recipe.model_dump(mode="json"), prompts)
        console = plain_console()
        if quiet:
            return await session.call(request)
        with console.status(Text(_("Starting"))) as status:
            return await session.call(request, lambda part: status.update(Text(one_line(part.get("loading", "")))))
    finally:
        await session.close()


def _show(preview: dict[str, Any]) -> None:
    console = plain_console()
    for notice in preview["notices"]:
        console.print(Text(f"! {one_line(notice, max_length=400)}"))
    for prompt in preview["prompts"]:
        console.print(Text(one_line(prompt["prompt"], max_length=300), style="bold"))
        for answer in sorted(prompt["answers"], key=lambda answer: -answer["reward"]):
            reward = f"{answer['reward']:>6g}"
            values = [f"{one_line(name)} {value:g}" for name, value in answer["values"].items()]
            line = (
                _("{reward}  ({values}; {tokens} tokens)", reward=reward, values=values, tokens=answer["tokens"])
                if answer["ended"]
                else _(
                    "{reward}  ({values}; {tokens} tokens, cut off)",
                    reward=reward,
                    values=values,
                    tokens=answer["tokens"],
                )
            )
            console.print(Text(f"  {line}", style="dim"))
            console.print(Text(f"          {one_line(answer['text'], max_length=400)}"))
        if not prompt["differs"]:
            console.print(Text(f"  {_('all worth the same: nothing to learn here')}", style="yellow"))
        console.print()
    verdict = _("Mean reward {reward:.3g}. {verdict}", reward=preview["mean_reward"], verdict=preview["verdict"])
    console.print(Text(verdict))
