"""Chat templates are programs from outside: they run in transformers' sandbox, here made quicker, and with an end.

The sandbox keeps a template from the machine, but not from working or growing without end. So each pass of a loop and
each call of a macro is counted, and so is the text that is made; beyond what any conversation needs, it is stopped.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from jinja2 import TemplateRuntimeError, TemplateSyntaxError, nodes, pass_context
from jinja2.visitor import NodeTransformer

from tuitune.errors import UnusableInput
from tuitune.language import _
from tuitune.text import one_line

MOST_STEPS = 1_000_000
"""Passes of loops and calls of macros in one rendering."""
MOST_CHARACTERS = 2**27
"""Of text in one rendering, and elements of a list."""
_MOST_NUMBER = 10**9
_STEPS, _SHOWN = "\0steps", "\0shown"
"""Names that no template can spell, for what a rendering has used so far."""


class _Endless(TemplateRuntimeError):
    """A template was stopped that would have gone on for too long, or have made too much."""

    def sentence(self) -> str:
        return _(
            "The chat template does not come to an end ({reason}): choose a model with another one.",
            reason=self.message,
        )


def sandboxed(source: str) -> Callable[..., tuple[list[str], list[Any]]]:
    """transformers' `render_jinja_template`, bounded, and quick for `source`: Qwen 3's template takes 60% of the time.

    The function that comes back raises UnusableInput where a template does not end, and jinja2's and Python's own
    exceptions where it refuses. Raises UnusableInput for a source that is no template.
    """
    try:
        _compiled(source)
    except TemplateSyntaxError as error:
        raise UnusableInput(
            "The chat template cannot be read (line {line}: {reason}): choose a model with another "
            "one, or correct it in its folder.",
            line=error.lineno,
            reason=one_line(error.message, max_length=120),
        ) from None
    except _Endless as error:
        raise UnusableInput(error.sentence()) from None

    def render(
        conversations: list[Any],
        *,
        chat_template: str,
        tools: list[Any] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> tuple[list[str], list[Any]]:
        template = _compiled(chat_template)
        try:
            texts = [
                template.render(
                    messages=messages,
                    tools=tools,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **variables,
                )
                for messages in conversations
            ]
        except _Endless as error:
            raise UnusableInput(error.sentence()) from None
        except MemoryError:
            raise UnusableInput(_Endless(_("it takes more memory than there is")).sentence()) from None
        return texts, []

    return render


@lru_cache(maxsize=128)
def _compiled(source: str) -> Any:
    environment = _environment()
    tree = _Counted().visit(environment.parse(source))
    return environment.template_class.from_code(environment, environment.compile(tree), dict(environment.globals))


@cache
def _environment() -> Any:
    """The one that transformers makes for chat templates, with what is added here.

    jinja2 decides at each lookup anew what the sandbox allows, though by nothing but the object's type and the
    attribute's name, and folds constants while it compiles, however large they become.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template("").environment
    environment.is_safe_attribute = _remembered(environment.is_safe_attribute)
    environment.optimized = False
    environment.intercepted_binops = frozenset({"+", "*", "**", "%"})
    environment.call_binop = _bounded(environment.binop_table)
    environment.filters |= {"\0step": _step, "\0shown": _shown, "\0sized": _sized}
    return environment


class _Counted(NodeTransformer):
    """Adds the counting to a template's syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._stepping(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._stepping(node)

    def _stepping(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filtered(nodes.Const(None), "\0step")))
        return node  # type: ignore[no-any-return]

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            child if isinstance(child, nodes.TemplateData) else _filtered(child, "\0shown") for child in node.nodes
        ]
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        node.call = self.generic_visit(node.call)  # type: ignore[assignment]
        node.body = [self.visit(child) for child in node.body]
        return node

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> nodes.Node:
        node.body = [self.visit(child) for child in node.body]
        return node

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        if isinstance(node.value, int) and abs(node.value) > _MOST_NUMBER:
            raise _Endless(_("it holds a number beyond {most:,}", most=_MOST_NUMBER))
        return node

    def _sized(self, node: nodes.Expr) -> nodes.Node:
        return _filtered(self.generic_visit(node), "\0sized")

    visit_Call = visit_Filter = visit_Concat = _sized


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


@pass_context
def _step(context: Any, value: None) -> None:
    steps = context.vars.get(_STEPS, 0) + 1
    if steps > MOST_STEPS:
        raise _Endless(_("its loops take more than {most:,} steps", most=MOST_STEPS))
    context.vars[_STEPS] = steps


@pass_context
def _shown(context: Any, value: Any) -> Any:
    if isinstance(value, str):
        characters = context.vars.get(_SHOWN, 0) + len(value)
        if characters > MOST_CHARACTERS:
            raise _Endless(_("it writes more than {most:,} characters", most=MOST_CHARACTERS))
        context.vars[_SHOWN] = characters
    return value


def _sized(value: Any) -> Any:
    if isinstance(value, str | list | tuple | dict) and len(value) > MOST_CHARACTERS:
        raise _Endless(_("it makes a value of more than {most:,} characters or elements", most=MOST_CHARACTERS))
    return value


def _bounded(table: dict[str, Callable[[Any, Any], Any]]) -> Callable[[Any, str, Any, Any], Any]:
    def call_binop(context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for repeated, times in ((left, right), (right, left)):
                if isinstance(repeated, str | list | tuple) and len(repeated) * times > MOST_CHARACTERS:
                    raise _Endless(
                        _("it repeats a value to more than {most:,} characters or elements", most=MOST_CHARACTERS)
                    )
        if operator == "**" and isinstance(right, int) and right > 64:
            raise _Endless(_("it raises a number to a power beyond 64"))
        result = _sized(table[operator](left, right))
        if isinstance(result, int) and abs(result) > _MOST_NUMBER:
            raise _Endless(_("it computes a number beyond {most:,}", most=_MOST_NUMBER))
        return result

    return call_binop


def _remembered(decide: Callable[[Any, str, Any], bool]) -> Callable[[Any, str, Any], bool]:
    decided: dict[tuple[type, str], bool] = {}

    def is_safe_attribute(looked_at: Any, name: str, value: Any) -> bool:
        key = type(looked_at), name
        if key not in decided:
            decided[key] = decide(looked_at, name, value)
        return decided[key]

    return is_safe_attribute
