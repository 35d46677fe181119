"""The figures of a comparison: differences, quality against bytes, and quality along rounds, history and groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fedpa.comparison.columns import by_numbers, bytes_text, difference_text, interval_text, metric_title, number
from fedpa.comparison.plots import Box, Canvas, Linear, Log, domain, place_labels, spread
from fedpa.comparison.results import Measured, Row, TaskResults

__all__ = ["PHONE", "WIDE", "Figure", "Line", "along", "bytes_figure", "forest", "lines_along_rounds"]

WIDE, PHONE = 1080, 358
"""Widths in CSS pixels that every figure is drawn for."""

_CHARACTER = 6.0
"""Mean width of a character of a label."""


class Figure(NamedTuple):
    """A figure in both widths."""

    title: str
    wide: str
    phone: str


def _kind(kind: str, width: int) -> str:
    return f"{kind} {'wide' if width == WIDE else 'phone'}"


def _drawn(title: str, draw: Callable[[int], str]) -> Figure:
    return Figure(title, draw(WIDE), draw(PHONE))


def forest(task: TaskResults, metric: str, reference: str, level: float) -> Figure | None:
    """Differences to a reference with their intervals, a line for each method; None where there is none."""
    rows = [(i, row, row.differences.get(reference, {}).get(metric)) for i, row in enumerate(task.rows, 1)]
    shown = [(i, row, one) for i, row, one in rows if one is not None and one.value is not None]
    if not shown:
        return None
    title = f"{metric_title(metric)} minus that of {task.titles.get(reference, reference)}"
    ends = [end for _, _, one in shown for end in (one.low, one.value, one.high) if end is not None]

    def draw(width: int) -> str:
        names, right = (290, 210) if width == WIDE else (150, 12)
        step, top = (18, 8) if width == WIDE else (20, 8)
        bottom = top + step * len(shown)
        label = f"{title}: {len(shown)} methods with {level:.0%} intervals; the numbers are in the table above"
        canvas = Canvas(width, bottom + 26, label, _kind("forest", width))
        scale = Linear(*domain(ends, 0.0), names, width - right)
        for tick in scale.ticks(8 if width == WIDE else 4):
            canvas.line(scale(tick), top, scale(tick), bottom, "grid" if tick else "zero")
            canvas.text(scale(tick), bottom + 13, f"{tick:+.3g}" if tick else "0", "tick", text_anchor="middle")
        for place, (i, row, one) in enumerate(shown):
            y = top + step * (place + 0.5)
            _open(canvas, i, row, f"{title}: {difference_text(one)}")
            canvas.add("rect", x=0, y=y - step / 2, width=width, height=step, class_="hit")
            canvas.text(names - 10, y, _short(f"{row.title}", names), "name", text_anchor="end")
            _error_bar(canvas, scale, one, y)
            canvas.mark(scale(one.value or 0), y, row.family, hollow=one.p_holm is None or one.p_holm > 1 - level)
            if width == WIDE:
                canvas.text(width - right + 14, y, interval_text(one, "+"), "value")
            canvas.close("g")
        return canvas.svg()

    return _drawn(title, draw)


def _short(text: str, room: float) -> str:
    most = int((room - 14) / _CHARACTER)
    return text if len(text) <= most else text[: most - 1].rstrip(" ,+") + "…"


def _open(canvas: Canvas, i: int, row: Row, what: str) -> None:
    canvas.open("g", class_=f"m f-{row.family}", data_m=i)
    canvas.add("title", f"{i} {row.title}: {what}")


def _error_bar(canvas: Canvas, scale: Linear, one: Measured, across: float, upright: bool = False) -> None:
    """A bar from low to high, with an arrow where it goes on beyond the axis."""
    if one.low is None or one.high is None:
        return
    begin, end = scale(one.low), scale(one.high)
    if upright:
        canvas.line(across, begin, across, end, "bar")
    else:
        canvas.line(begin, across, end, across, "bar")
    way = 1 if scale.end > scale.begin else -1
    for value, sign in ((one.low, -way), (one.high, way)):
        if scale.outside(value):
            x, y = (across, scale(value)) if upright else (scale(value), across)
            dx, dy = (3.5, -4 * sign) if upright else (-4 * sign, 3.5)
            far = f"L{x + dx:.1f} {y + dy:.1f}"
            near = f"M{x - 3.5:.1f} {y + dy:.1f}" if upright else f"M{x + dx:.1f} {y - 3.5:.1f}"
            canvas.add("path", d=f"{near}L{x:.1f} {y:.1f}{far}", class_="bar")


def bytes_figure(task: TaskResults, metric: str, level: float) -> Figure | None:
    """Quality against bytes that a user uploads per round; those who upload nothing stand apart on the left."""
    rows = [(i, row, row.metrics.get(metric)) for i, row in enumerate(task.rows, 1) if row.bytes_up is not None]
    shown = [(i, row, one) for i, row, one in rows if one is not None and one.value is not None]
    if not shown:
        return None
    title = f"{metric_title(metric)} against bytes up per user and round"
    values = [end for _, _, one in shown for end in (one.low, one.value, one.high) if end is not None]
    sent = [row.bytes_up for _, row, _ in shown if row.bytes_up]

    def draw(width: int) -> str:
        phone = width == PHONE
        height, left, top, bottom = (430, 44, 10, 388) if phone else (560, 60, 10, 514)
        silent = len(shown) - len(sent)
        apart = left + max(44.0, min((7.0 if phone else 17.0) * silent + 18, width * 0.3)) if silent else float(left)
        label = f"{title}: {len(shown)} methods with {level:.0%} intervals; the numbers are in the table above"
        canvas = Canvas(width, height, label, _kind("scatter", width))
        scale = Linear(*domain(values), bottom, top)
        _y_axis(canvas, scale, left, width - 8)
        if silent:
            canvas.add("rect", x=left, y=top, width=apart - left - 6, height=bottom - top, class_="apart")
            canvas.text(
                (left + apart - 6) / 2, bottom + 13, "none" if phone else "nothing", "tick", text_anchor="middle"
            )
        xs: list[float] = []
        if sent:
            across = Log(min(sent) / 1.6, max(max(sent) * 1.6, min(sent) * 10), apart + 12, width - 20)
            free = 0.0
            for tick in across.ticks():
                canvas.line(across(tick), top, across(tick), bottom, "grid")
                if across(tick) >= free:
                    shown_bytes = bytes_text(tick).replace(".0 ", " ")
                    canvas.text(across(tick), bottom + 13, shown_bytes, "tick", text_anchor="middle")
                    free = across(tick) + 46
            xs = [across(one) for one in sent]
        canvas.text((left + width) / 2, bottom + 30, "bytes up per user and round", "axis", text_anchor="middle")
        still = iter(spread([(left + apart - 6) / 2] * silent, 6.5 if phone else 15.0, left + 8.0, apart - 14))
        # Equal bytes are common: those who share a place stand a little apart, but not so far that the axis lies.
        reach = 6.0 if phone else 12.0
        crowd = max((sum(abs(x - other) < reach for other in xs) for x in xs), default=1)
        moving = iter(spread(xs, 2 * reach / crowd, apart + 8, width - 14.0))
        points = [(next(moving) if row.bytes_up else next(still), scale(one.value or 0)) for _, row, one in shown]
        for (i, row, one), (x, y) in zip(shown, points, strict=True):
            _open(canvas, i, row, f"{interval_text(one)}, {bytes_text(row.bytes_up)} up")
            _error_bar(canvas, scale, one, x, upright=True)
            canvas.mark(x, y, row.family)
            canvas.close("g")
        texts = [str(i) if phone else row.title for i, row, _ in shown]
        sizes = [(len(text) * _CHARACTER, 12.0) for text in texts]
        labels = place_labels(points, sizes, Box(left + 2, top, width - 10, bottom))
        for (i, row, _), (x, y), (label_x, label_y), text, size in zip(
            shown, points, labels, texts, sizes, strict=True
        ):
            canvas.open("g", class_=f"m f-{row.family}", data_m=i)
            near = min(max(x, label_x), label_x + size[0])
            if abs(near - x) + abs(label_y - y) > 12:
                canvas.line(x, y, near, label_y, "leader")
            canvas.text(label_x, label_y, text, "name")
            canvas.close("g")
        return canvas.svg()

    return _drawn(title, draw)


def _y_axis(canvas: Canvas, scale: Linear, left: float, right: float) -> None:
    for tick in scale.ticks(6):
        canvas.line(left, scale(tick), right, scale(tick), "grid")
        canvas.text(left - 6, scale(tick), f"{tick:.4g}", "tick", text_anchor="end")


class Line(NamedTuple):
    """A method's values along an axis: positions on it, and values there."""

    i: int
    row: Row
    points: Sequence[tuple[float, float]]


