"""Chat templates are programs from outside: transformers runs them in jinja2's sandbox, here made quicker."""

from collections.abc import Callable
from typing import Any


def sandboxed(source: str) -> Callable[..., Any]:
    """transformers' `render_jinja_template`, for a sandbox that remembers what it allows `source` to look up.

    jinja2 decides anew at each lookup, though by nothing but the object's type and the attribute's name: 40% of the
    time that Qwen 3's template takes.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

    sandbox = _compile_jinja_template(source).environment
    if "is_safe_attribute" not in vars(sandbox):
        decide, decided = sandbox.is_safe_attribute, dict[tuple[type, str], bool]()

        def is_safe_attribute(looked_at: Any, name: str, value: Any) -> bool:
            key = type(looked_at), name
            if key not in decided:
                decided[key] = decide(looked_at, name, value)
            return decided[key]

        sandbox.is_safe_attribute = is_safe_attribute
    render: Callable[..., Any] = render_jinja_template
    return render
