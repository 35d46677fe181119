"""Drawing in SVG: scales, ticks, marks and labels that do not cover each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

__all__ = ["Box", "Canvas", "Linear", "Log", "domain", "mark_svg", "place_labels", "spread"]

_FAMILY_MARKS = {
    "baseline": "M-4 -4H4V4H-4Z",
    "device": "M0 -5L5 4H-5Z",
    "ceiling": "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
    "federated": "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0 -4.5 0Z",
    "adapter": "M-1.8 -5H1.8V-1.8H5V1.8H1.8V5H-1.8V1.8H-5V-1.8H-1.8Z",
}
"""A shape for each family of methods, so that colour is not all that tells them apart."""


class Linear(NamedTuple):
    """From values to pixels, evenly."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value is; one that is not shown is at the edge."""
        return self.begin + (self.clip(value) - self.low) / (self.high - self.low) * (self.end - self.begin)

    def clip(self, value: float) -> float:
        """The nearest value that is shown."""
        return min(max(value, self.low), self.high)

    def outside(self, value: float) -> bool:
        """Whether a value is beyond what is shown."""
        return not self.low <= value <= self.high

    def ticks(self, most: int) -> list[float]:
        """Round values, at most so many."""
        raw = (self.high - self.low) / max(1, most)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * by for by in (1, 2, 5, 10, 20) if power * by >= raw * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [round(i * step, 12) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


class Log(NamedTuple):
    """From positive values to pixels, evenly by their logarithm."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value is."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Powers of ten."""
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        return [10.0**power for power in range(first, last + 1)]


def domain(values: Iterable[float], *also: float) -> tuple[float, float]:
    """What an axis shows: the values, but for those so far off that the others would be pressed flat."""
    found = sorted(values)
    if not found:
        found = [0.0, 1.0]
    low, high = found[len(found) // 5], found[-1 - len(found) // 5]
    room = 1.5 * (high - low)
    inside = [value for value in found if low - room <= value <= high + room] if room > 0 else found
    low, high = min([*inside, *also]), max([*inside, *also])
    margin = 0.04 * (high - low) or max(1e-3, abs(low) * 0.01)
    return low - margin, high + margin


class Box(NamedTuple):
    """A rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        tall = min(self.bottom, other.bottom) - max(self.top, other.top)
        return wide * tall if wide > 0 and tall > 0 else 0.0


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places apart until neighbours are `gap` from each other, within bounds.

    Places keep their order and go no further, in squares, than they must. Where there is no room for the gap it is
    smaller.
    """
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    # Less the gaps before it, a place may be no lower than the one before: a monotone regression, by merging means.
    groups: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        groups.append((wanted[i] - rank * gap, 1))
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, size = groups.pop()
            groups[-1] = groups[-1][0] + total, groups[-1][1] + size
    means = [total / size for total, size in groups for _ in range(size)]
    highest = high - gap * (len(wanted) - 1)
    found = [0.0] * len(wanted)
    for rank, (i, mean) in enumerate(zip(order, means, strict=True)):
        found[i] = min(max(mean, low), highest) + rank * gap
    return found


def place_labels(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], frame: Box
) -> list[tuple[float, float]]:
    """Left and middle of a label for every point, such that labels cover neither each other nor the points.

    Each takes the nearest free place around its point, or the one that covers least.
    """
    taken = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    found: list[tuple[float, float]] = [(0.0, 0.0)] * len(points)
    crowd = [sum(abs(x - a) < 60 and abs(y - b) < 30 for a, b in points) for x, y in points]
    for i in sorted(range(len(points)), key=lambda k: crowd[k]):
        (x, y), (wide, tall) = points[i], sizes[i]
        best: tuple[float, Box] | None = None
        for distance in range(10, 320, 8):
            for step in range(16):
                angle = math.pi * step / 8
                across, down = math.cos(angle), math.sin(angle)
                left = x + distance * across - (wide if across < -0.3 else wide / 2 if across < 0.3 else 0)
                middle = y + distance * down
                box = Box(left - 1, middle - tall / 2, left + wide + 1, middle + tall / 2)
                if box.left < frame.left or box.right > frame.right or box.top < frame.top or box.bottom > frame.bottom:
                    continue
                covered = sum(box.overlap(other) for other in taken) + distance * 0.01
                if best is None or covered < best[0]:
                    best = covered, box
            if best is not None and best[0] < distance * 0.02:
                break
        box = Box(x, y, x + wide, y + tall) if best is None else best[1]
        taken.append(box)
        found[i] = box.left + 1, (box.top + box.bottom) / 2
    return found


class Canvas:
    """An SVG being drawn.

    Parameters
    ----------
    width, height : float
        In CSS pixels.
    label : str
        What a screen reader says of it.
    """

    def __init__(self, width: float, height: float, label: str, kind: str) -> None:
        self.width, self.height = width, height
        self._parts = [
            f'<svg class="{kind}" role="img" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
            f'aria-label="{escape(label)}">'
        ]

    def add(self, tag: str, text: str | None = None, **attributes: Any) -> None:
        """An element; a trailing underscore of an attribute is dropped, others become hyphens."""
        self._parts.append(f"<{tag}{_written(attributes)}" + ("/>" if text is None else f">{escape(text)}</{tag}>"))

    def open(self, tag: str, **attributes: Any) -> None:
        """Begin an element that holds others."""
        self._parts.append(f"<{tag}{_written(attributes)}>")

    def close(self, tag: str) -> None:
        """End it."""
        self._parts.append(f"</{tag}>")

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line."""
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)

    def text(self, x: float, y: float, text: str, kind: str = "", **attributes: Any) -> None:
        """Text whose middle is at height y."""
        self.add("text", text, x=x, y=y + 4, class_=kind or None, **attributes)

    def mark(self, x: float, y: float, family: str, hollow: bool = False) -> None:
        """The shape of a family."""
        kind = "mark hollow" if hollow else "mark"
        self.add("path", d=_FAMILY_MARKS[family], transform=f"translate({x:.1f} {y:.1f})", class_=kind)

    def svg(self) -> str:
        """The whole."""
        return "".join([*self._parts, "</svg>"])


def _written(attributes: dict[str, Any]) -> str:
    texts = []
    for name, value in attributes.items():
        if value is not None:
            shown = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else escape(str(value))
            texts.append(f' {name.removesuffix("_").replace("_", "-")}="{shown}"')
    return "".join(texts)


def mark_svg(family: str) -> str:
    """The shape of a family on its own, for a legend."""
    shape = f'<path class="mark" d="{_FAMILY_MARKS[family]}"/>'
    return f'<svg class="key f-{family}" viewBox="-7 -7 14 14" aria-hidden="true">{shape}</svg>'
