"""Which actions of a chat can be done: by what has the focus there, and by what has been said."""

from collections.abc import Sequence

from screens.bubbles import Bubble, ReplyBubble
from tuitune.chat.conversation import Turn
from tuitune.language import _

_OF_REPLIES = {"good_reply", "correct_reply", "prefer_reply"}
_OF_MESSAGES = {"edit_message", "back_here", "previous_branch", "next_branch"}
_OF_PROMPT = {"go_on", "choose_sides", "regenerate", "attach_documents", "next_preset", "chat_settings", "pick_message"}
"""What can be done while a reply, any message, or none has the focus."""


def belongs_to(action: str, message: Bubble | None) -> bool:
    """Whether an action is one of what has the focus: a message, or the prompt where that is None."""
    if action in _OF_REPLIES:
        return isinstance(message, ReplyBubble)
    return not (action in _OF_MESSAGES and message is None) and not (action in _OF_PROMPT and message is not None)


def why_not(action: str, message: Bubble | None, turns: Sequence[Turn], *, replying: bool) -> str | None:
    """Why an action of what has the focus cannot be done now; None where it can."""
    if action in ("copy_reply", "save_transcript", "clear_chat", "regenerate", "pick_message") and not turns:
        return _("Nothing has been said yet.")
    if action == "regenerate" and replying:
        return _("A reply is being written.")
    if action in _OF_REPLIES:
        if not isinstance(message, ReplyBubble) or message.side not in message.turn.replies:
            return _("Only a reply can be kept.")
        if action == "prefer_reply" and len({reply.text for reply in message.turn.replies.values()}) < 2:
            return _("There is no other reply to prefer it to.")
    if action in ("previous_branch", "next_branch") and (message is None or len(message.turn.branches) < 2):
        return _("Nothing else was said in its place.")
    return None
