"""The command palette: every action of the screen that is shown."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from textual.command import DiscoveryHit, Hit, Hits, Provider

from screens.actions import available, key_name
from screens.step_screen import WalkScreen
from tuitune.language import _


class ActionProvider(Provider):
    """Every action of the current screen in the command palette; one that cannot be used now says why."""

    def _hits(self) -> Iterator[tuple[str, str, Any]]:
        for action, node in available(self.screen):
            why_not = self.screen.why_not(action.name) if isinstance(self.screen, WalkScreen) else None
            label = f"{_(action.label)} ({key_name(action)})" if action.key else _(action.label)
            if why_not:
                yield label, _("Not now: {reason}", reason=why_not), partial(self.app.notify, why_not, markup=False)
            else:
                yield label, _(action.help), partial(self.app.run_action, action.name, node)

    async def discover(self) -> Hits:
        for label, text, run in self._hits():
            yield DiscoveryHit(label, run, help=text)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for label, text, run in self._hits():
            if (score := matcher.match(f"{label} {text}")) > 0:
                yield Hit(score, matcher.highlight(label), run, help=text)
