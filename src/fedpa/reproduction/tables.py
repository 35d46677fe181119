"""A reproduction as tables: published, ours, the gap and what differs."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from fedpa.methods import title_of

__all__ = ["markdown", "notes", "table"]

_NONE = "-"
_COLUMNS = (
    "method",
    "negatives",
    "published HR / NDCG",
    "ours HR",
    "ours NDCG",
    "gap HR / NDCG",
    "whole catalogue HR / NDCG",
    "best round",
    "differs",
)
_LEFT = {"method", "negatives", "differs"}


def table(results: Mapping[str, Any]) -> Table:
    """The results for a terminal; values are percent, at 10."""
    found = Table(title=_title(results))
    for name in _COLUMNS:
        found.add_column(name, justify="left" if name in _LEFT else "right")
    letters = _letters(results)
    for row in results["rows"]:
        *cells, _ = _cells(row)
        found.add_row(*cells, " ".join(letters[part["short"]] for part in row["departures"]) or _NONE)
    return found


def notes(results: Mapping[str, Any]) -> Iterator[str]:
    """What a reader of the table must know, one paragraph after another."""
    data = results["data"]
    yield (
        f"{data['users']:,} users, {data['items']:,} items, {data['ratings']:,} ratings, {results['seeds']} run(s) of "
        f"{results['rounds']} rounds. Values at {results['k']} in percent. The test item is ranked among "
        f"{results['sampled']} drawn items; brackets are 95% intervals over draws of users, and of runs within. The "
        "whole catalogue is without the user's other ratings; figures among drawn items need not order methods as it "
        "does (Krichene and Rendle, On Sampled Metrics for Item Recommendation, KDD 2020)."
    )
    if results["uncited"]:
        yield results["uncited"]
    elif any(row["published"] for row in results["rows"]):
        yield f"Published values: {results['source']}."
    for row in results["rows"]:
        for run, why in enumerate(row["stopped"]):
            if why is not None:
                yield f"{_name(row['method'])}, {row['protocol']}, run {run} stopped early. {why}"
    for method, effect in results["after_split_minus_published"].items():
        both = " and ".join(f"{kind.upper()} {_interval(effect[kind], sign=True)}" for kind in ("hr", "ndcg"))
        yield f"{_name(method)}, drawn after the split minus drawn as published: {both}."
    meanings = {part["short"]: part["long"] for row in results["rows"] for part in row["departures"]}
    letters = _letters(results)
    for short, long in meanings.items():
        yield f"({letters[short]}) {short}: {long}"


def markdown(results: Mapping[str, Any]) -> str:
    """The table and its notes."""
    lines = [f"# {_title(results)}", "", _line(_COLUMNS)]
    lines.append(_line("---" if name in _LEFT else "---:" for name in _COLUMNS))
    lines += [_line(_cells(row)) for row in results["rows"]]
    for note in notes(results):
        lines += ["", note]
    return "\n".join(lines) + "\n"


def _title(results: Mapping[str, Any]) -> str:
    return f"{results['data']['name']} in the protocol of PFedRec"


def _letters(results: Mapping[str, Any]) -> dict[str, str]:
    """A letter for every departure, in the order in which they come."""
    shorts = dict.fromkeys(part["short"] for row in results["rows"] for part in row["departures"])
    return {short: string.ascii_lowercase[place] for place, short in enumerate(shorts)}


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(row: Mapping[str, Any]) -> list[str]:
    metrics, published, gap = row["metrics"], row["published"], row["gap"]
    stopped = ["stopped early"] if any(row["stopped"]) else []
    return [
        _name(row["method"]),
        "as published" if row["protocol"] == "published" else "after the split",
        _NONE if published is None else _pair(published["hr"], published["ndcg"]),
        _interval(metrics["hr"]),
        _interval(metrics["ndcg"]),
        _NONE if gap is None else _pair(gap["hr"], gap["ndcg"], sign=True),
        _pair(metrics["whole_hr"]["value"], metrics["whole_ndcg"]["value"]),
        ", ".join(map(str, row["best_rounds"])) if row["runs"][0] else _NONE,
        "; ".join([*stopped, *(part["short"] for part in row["departures"])]) or _NONE,
    ]


def _name(method: str) -> str:
    return "item popularity" if method == "popularity" else title_of(method)


def _percent(value: float, *, sign: bool = False) -> str:
    return f"{100 * value:+.2f}" if sign else f"{100 * value:.2f}"


def _pair(hr: float, ndcg: float, *, sign: bool = False) -> str:
    return f"{_percent(hr, sign=sign)} / {_percent(ndcg, sign=sign)}"


def _interval(found: Mapping[str, float], *, sign: bool = False) -> str:
    value, low, high = (_percent(found[key], sign=sign) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
