"""The levels of a model as an SVG: one lane a level over a time axis of tokens, a tick where it updates.

The axis is logarithmic, so that a memory that writes every 16 tokens and an optimizer that steps every 16,384 share it:
a lane is empty until its first update, and its ticks then close up into a band. Text takes the colour of the page
around it; the CSS variables --ink, --muted, --line and --level-ATTENTION|MEMORY|WEIGHTS|FROZEN (in lower case) replace
the built-in colours, which follow prefers-color-scheme.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from html import escape

from nestling.errors import InputError
from nestling.levels.clock import Level

LANE = 58
"""Height of a lane, in units of the drawing."""

_TOP, _BOTTOM, _RIGHT = 20, 44, 22
_GAP = 3.2  # ticks nearer than this become a band
_STYLE = """
.levels text { font-family: ui-sans-serif, system-ui, sans-serif; font-size: 12px;
  fill: var(--ink, var(--levels-ink)); }
.levels { --levels-ink: #1c2128; --levels-muted: #59636e; --levels-line: #d5dae0;
  --attention: var(--level-attention, #2563eb); --memory: var(--level-memory, #c2410c);
  --weights: var(--level-weights, #15803d); --frozen: var(--level-frozen, #8b949e); }
@media (prefers-color-scheme: dark) { .levels { --levels-ink: #e6e8eb; --levels-muted: #9aa4b0; --levels-line: #3a424c;
  --attention: var(--level-attention, #7aa7ff); --memory: var(--level-memory, #fb923c);
  --weights: var(--level-weights, #4ade80); --frozen: var(--level-frozen, #6b7480); } }
.levels .name { font-weight: 600; font-size: 13px; }
.levels .quiet { fill: var(--muted, var(--levels-muted)); font-size: 11.5px; }
.levels .axis { stroke: var(--line, var(--levels-line)); stroke-width: 1; }
.levels .freq { font-size: 13px; font-style: italic; font-family: Georgia, "Times New Roman", serif; }
"""


@dataclasses.dataclass(frozen=True)
class _Frame:
    """Where things are: the plot from x = `left` to `right`, the axis from 1 to `end` tokens, lanes `height` high."""

    left: float
    right: float
    end: float
    height: float

    def x(self, tokens: float) -> float:
        """The place of a moment."""
        return self.left + (self.right - self.left) * math.log2(max(tokens, 1)) / math.log2(self.end)


def draw(levels: Sequence[Level], step_tokens: int, width: int = 840) -> str:
    """One `<svg>` element; also a complete SVG file.

    Args:
        levels: as `collect` returns them; drawn from top to bottom.
        step_tokens: tokens of one optimizer step (batch size times sequence length).
        width: of the drawing, in pixels at full size; below 560 names stand above their lanes.

    Raises:
        InputError: no levels, or a step of less than one token.
    """
    if not levels:
        raise InputError("levels: there are none to draw; collect them from a model first.")
    if step_tokens < 1:
        raise InputError(f"step_tokens: {step_tokens} is not allowed; give batch size times sequence length.")
    stacked = width < 560
    periods = [level.tokens(step_tokens) for level in levels]
    end = 4 * max([period for period in periods if period < math.inf], default=1)
    frame = _Frame(14 if stacked else 290, width - _RIGHT, max(end, 64), LANE + 14 if stacked else LANE)
    height = _TOP + frame.height * len(levels) + _BOTTOM
    parts = [_axis(frame, height)]
    for lane, (level, period) in enumerate(zip(levels, periods, strict=True)):
        parts.append(_lane(level, period, frame, _TOP + lane * frame.height, stacked))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="levels" viewBox="0 0 {width} {height}" width="{width}" '
        f'role="img" aria-label="Levels of the model and when they update">\n<style>{_STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _lane(level: Level, period: float, frame: _Frame, top: float, stacked: bool) -> str:
    """Name, how often, and the ticks of one level."""
    colour = f"var(--{level.kind if level.kind in ('attention', 'memory', 'frozen') else 'weights'})"
    name, facts = escape(level.name), f"{level.every} · {_count(level.parameters)}"
    low = top + frame.height - 8
    high = low - 26
    if stacked:
        label = (
            f'<text class="name" x="{frame.left}" y="{top + 14}">{name}</text>'
            f'<text class="quiet" x="{frame.left}" y="{top + 29}">{facts}</text>'
            f'<text class="freq" x="{frame.right}" y="{top + 14}" text-anchor="end">f = {_frequency(period)}</text>'
        )
    else:
        middle = (low + high) / 2
        label = (
            f'<text class="name" x="0" y="{middle - 2}">{name}</text>'
            f'<text class="quiet" x="0" y="{middle + 15}">{facts}</text>'
            f'<text class="freq" x="{frame.left - 14}" y="{middle - 2}" text-anchor="end">{_frequency(period)}</text>'
        )
    about = f"{name}: {level.every}; {escape(level.context)}"
    dashes = ' stroke-dasharray="2 5"' if period == math.inf else ""
    base = (
        f'<line x1="{frame.left}" x2="{frame.right}" y1="{low}" y2="{low}" stroke="{colour}" stroke-opacity="0.45" '
        f'stroke-width="1.5"{dashes}/>'
    )
    return f"<g><title>{about}</title>{label}{base}{''.join(_ticks(period, frame, low, high, colour))}</g>"


def _ticks(period: float, frame: _Frame, low: float, high: float, colour: str) -> Iterator[str]:
    """A bar at every update, and one band from where bars would touch."""
    if period == math.inf:
        return
    tokens = period = max(period, 1)
    box = f'height="{low - high}" fill="{colour}"'
    while tokens <= frame.end:
        x = frame.x(tokens) - 1
        if frame.x(tokens + period) - frame.x(tokens) < _GAP:
            width = frame.right + 1 - x
            yield f'<rect x="{x:.1f}" y="{high}" width="{width:.1f}" {box} fill-opacity="0.55"/>'
            return
        yield f'<rect x="{x:.1f}" y="{high}" width="2" {box}/>'
        tokens += period


def _axis(frame: _Frame, height: float) -> str:
    """Grid lines and labels at powers of two, about as many as fit."""
    y, octaves = height - _BOTTOM + 4, math.floor(math.log2(frame.end))
    stride = next(n for n in (1, 2, 3, 4, 5, 6, 8) if octaves / n * 52 <= frame.right - frame.left or n == 8)
    parts = []
    for octave in range(0, octaves + 1, stride):
        x = frame.x(2**octave)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{y}"/>'
            f'<text class="quiet" x="{x:.1f}" y="{y + 15}" text-anchor="middle">{2**octave:,}</text>'
        )
    middle = (frame.left + frame.right) / 2
    title = f'<text class="quiet" x="{middle}" y="{y + 34}" text-anchor="middle">tokens read (logarithmic)</text>'
    if frame.left > 100:
        parts.append(
            f'<text class="quiet" x="{frame.left - 14}" y="{_TOP - 2}" text-anchor="end">updates a token</text>'
        )
    return "".join(parts) + title


def _frequency(period: float) -> str:
    """Updates per token."""
    if period == 0:
        return "∞"
    return "0" if period == math.inf else "1" if period == 1 else f"1/{period:,.0f}"


def _count(number: int) -> str:
    """A number of values, in three digits."""
    if number == 0:
        return "no parameters"
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit} values"
    return f"{number} values"
