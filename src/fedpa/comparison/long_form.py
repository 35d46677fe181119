"""Results of a comparison in long form: one value a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from fedpa.comparison.results import Results

__all__ = ["csv_text"]

_CSV = (
    "task", "method", "title", "family", "inputs", "seed", "metric", "reference", "value", "low", "high", "p", "p_holm",
    "error",
)  # fmt: skip


def _csv_lines(results: Results) -> Iterator[dict[str, Any]]:
    for task in results.tasks:
        for row in task.rows:
            same = {"task": task.task, **row.model_dump(include={"method", "title", "family", "inputs"})}
            if row.error is not None:
                yield {**same, "error": row.error}
                continue
            for metric, values in row.by_seed.items():
                for seed, value in zip(row.seeds, values, strict=True):
                    yield {**same, "seed": seed, "metric": metric, "value": value}
            for metric, measured in row.metrics.items():
                yield {**same, "seed": "all", "metric": metric, **measured.model_dump()}
            for reference, found in row.differences.items():
                for metric, difference in found.items():
                    one = {**same, "seed": "all", "metric": metric, "reference": reference}
                    yield {**one, **difference.model_dump()}


def csv_text(results: Results) -> str:
    """All values in long form, with a header.

    A line holds a method's metric with one seed, or with ``seed`` = ``all`` its mean and interval; where ``reference``
    is given, minus that method's. A method that failed has one line, with ``error``. What is undefined is empty.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, _CSV, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_csv_lines(results))
    return file.getvalue()
