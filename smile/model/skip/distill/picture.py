"""A distillation's curve as a picture: SVG, which needs no library and any browser shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from smile.model.skip.distill.checkpoint import Point

WIDTH, HEIGHT = 640, 320  # pixels
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 28, 40
BOUNDARY_COLOUR, TOP_COLOUR = "#b0b7bd", "#1b6ca8"
ERROR_MIN = 1e-6  # of what is drawn: the axis is logarithmic
TICKS = (1.0, 2.0, 5.0)  # of each power of ten

Line = list[tuple[int, float]]  # (step, error)


def curve_svg(points: Sequence[Point], title: str) -> str:
    """Errors over steps: of the states at the boundary, and above the last layer once the epochs
    come that look through the layers. Smoothed, relative to the states' variance.
    """
    boundary: Line = [(point.step, point.states[0]) for point in points if point.states]
    last: Line = [(point.step, point.states[-1]) for point in points if len(point.states) > 1]
    lines = [
        ("states at the boundary", BOUNDARY_COLOUR, boundary),
        ("states of the last layer", TOP_COLOUR, last),
    ]
    scale = _Scale.over([*boundary, *last])
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
            f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            f'<text x="{LEFT}" y="{TOP - 10}">{escape(title)}: error over variance</text>',
            *scale.ticks(),
            *(_drawn(number, line, scale) for number, line in enumerate(lines)),
            f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">'
            f"{scale.steps} steps</text>",
            "</svg>\n",
        ]
    )


class _Scale:
    """From steps and errors to pixels."""

    def __init__(self, steps: int, least: float, most: float) -> None:
        self.steps = steps
        self._least, self._most = least, most
        self._span = math.log(most / least)

    @classmethod
    def over(cls, line: Line) -> _Scale:
        """Wide enough for all of it."""
        errors = [max(ERROR_MIN, error) for _, error in line if math.isfinite(error)] or [1.0]
        steps = max((step for step, _ in line), default=1)
        return cls(steps, min(errors) / 1.1, max(errors) * 1.1)

    def x(self, step: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / self.steps

    def y(self, error: float) -> float:
        share = math.log(max(ERROR_MIN, error) / self._least) / self._span
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def ticks(self) -> Iterator[str]:
        """A line and its error for each round number in between."""
        for power in range(math.floor(math.log10(self._least)), math.ceil(math.log10(self._most))):
            for times in TICKS:
                error = times * 10.0**power
                if self._least <= error <= self._most:
                    y = self.y(error)
                    yield (
                        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
                        f'stroke="#e4e7ea"/><text x="{LEFT - 6}" y="{y + 4:.1f}" '
                        f'text-anchor="end">{error:g}</text>'
                    )


def _drawn(number: int, line: tuple[str, str, Line], scale: _Scale) -> str:
    name, colour, points = line
    places = " ".join(
        f"{scale.x(step):.1f},{scale.y(error):.1f}"
        for step, error in points
        if math.isfinite(error)
    )
    return (
        f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>'
        f'<text x="{WIDTH - RIGHT}" y="{TOP + 14 * number}" text-anchor="end" fill="{colour}">'
        f"{name}</text>"
    )
