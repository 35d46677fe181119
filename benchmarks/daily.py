"""What following users day by day is worth: foundation frozen, adapted once, daily, and anew every day.

    python benchmarks/daily.py --raw KUAIRAND --division DIVISION.csv --out daily --svg docs/daily.svg

The foundation is trained and adapted on the days before ``--first``; then every day is judged by what was known when it
began. All rows before the last day that has passed are for training, that day's for validation. Statistics of items and
users are those of the day for every way, so that only what was trained differs. Intervals are of users, each with all
its days, and seeds, drawn in pairs. Seconds are the processor's, which an idle machine's clock shows too where it
computes on one thread.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpa import Dataset, Run, adapt, continue_run, open_source, prepare, pretrain
from fedpa.comparison.plots import Canvas, Linear, domain, spread
from fedpa.data.dataset import Part
from fedpa.data.until import instant
from fedpa.evaluation.bootstrap import interval_of
from fedpa.evaluation.metrics import auc, gauc, user_codes
from fedpa.evaluation.weighted import CLICK_METRICS, Draws, WeightedClicks, drawn_users, mean_of_drawn

COUNTED = "frozen, item counts"
WAYS = ("frozen", COUNTED, "adapted once", "adapted daily", "adapted anew")
REFERENCES = ("frozen", "adapted once")
Scores = npt.NDArray[np.float32]


class Days(NamedTuple):
    """Which days there are and where they begin."""

    first: date
    last: date
    zone: str

    def all(self) -> list[date]:
        """Days to be judged."""
        return [self.first + timedelta(days=k) for k in range((self.last - self.first).days + 1)]

    def cuts(self, day: date) -> tuple[int, int, int]:
        """When the day before, the day and the day after begin."""
        begin, middle, end = (instant(f"{day + timedelta(days=k)}T00:00{self.zone}") for k in (-1, 0, 1))
        return begin, middle, end


@dataclass
class Judged:
    """One day's test rows, and by way the scores of every seed and what it took."""

    user: npt.NDArray[Any]
    label: npt.NDArray[Any]
    scores: dict[str, list[Scores]] = field(default_factory=dict)
    costs: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def add(self, way: str, run: Run, seconds: float) -> None:
        """Note a run."""
        here = run.rows.part == Part.TEST
        self.scores.setdefault(way, []).append(run.scores[here].astype(np.float32))
        trained = [line for line in run.history if line["participants"]]
        users = max(1, len(run.rows.users))
        cost = {
            "seconds": seconds,
            "rounds": len(trained),
            "gained": float(run.summary["best_round"] != run.history[0]["round"]),
            "bytes_up": sum(line["bytes_up"] for line in trained) / users,
            "bytes_down": sum(line["bytes_down"] for line in trained) / users,
            "bytes_item_counts": run.summary["bytes_item_counts_per_user"],
        }
        self.costs.setdefault(way, []).append(cost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--division", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="Folder for data sets and runs; daily.json is left.")
    parser.add_argument("--svg", type=Path, help="Where to draw.")
    parser.add_argument("--first", type=date.fromisoformat, default=date(2022, 4, 30))
    parser.add_argument("--last", type=date.fromisoformat, default=date(2022, 5, 8))
    parser.add_argument("--zone", default="+08:00", help="Whose midnight ends a day.")
    parser.add_argument("--rounds", type=int, default=30, help="Most rounds of the first adaptation.")
    parser.add_argument("--daily-rounds", type=int, default=5, help="Most rounds of every later day.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    days = Days(options.first, options.last, options.zone)
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.process_time()
    data, seconds = prepared(options.raw, options.division, days, options.out / "data")
    judged: dict[date, Judged] = {}
    for seed in range(options.seeds):
        follow(data, judged, options, seed)
    report = {
        "first": str(days.first),
        "seeds": options.seeds,
        "rounds": options.rounds,
        "daily_rounds": options.daily_rounds,
        "seconds_to_prepare": seconds,
        **summary(judged, options.draws),
        "seconds": time.process_time() - begin,
    }
    (options.out / "daily.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if options.svg is not None:
        options.svg.write_text(drawn(report), encoding="utf-8")
    print(markdown(report))


def prepared(raw: Path, division: Path, days: Days, out: Path) -> tuple[dict[date, Dataset], float]:
    """A data set per day, those after the first like it, and the median seconds to make one."""
    found: dict[date, Dataset] = {}
    seconds = []
    for day in days.all():
        begin, middle, end = days.cuts(day)
        timer = time.process_time()
        found[day] = prepare(
            open_source("kuairand-pure", raw),
            out / str(day),
            division=division,
            like=found.get(days.first),
            cuts=(begin, middle),
            until=end,
            overwrite=True,
        )
        seconds.append(time.process_time() - timer)
    return found, float(np.median(seconds))


def follow(data: dict[date, Dataset], judged: dict[date, Judged], options: argparse.Namespace, seed: int) -> None:
    """One seed: a foundation, a first adaptation, and every day after it."""
    place = options.out / f"seed-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    first = next(iter(data))
    foundation = pretrain(data[first], seed=seed, out=place / "foundation")
    known: dict[str, Any] = {"foundation_path": place / "foundation", "seed": seed, "rounds": options.rounds}
    timer = time.process_time()
    once = daily = adapt(foundation, data[first], out=place / str(first), **known)
    cost = time.process_time() - timer
    counts = {"item_counts": once.config["settings"]["item_counts"]}
    for day, today in data.items():
        frozen, counted = (
            adapt(foundation, today, method="foundation", out=place / f"{name}-{day}", **settings)
            for name, settings in (("frozen", {}), ("counted", counts))
        )
        rows, here = frozen.rows, frozen.rows.part == Part.TEST
        ids = today.user_ids.to_numpy()[rows.users[rows.user[here]]]
        note = judged.setdefault(day, Judged(ids, rows.labels.numpy()[here]))
        note.add("frozen", frozen, 0.0)
        note.add(COUNTED, counted, 0.0)
        if day == first:
            for way in WAYS[2:]:
                note.add(way, once, cost)
            continue
        note.add("adapted once", continue_run(once, today, out=place / f"once-{day}", rounds=0), 0.0)
        timer = time.process_time()
        daily = continue_run(daily, today, out=place / str(day), rounds=options.daily_rounds, patience=2)
        note.add("adapted daily", daily, time.process_time() - timer)
        timer = time.process_time()
        anew = adapt(foundation, today, out=place / f"anew-{day}", **known)
        note.add("adapted anew", anew, time.process_time() - timer)
        print(f"seed {seed}, {day}: {daily.summary['continues']['users']}", flush=True)


def summary(judged: Mapping[date, Judged], draws: int) -> dict[str, Any]:
    """Values by day and of all days together, differences with their intervals, and costs."""
    by_day: dict[str, Any] = {}
    for day, note in judged.items():
        by_day[str(day)] = {
            "rows": len(note.label),
            "users": len(np.unique(note.user)),
            "ways": {
                way: {
                    "auc": float(np.mean([auc(note.label, run) for run in runs])),
                    "gauc": float(np.mean([gauc(note.user, note.label, run).value for run in runs])),
                    "cost": {key: float(np.mean([c[key] for c in note.costs[way]])) for key in note.costs[way][0]},
                }
                for way, runs in note.scores.items()
            },
        }
    later = list(judged.values())[1:]
    return {
        "rows_of_later_days": sum(len(note.label) for note in later),
        "users_of_later_days": len(np.unique(np.concatenate([note.user for note in later]))),
        "later_days": together(later, draws),
        "by_day": by_day,
    }


def together(judged: Sequence[Judged], draws: int) -> dict[str, Any]:
    """Means over days, since scores of two days' models are not to be compared, with intervals over users and seeds.

    A user who is drawn counts on every day.
    """
    names = np.unique(np.concatenate([note.user for note in judged]))
    seeds = len(judged[0].scores[WAYS[0]])
    places, models = [], []
    for note in judged:
        own, codes = user_codes(note.user)
        places.append(np.searchsorted(names, own))
        scores = {way: [run.astype(np.float64) for run in runs] for way, runs in note.scores.items()}
        labels = note.label.astype(np.int64)
        models.append({way: [WeightedClicks(own, codes, labels, s) for s in runs] for way, runs in scores.items()})

    def values(some: Draws) -> dict[str, npt.NDArray[np.float64]]:
        """Metrics [metrics, draws] of every way, means over days and the seeds drawn."""
        found = {}
        for way in WAYS:
            by_seed = np.zeros((seeds, len(CLICK_METRICS), some.counts.shape[1]))
            for place, model in zip(places, models, strict=True):
                own = Draws(some.counts[place], some.weights[place], some.runs)
                by_seed += np.stack([run(own) for run in model[way]]) / len(places)
            found[way] = mean_of_drawn(by_seed, some.runs)
        return found

    once = np.ones((len(names), 1), np.int32)
    observed = values(Draws(once, once.astype(np.float64), {seeds: np.ones((1, seeds), np.int64)}))
    pieces = [values(some) for some in drawn_users(len(names), [seeds], draws, 0, len(names))]
    drawn_values = {way: np.concatenate([piece[way] for piece in pieces], 1) for way in WAYS}
    found: dict[str, Any] = {}
    for way in WAYS:
        against = {f"minus {other}": other for other in REFERENCES if other != way}
        found[way] = {}
        for i, name in enumerate(CLICK_METRICS[:3]):
            found[way][name] = shown(observed[way][i], drawn_values[way][i])
            for title, other in against.items():
                gain = observed[way][i] - observed[other][i], drawn_values[way][i] - drawn_values[other][i]
                found[way].setdefault(title, {})[name] = shown(*gain)
    return found


def shown(observed: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    """A value with its interval."""
    interval = interval_of(float(observed[0]), values, 0.95)
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def markdown(report: Mapping[str, Any]) -> str:
    """The tables for people."""

    def cell(each: Mapping[str, float], sign: str = "") -> str:
        return f"{each['value']:{sign}.4f} [{each['low']:{sign}.4f}, {each['high']:{sign}.4f}]"

    lines = ["| | GAUC | AUC | GAUC minus once | AUC minus once |", "|---|---|---|---|---|"]
    for way, values in report["later_days"].items():
        against = values.get("minus adapted once")
        gains = ["-", "-"] if against is None else [cell(against[name], "+") for name in ("gauc", "auc")]
        lines.append(f"| {way} | {cell(values['gauc'])} | {cell(values['auc'])} | {gains[0]} | {gains[1]} |")
    lines += ["", "| day | rows | " + " | ".join(f"{way}: GAUC, AUC" for way in WAYS) + " |", "|---" * 7 + "|"]
    for day, facts in report["by_day"].items():
        values = [f"{facts['ways'][way]['gauc']:.4f}, {facts['ways'][way]['auc']:.4f}" for way in WAYS]
        lines.append(f"| {day} | {facts['rows']} | " + " | ".join(values) + " |")
    lines += ["", "| a day | seconds | rounds | kB up | kB down |", "|---|---|---|---|---|"]
    for way in WAYS[3:]:
        costs = [facts["ways"][way]["cost"] for facts in list(report["by_day"].values())[1:]]
        mean = {key: float(np.mean([cost[key] for cost in costs])) for key in costs[0]}
        lines.append(
            f"| {way} | {mean['seconds']:.1f} | {mean['rounds']:.1f} | {mean['bytes_up'] / 1e3:.1f} | "
            f"{mean['bytes_down'] / 1e3:.1f} |"
        )
    return "\n".join(lines)


_STYLE = """<style>svg{background:#fff}text{font:11px system-ui,sans-serif;fill:#1b1f23}.grid{stroke:#d6dade}
.title{font-weight:600}.line{fill:none;stroke-width:1.8;stroke:var(--c)}.leader{stroke:#8b949e;stroke-width:.7}
.mark{fill:var(--c);stroke:#fff;stroke-width:.5}.w0{--c:#3d4650}.w1{--c:#8a2f8f}.w2{--c:#a64b00}.w3{--c:#0b7a4b}
.w4{--c:#0a66c2}</style>"""
_MARKS = ("baseline", "ceiling", "device", "adapter", "federated")


def drawn(report: Mapping[str, Any]) -> str:
    """GAUC and AUC by day, a line for each way."""
    days, (width, height) = list(report["by_day"]), (900, 640)
    canvas = Canvas(width, height, "GAUC and AUC by day; the numbers are in the tables", "lines")
    left, right = 60, width - 190
    across = Linear(0, len(days) - 1, left + 14, right - 14)
    for panel, (name, title) in enumerate((("gauc", "GAUC, test rows of the day"), ("auc", "AUC"))):
        top = 30 + panel * 310
        bottom = top + 250
        values = {way: [report["by_day"][day]["ways"][way][name] for day in days] for way in WAYS}
        scale = Linear(*domain(value for line in values.values() for value in line), bottom, top)
        canvas.text(left, top - 14, title, "title")
        for tick in scale.ticks(6):
            canvas.line(left, scale(tick), right, scale(tick), "grid")
            canvas.text(left - 6, scale(tick), f"{tick:g}", text_anchor="end")
        for k, day in enumerate(days):
            canvas.text(across(k), bottom + 14, day[5:], text_anchor="middle")
        ends = spread([scale(line[-1]) for line in values.values()], 14.0, top + 4.0, bottom - 4.0)
        for i, ((way, line), end) in enumerate(zip(values.items(), ends, strict=True)):
            canvas.open("g", class_=f"w{i}")
            path = "".join(f"{'L' if k else 'M'}{across(k):.1f} {scale(v):.1f}" for k, v in enumerate(line))
            canvas.add("path", d=path, class_="line")
            for k, value in enumerate(line):
                canvas.mark(across(k), scale(value), _MARKS[i])
            canvas.line(across(len(days) - 1) + 6, scale(line[-1]), right + 6, end, "leader")
            canvas.text(right + 10, end, way)
            canvas.close("g")
    return (
        canvas.svg().replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{_STYLE}", 1)
        + "\n"
    )


if __name__ == "__main__":
    main()
