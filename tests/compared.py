"""Made-up results of a comparison, small enough to check by hand."""

from __future__ import annotations

from typing import Any, Literal

from fedpa.comparison.results import DatasetSummary, Difference, Measured, Results, Round, Row, TaskResults

CLICK = ("gauc", "auc", "logloss")
NASTY = 'a <b>bold</b> & "quoted" | method\'s'


def row(
    method: str, title: str, family: Literal["baseline", "device", "ceiling", "federated", "adapter"], **more: Any
) -> Row:
    """A row of two seeds whose GAUC is 0.6 in both, better than the foundation's by 0.01."""
    gain = Difference(value=0.01, low=-0.002, high=0.022, p=0.02, p_holm=0.04)
    filled: dict[str, Any] = {
        "inputs": "features, counters",
        "seeds": [0, 2],
        "metrics": {name: Measured(value=0.6, low=0.58, high=0.62) for name in CLICK},
        "by_seed": {name: [0.59, 0.61] for name in CLICK},
        "differences": {"foundation": dict.fromkeys(CLICK, gain)},
        "bytes_up": 0.0,
        "bytes_down": 0.0,
    }
    return Row(method=method, title=title, family=family, **(filled | more))


def trained(method: str, title: str, family: Literal["device", "federated", "adapter"], up: float, **more: Any) -> Row:
    """A row of a method that trains."""
    filled: dict[str, Any] = {
        "settings": {"lr": 0.01},
        "settings_from": "tuned",
        "trials": 20,
        "bytes_up": up,
        "bytes_down": 2 * up,
        "rounds": [9, 12],
        "best_rounds": [4, 7],
        "rounds_to_99": [2, None],
        "device_seconds": 0.0012,
        "parameters": {"shared": 4000, "personal": 412},
        "device_parameters": 412,
        "by_round": [Round(round=k, seeds=2, metrics={"gauc": 0.55 + k / 100, "auc": 0.6}) for k in range(4)],
        "by_history": {
            "10-19": {"gauc": 0.61, "auc": 0.71, "users": 5},
            "5-9": {"gauc": 0.6, "auc": 0.7, "users": 1234},
        },
        "by_group": {"age <5": {"young": {"gauc": 0.6, "auc": 0.7, "users": 3}, "old": {"gauc": None, "users": 2}}},
        "cold": {"support_0": {"gauc": 0.51, "auc": 0.52}, "support_5": {"gauc": 0.53, "auc": 0.54}},
    }
    return row(method, title, family, **(filled | more))


def results(*more: Row, **changes: Any) -> Results:
    """A comparison on both tasks, one method of which failed."""
    click = TaskResults(
        task="click",
        reference=["foundation"],
        metrics=list(CLICK),
        users=100,
        test_rows=250,
        rows=[
            row("two-counters", "two counters", "baseline", seeds=[0], by_seed={name: [0.6] for name in CLICK}),
            row("foundation", "frozen foundation", "baseline", differences={}),
            trained("head-only", "head only", "device", 0.0),
            trained("fedavg", "FedAvg", "federated", 450_000.0),
            Row(method="fedrap", title="FedRAP", family="federated", inputs="item ids", error="loss <nan> | stopped"),
            trained("fedpa", "FedPA", "adapter", 17_972.0),
            trained("my.py:Mine", NASTY, "adapter", 17_972.0),
            *more,
        ],
        left_out={"oracle": "needs synthetic users"},
        notes=["Rows & <users>."],
    )
    ranked = Measured(value=0.1, low=0.05, high=0.15)
    topk = TaskResults(
        task="topk",
        reference=["foundation"],
        metrics=["ndcg@10"],
        rows=[Row(method="foundation", title="frozen foundation", family="baseline", metrics={"ndcg@10": ranked})],
    )
    values: dict[str, Any] = {
        "fedpa": "1.2.3",
        "dataset": DatasetSummary(name="kuairand-pure", hash="0123456789abcdef", counts={"users": 1234}),
        "seeds": 2,
        "draws": 1000,
        "command": "fedpa compare dataset --methods all",
        "seconds": 90.0,
        "tasks": [click, topk],
        "failed": {"click fedrap seed 0": "loss <nan> | stopped"},
    }
    return Results(**(values | changes))
