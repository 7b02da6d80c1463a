"""Joins pictures of the app to one SVG that plays them by CSS, as any browser and GitHub's README do."""

import re
from dataclasses import dataclass

_FONT_FACE = re.compile(r"@font-face \{[^}]*\}\s*")
_VIEW_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


@dataclass(frozen=True)
class Frame:
    """A picture as Textual writes it, and for how long it is shown."""

    svg: str
    seconds: float


def animated(frames: list[Frame]) -> str:
    """One SVG that shows the frames in turn, without end; the last one alone where motion is not wanted."""
    match = _VIEW_BOX.search(frames[0].svg)
    assert match is not None, "Textual writes a viewBox"
    whole = sum(frame.seconds for frame in frames)
    rules, groups, at = [], [], 0.0
    for number, frame in enumerate(frames):
        begin, end = 100 * at / whole, 100 * (at + frame.seconds) / whole
        hidden = "0%{visibility:hidden}" if number else ""
        rules.append(
            f"@keyframes k{number}{{{hidden}{begin:.2f}%{{visibility:visible}}{end:.2f}%{{visibility:hidden}}}}"
            f"#f{number}{{visibility:hidden;animation:k{number} {whole:.1f}s step-end infinite}}"
        )
        groups.append(f'<g id="f{number}">{_FONT_FACE.sub("", frame.svg)}</g>')
        at += frame.seconds
    last = len(frames) - 1
    still = (
        f"@media (prefers-reduced-motion: reduce){{g[id]{{animation:none!important}}#f{last}{{visibility:visible}}}}"
    )
    style = f"<style>{''.join(rules)}{still}</style>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {match.group(0)}>{style}{"".join(groups)}</svg>\n'