def lines_along_rounds(task: TaskResults, metric: str) -> Figure | None:
    """Quality by round, a line for each method that trains; None where there is none."""
    lines = []
    for i, row in enumerate(task.rows, 1):
        values = [(one.round, one.metrics.get(metric)) for one in row.by_round]
        points = sorted((float(at), value) for at, value in values if value is not None)
        if len(points) > 1:
            lines.append(Line(i, row, points))
    if not lines:
        return None
    last = max(at for line in lines for at, _ in line.points)
    title = f"{metric_title(metric)} on {task.rounds_on} rows by round"
    step = next(by for by in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if last / by <= 10 or by == 1000)
    ticks = {float(at): str(at) for at in range(0, int(last) + 1, step)}
    return _lines(title, lines, ticks, "round", dots=False)


def along(
    task: TaskResults, metric: str, title: str, axis: str, parts: Callable[[Row], Mapping[str, Mapping[str, Any]]]
) -> Figure | None:
    """Quality in parts of the users, such as those of one group, a line for each method; None where there is none."""
    names: dict[str, None] = {}
    for row in task.measured:
        names.update(dict.fromkeys(parts(row)))
    place = {name: float(k) for k, name in enumerate(sorted(names, key=by_numbers))}
    lines = []
    for i, row in enumerate(task.rows, 1):
        found = [(place[name], part.get(metric)) for name, part in parts(row).items()]
        points = sorted((at, float(value)) for at, value in found if value is not None)
        if points:
            lines.append(Line(i, row, points))
    if not lines:
        return None
    return _lines(f"{metric_title(metric)} {title}", lines, {at: name for name, at in place.items()}, axis, dots=True)


