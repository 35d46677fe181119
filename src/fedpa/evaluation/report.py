"""Everything worth saying about click predictions, as a dictionary, a terminal table or Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from fedpa.errors import FedpaError
from fedpa.evaluation.bootstrap import bootstrap_users
from fedpa.evaluation.metrics import (
    auc,
    calibration_ratio,
    check_rows,
    gauc,
    log_loss,
    normalised_entropy,
    user_codes,
    worse_off_share,
    worst_tenth_lift,
)

__all__ = ["HISTORY_BINS", "click_report", "comparison_table", "markdown_table"]

HISTORY_BINS = ((0, 4), (5, 9), (10, 19), (20, 49), (50, None))
"""First and last number of training rows of each bin of users."""

_COLUMNS = (("gauc", "GAUC"), ("auc", "AUC"), ("logloss", "log-loss"))


def click_report(
    users: npt.ArrayLike,
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    baseline: npt.ArrayLike | None = None,
    groups: Mapping[str, npt.ArrayLike] | None = None,
    history: npt.ArrayLike | None = None,
    bootstrap: int = 0,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """All click metrics of one model on one set of rows.

    Parameters
    ----------
    users, labels, scores : array [rows]
        As in `metrics.check_rows`; scores are probabilities.
    baseline : array [rows], optional
        Probabilities of the model to compare with, for ``worse_off_share`` and ``worst_tenth_lift``.
    groups : mapping of str to array [rows], optional
        The group of each row's user, by the name of the grouping.
    history : int array [rows], optional
        Training rows of each row's user.
    bootstrap : int
        Draws of users for intervals; 0 for none.
    seed : int
        Of the draws.
    level : float
        Of the intervals.

    Returns
    -------
    dict
        Ready for JSON. ``gauc`` (the headline), ``gauc_users``, ``gauc_rows``, ``auc``, ``logloss``,
        ``normalised_entropy``, ``calibration_ratio``, ``rows``, ``users``, ``click_rate``,
        ``worse_off_share``, ``worst_tenth_lift``; ``bootstrap`` (`Bootstrap.as_dict`, or ``None``);
        ``by_group`` ``{name: {value: metrics}}``; ``by_history`` ``{"0-4": metrics, ...}``; and ``reasons``
        ``{metric: why it is None}``, of this report and of each part of it.

    Raises
    ------
    FedpaError
        Where an array has another length than the rows, a label is neither 0 nor 1, or a score is not
        finite or not a probability; the message says how many.
    """
    y, s, u = check_rows(labels, scores, users, probabilities=True)
    report, reasons = _metrics(u, y, s)
    if baseline is None:
        report |= {"worse_off_share": None, "worst_tenth_lift": None}
        reasons |= dict.fromkeys(("worse_off_share", "worst_tenth_lift"), "no baseline was given")
    else:
        report["worse_off_share"] = worse_off_share(u, y, s, baseline)
        report["worst_tenth_lift"] = worst_tenth_lift(u, y, s, baseline)
        if report["gauc"] is None:
            reasons |= dict.fromkeys(("worse_off_share", "worst_tenth_lift"), reasons["gauc"])
    report["bootstrap"] = None
    if bootstrap:
        drawn = bootstrap_users(u, y, s, baseline=baseline, draws=bootstrap, seed=seed, level=level)
        report["bootstrap"] = drawn.as_dict()
    report["by_group"] = {
        name: _by_value(u, y, s, _row_array(f"group {name!r}", values, y.size))
        for name, values in (groups or {}).items()
    }
    report["by_history"] = {} if history is None else _by_history(u, y, s, history)
    report["reasons"] = reasons
    return report


def _row_array(name: str, values: npt.ArrayLike, rows: int) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.shape != (rows,):
        raise FedpaError(f"{name} must have one value for each of the {rows} rows, got shape {array.shape}")
    return array


def _metrics(u: npt.NDArray[Any], y: npt.NDArray[Any], s: npt.NDArray[Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Metrics of checked rows, and why those that are None are."""
    value, gauc_users, gauc_rows = gauc(u, y, s)
    clicks = int(y.sum())
    report: dict[str, Any] = {
        "gauc": value,
        "gauc_users": gauc_users,
        "gauc_rows": gauc_rows,
        "auc": auc(y, s),
        "logloss": log_loss(y, s),
        "normalised_entropy": normalised_entropy(y, s),
        "calibration_ratio": calibration_ratio(y, s),
        "rows": y.size,
        "users": user_codes(u)[0].size,
        "click_rate": clicks / y.size if y.size else None,
    }
    if not y.size:
        why = "there are no rows"
    elif clicks in (0, y.size):
        why = f"all {y.size} rows have label {int(clicks > 0)}"
    else:
        why = "no user has both classes"
    return report, {name: why for name, number in report.items() if number is None}


def _part(u: npt.NDArray[Any], y: npt.NDArray[Any], s: npt.NDArray[Any], rows: npt.NDArray[Any]) -> dict[str, Any]:
    """Metrics of some of the rows, given by position."""
    report, reasons = _metrics(u[rows], y[rows], s[rows])
    return report | {"reasons": reasons}


def _by_value(
    u: npt.NDArray[Any], y: npt.NDArray[Any], s: npt.NDArray[Any], values: npt.NDArray[Any]
) -> dict[str, Any]:
    names, codes = user_codes(values.astype(str) if values.dtype == np.object_ else values)
    order = np.argsort(codes, kind="stable")
    end = np.cumsum(np.bincount(codes, minlength=names.size))
    return {
        str(name): _part(u, y, s, order[last - rows : last])
        for name, rows, last in zip(names.tolist(), np.diff(end, prepend=0), end, strict=True)
    }


def _by_history(
    u: npt.NDArray[Any], y: npt.NDArray[Any], s: npt.NDArray[Any], history: npt.ArrayLike
) -> dict[str, Any]:
    count = _row_array("history", history, y.size)
    report = {}
    for first, last in HISTORY_BINS:
        inside = (count >= first) if last is None else (count >= first) & (count <= last)
        name = f"{first}+" if last is None else f"{first}-{last}"
        report[name] = _part(u, y, s, np.flatnonzero(inside))
    return report


def _cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and text cells of a comparison: name, metrics, and intervals where any row has them."""
    with_interval = [key for key, _ in _COLUMNS if any(_interval(row, key) for row in rows)]
    header = ["method"]
    for key, title in _COLUMNS:
        header.append(title)
        if key in with_interval:
            level = next(row["bootstrap"]["level"] for row in rows if _interval(row, key))
            header.append(f"{level:.0%} interval")
    cells = []
    for row in rows:
        line = [str(row["name"])]
        for key, _ in _COLUMNS:
            number = row.get(key)
            line.append("-" if number is None else f"{number:.4f}")
            if key in with_interval:
                line.append(_interval(row, key) or "-")
        cells.append(line)
    return header, cells


def _interval(row: Mapping[str, Any], key: str) -> str | None:
    interval = ((row.get("bootstrap") or {}).get("intervals") or {}).get(key) or {}
    low, high = interval.get("low"), interval.get("high")
    return None if low is None or high is None else f"{low:.4f} to {high:.4f}"


def comparison_table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """Methods side by side, for the terminal.

    Parameters
    ----------
    rows : sequence of mappings
        Reports of `click_report`, each with a ``name``; shown in this order. A missing metric is a dash.
    title : str, optional

    Returns
    -------
    rich.table.Table
    """
    header, cells = _cells(rows)
    table = Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for line in cells:
        table.add_row(*line)
    return table


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of `comparison_table` as Markdown, ending in a newline."""
    header, cells = _cells(rows)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, rule, *escaped])
