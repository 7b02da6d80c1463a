"""Templates from outside stay in their sandbox, at the first look and at every later one."""

import pytest

from tuitune.sandbox import sandboxed

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "attempt",
    [
        "messages.append(1)",
        "messages[0].update(role='x')",
        "''.__class__.__mro__",
        "raise_exception.__globals__.keys()",
        "'{0.__class__.__name__}'.format(1)",
        "range(10**9)",
    ],
)
def test_what_is_not_allowed_stays_so(attempt: str) -> None:
    source = f"{{{{ messages[0].content }}}}{{% if add_generation_prompt %}}{{{{ {attempt} }}}}{{% endif %}}"
    render = sandboxed(source)
    for _ in range(3):
        assert render([MESSAGES], chat_template=source)[0] == ["hello"]
        with pytest.raises(Exception, match=r"unsafe|undefined|Range too big"):
            render([MESSAGES], chat_template=source, add_generation_prompt=True)


def test_a_decision_for_one_type_is_not_another_s() -> None:
    source = "{% for each in things %}{{ each.pop is defined }} {% endfor %}"
    render = sandboxed(source)
    mine = type("Mine", (), {"pop": "mine"})
    for things, text in (([mine()], "True "), ([{}, mine(), []], "False True False "), ([[], mine()], "False True ")):
        assert render([MESSAGES], chat_template=source, things=things)[0] == [text]
