from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from compared import results, trained
from fedpa.comparison.columns import (
    by_numbers,
    bytes_text,
    columns,
    difference_text,
    interval_text,
    metric_title,
    p_text,
    reading,
)
from fedpa.comparison.results import Difference, Measured
from fedpa.comparison.tables import markdown, terminal_tables


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (17_972, "18.0 kB"), (452_000, "452 kB"),
        (999_700, "1.0 MB"), (1.2e9, "1.2 GB"),
    ],
)  # fmt: skip
def test_bytes(count: float | None, text: str) -> None:
    assert bytes_text(count) == text


def test_numbers_as_text() -> None:
    gain = Difference(value=0.01, low=-0.002, high=0.022, p=0.02, p_holm=0.0004)
    assert interval_text(Measured(value=0.59531, low=0.5813, high=0.6091)) == "0.5953 [0.5813, 0.6091]"
    assert interval_text(Measured(value=0.5)) == "0.5000"
    assert interval_text(Measured(value=None)) == interval_text(None) == "-"
    assert difference_text(gain) == "+0.0100 [-0.0020, +0.0220] p <0.001"
    assert difference_text(None) == "-"
    assert [p_text(p) for p in (None, 1.0, 0.0349, 0.001)] == ["-", "1.000", "0.035", "0.001"]
    assert [metric_title(name) for name in ("gauc", "logloss", "ndcg@10", "hr")] == [
        "GAUC",
        "log-loss",
        "NDCG@10",
        "HR",
    ]
    assert sorted(["500+", "(10,50]", "other", "0", "(0,10]"], key=by_numbers) == [
        "0", "(0,10]", "(10,50]", "500+", "other",
    ]  # fmt: skip


def test_the_columns_of_a_row() -> None:
    (task, _) = results().tasks
    shown = {column.title: column.text(task.rows[5]) for column in columns(task, task.reference)}
    assert shown == {
        "inputs": "features, counters",
        **dict.fromkeys(("GAUC", "AUC", "log-loss"), "0.6000 [0.5800, 0.6200]"),
        **dict.fromkeys(
            ("GAUC minus frozen foundation", "AUC minus frozen foundation"), "+0.0100 [-0.0020, +0.0220] p 0.040"
        ),
        "up": "18.0 kB",
        "down": "35.9 kB",
        "best round": "5.5 (4-7)",
        "rounds to 99%": "2",
        "device ms": "1.2",
        "on the device": "412",
        "settings": "tuned, 20 trials",
    }


def test_markdown_has_every_method_and_no_broken_line() -> None:
    text = markdown(results())
    table = [line for line in text.splitlines() if line.startswith("|")]
    click = table[:9]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in click} == {1 + 14}
    assert click[2].startswith("| two counters | features, counters | 0.6000 [0.5800, 0.6200] |")
    assert "| FedRAP (failed) | item ids | - |" in text
    assert "- FedRAP: loss &lt;nan> | stopped" in text
    assert 'a &lt;b>bold&lt;/b> &amp; "quoted" \\| method\'s' in text
    assert "<b>" not in text
    assert "- oracle: needs synthetic users" in text
    assert "Rows &amp; &lt;users>." in text
    assert "This is no ranking" in text
    assert len(table) == 9 + 3


def test_too_few_draws_for_so_many_methods_are_named() -> None:
    # Five others: no corrected p below 2 * 5 / (draws + 1).
    (task, _) = results().tasks
    assert not any("no corrected p" in text for text in reading(results(draws=199), task))
    (said,) = [text for text in reading(results(draws=99), task) if "no corrected p" in text]
    assert "below 0.100: take at least 200 draws" in said


def test_terminal_tables_fit_120_columns() -> None:
    more = [trained(f"m{i}", "FedPA without personal embeddings and some", "adapter", 452_000.0) for i in range(30)]
    buffer = io.StringIO()
    console = Console(file=buffer, width=120)
    for table in terminal_tables(results(*more)):
        assert console.measure(table).maximum <= 120
        console.print(table)
    text = buffer.getvalue()
    assert "…" not in text
    assert "+0.0100 [-0.0020, +0.0220]" in text
    (failed,) = [line.split() for line in text.splitlines() if line.strip().startswith("FedRAP")]
    assert failed == ["FedRAP", "failed"]
    (mine,) = [line.split() for line in text.splitlines() if line.strip().startswith("FedPA ") and "18.0" in line]
    assert " ".join(mine) == "FedPA 0.6000 0.6000 0.6000 +0.0100 [-0.0020, +0.0220] 0.040 18.0 kB 7"