def _lines(title: str, lines: Sequence[Line], ticks: Mapping[float, str], axis: str, *, dots: bool) -> Figure:
    def draw(width: int) -> str:
        phone = width == PHONE
        left, right, top = (44, 30, 10) if phone else (60, 250, 10)
        gap = 11.0 if phone else 13.0
        bottom = top + max(300 if phone else 360, round(gap * len(lines)) + 10)
        first = min(at for line in lines for at, _ in line.points)
        last = max(first + 1, *(at for line in lines for at, _ in line.points))
        room = 14 if dots else 0
        across = Linear(first, last, left + room, width - right - room)
        slot = (across.end - across.begin) / max(1, len(ticks) - 1)
        turned = max(map(len, ticks.values()), default=0) * _CHARACTER > slot - 4
        below = min(max(map(len, ticks.values()), default=0), 14) * 4.6 + 14 if turned else 16
        label = f"{title}: {len(lines)} methods; the numbers are below"
        canvas = Canvas(width, bottom + below + 22, label, _kind("lines", width))
        scale = Linear(*domain(value for line in lines for _, value in line.points), bottom, top)
        _y_axis(canvas, scale, left, width - right)
        for at, text in ticks.items():
            canvas.line(across(at), top, across(at), bottom, "grid")
            if turned:
                turn = f"rotate(-40 {across(at) + 4:.1f} {bottom + 12:.1f})"
                shown = _short(text, 14 * _CHARACTER + 14)
                canvas.text(across(at) + 4, bottom + 10, shown, "tick", text_anchor="end", transform=turn)
            else:
                canvas.text(across(at), bottom + 13, text, "tick", text_anchor="middle")
        canvas.text((left + width - right) / 2, bottom + below + 10, axis, "axis", text_anchor="middle")
        ends = spread([scale(line.points[-1][1]) for line in lines], gap, top + 4.0, bottom - 4.0)
        dashes: dict[str, int] = {}
        for line, end in zip(lines, ends, strict=True):
            dash = dashes[line.row.family] = dashes.get(line.row.family, -1) + 1
            begin_value, end_value = number(line.points[0][1]), number(line.points[-1][1])
            _open(canvas, line.i, line.row, f"from {begin_value} to {end_value}")
            path = "".join(
                f"{'L' if k else 'M'}{across(at):.1f} {scale(value):.1f}" for k, (at, value) in enumerate(line.points)
            )
            canvas.add("path", d=path, class_=f"line d{dash % 4}")
            if dots:
                for at, value in line.points:
                    canvas.mark(across(at), scale(value), line.row.family)
            x, y = across(line.points[-1][0]), scale(line.points[-1][1])
            label_x = width - right + (8 if phone else 22)
            canvas.line(x + (6 if dots else 1), y, label_x - 2, end, "leader")
            canvas.text(label_x, end, str(line.i) if phone else _short(line.row.title, right - 16), "name")
            canvas.close("g")
        return canvas.svg()

    return _drawn(title, draw)
