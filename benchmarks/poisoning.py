"""Measure what poisoned users do to a federation, with and without each robust aggregate.

    python benchmarks/poisoning.py --out poisoning.json
    python benchmarks/poisoning.py --dataset DATASET --foundation FOUNDATION --participation 0.1 --out poisoning.json

Without a data set, synthetic users are made. A share of the private users is poisoned: their changes are turned round
(``flip``) or scaled (``scale``), or they train on made-up clicks on one item that nobody is shown, and send that scaled
(``promote``). Scores are those of the honest users' test rows after the last round; exposure is the share of honest
users who have the promoted item among their ten best unseen ones.

``--sweep`` looks for the breaking point: the share is raised until a defence fails, or lowered until it holds. It has
failed when the honest users would be better off ``alone``, each with its personal parts and nothing from the server (by
the sum of AUC and GAUC over the same rows), or when a tenth of them are shown the promoted item.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa import load_dataset, load_foundation, prepare, pretrain
from fedpa.data.dataset import Dataset, Part
from fedpa.data.sources import open_source
from fedpa.data.synthetic import synthesise
from fedpa.draws import uniform
from fedpa.errors import FedpaError
from fedpa.evaluation.metrics import auc, gauc
from fedpa.federation.rows import ShardRows
from fedpa.federation.server import Server
from fedpa.federation.shard import Shard
from fedpa.federation.upload import FRACTION_BITS, TableRows, Upload, vector_name
from fedpa.methods import FederatedMethod, find_method
from fedpa.models.foundation import Foundation
from fedpa.recommend import Recommender
from fedpa.settings import parse_assignments

CPU = torch.device("cpu")
SWEEP = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.49)
EXPOSED = 0.1
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Attack:
    """What poisoned users do: ``none``, ``flip``, ``scale`` or ``promote``; how many, and how strongly."""

    kind: str
    share: float = 0.0
    strength: float = 1.0


class Bench:
    """A data set with its foundation, and runs on it."""

    def __init__(self, dataset: Dataset, foundation: Foundation, options: argparse.Namespace) -> None:
        self.dataset, self.foundation, self.options = dataset, foundation, options
        method = self.method("mean")
        plain = ShardRows.of(dataset, dtype=torch.float32, device=CPU)
        self.tally = method.tally(dataset, plain)
        self.rows = method.rows(foundation, dataset, plain, self.tally)
        self.draw = uniform(options.seed, "ranking", (), self.rows.keys)

    def method(self, defence: str, norm_bound: float = 1.0) -> FederatedMethod:
        """FedPA with everything that is uploaded in the server's sight."""
        values = {
            "aggregation": defence,
            "visible": "rows",
            "trim": self.options.trim,
            "norm_bound": norm_bound,
            "participation": self.options.participation,
            **parse_assignments(self.options.set),
        }
        return cast(FederatedMethod, find_method("fedpa").configured("default", values))

    @cached_property
    def target(self) -> int:
        """An item of middling popularity among the users' training rows."""
        count = np.bincount(self.rows.items.numpy()[self.rows.part == Part.TRAIN], minlength=self.dataset.n_items)
        known = np.flatnonzero(count)
        return int(known[np.argsort(count[known], kind="stable")[len(known) // 2]])

    @cached_property
    def norm_bound(self) -> float:
        """The middle length of an honest change in the first round."""
        with tempfile.TemporaryDirectory() as folder:
            shard, server = self.engine(self.method("mean"), self.rows, folder)
            return float(np.median(lengths(shard.round(server.state, 1))))

    def engine(self, method: FederatedMethod, rows: ShardRows, folder: str) -> tuple[Shard, Server]:
        """All users in one shard, and a server."""
        model = method.model(self.foundation, self.dataset, self.options.seed, CPU)
        store = Shard.new_store(model, rows, method.settings, Path(folder), sync=False)
        shard = Shard(model, rows, method.settings, store, seed=self.options.seed, rule=method)
        return shard, method.server(model.layout)

    def poisoned(self, share: float) -> Bools:
        """The first so many users by their draw, among those who train."""
        able = np.flatnonzero(self.rows.train > 0)
        found = np.zeros(len(self.rows.users), bool)
        found[able[np.argsort(self.draw[able], kind="stable")[: round(share * len(able))]]] = True
        return found

    def made_up(self, bad: Bools) -> ShardRows:
        """Rows in which the training rows of some users are clicks on the promoted item."""
        rows = self.rows
        change = torch.from_numpy(bad[rows.user] & (rows.part == Part.TRAIN))
        example = int(np.flatnonzero((rows.items.numpy() == self.target) & (rows.part == Part.TRAIN))[0])
        items, labels, context = rows.items.clone(), rows.labels.clone(), rows.context.clone()
        items[change], labels[change] = self.target, 1.0
        of_item = slice(0, self.dataset.n_item_context)
        context[change, of_item] = context[example, of_item]
        return replace(rows, items=items, labels=labels, context=context)

    def run(self, defence: str, attack: Attack) -> dict[str, Any]:
        """One run and its scores, and whether the attack has had its way."""
        begin = time.perf_counter()
        bad = self.poisoned(attack.share)
        rows = self.made_up(bad) if attack.kind == "promote" else self.rows
        factor = -attack.strength if attack.kind == "flip" else attack.strength
        method = self.method(defence, self.norm_bound if defence == "norm_bound" else 1.0)
        found = asdict(attack) | {"defence": defence, "poisoned": int(bad.sum())}
        found |= {"alone": self.quality(self.alone, ~bad), "auc": None, "gauc": None, "failed": True}
        with tempfile.TemporaryDirectory() as folder:
            shard, server = self.engine(method, rows, folder)
            # A run that diverges is a result too.
            with contextlib.suppress(FedpaError):
                for number in range(1, self.options.rounds + 1):
                    upload = shard.round(server.state, number)
                    server.step(tampered(upload, server, rows.users[bad], factor) if bad.any() else upload)
                found |= self.quality(shard.scores(server.state), ~bad)
                if attack.kind in {"none", "promote"}:
                    found["exposure"] = self.exposure(shard, server, ~bad)
                found["failed"] = failed(found)
        return found | {"seconds": round(time.perf_counter() - begin, 1)}

    @cached_property
    def alone(self) -> npt.NDArray[np.floating]:
        """Scores of users who train their personal parts in as many rounds and get nothing from the server."""
        with tempfile.TemporaryDirectory() as folder:
            shard, server = self.engine(self.method("mean"), self.rows, folder)
            for number in range(1, self.options.rounds + 1):
                shard.round(server.state, number)
            return shard.scores(server.state)

    @cached_property
    def frozen(self) -> npt.NDArray[np.floating]:
        """Scores of the foundation."""
        with tempfile.TemporaryDirectory() as folder:
            shard, server = self.engine(self.method("mean"), self.rows, folder)
            return shard.scores(server.state)

    def quality(self, scores: npt.NDArray[np.floating], honest: Bools) -> dict[str, float | None]:
        """Of the honest users' test rows."""
        here = (self.rows.part == Part.TEST) & honest[self.rows.user]
        labels, owner = self.rows.labels.numpy()[here].astype(np.int8), self.rows.user[here]
        return {"auc": auc(labels, scores[here]), "gauc": gauc(owner, labels, scores[here]).value}

    def exposure(self, shard: Shard, server: Server, honest: Bools) -> float:
        """Share of some honest users who have the promoted item among their ten best unseen ones."""
        recommender = Recommender(self.dataset, shard.model, shard, server, self.foundation.inputs)
        able = np.flatnonzero(honest & (shard.rows.train > 0))
        asked = able[np.argsort(-self.draw[able], kind="stable")[: self.options.asked]]
        item = self.dataset.item_ids[self.target]
        users = (self.dataset.user_ids[int(shard.rows.users[user])] for user in asked)
        return float(np.mean([item in recommender.recommend(user).items for user in users]))


def tampered(upload: Upload, server: Server, bad: npt.NDArray[np.int64], factor: float) -> Upload:
    """The upload in which some users' changes are multiplied, sums included."""
    unit = 2.0 ** FRACTION_BITS[server.dtype]
    pieces = []
    for one in upload.seen:
        times = np.where(np.isin(one.users, bad), factor, 1.0).astype(np.float32)
        pieces.append(replace(one, values=one.values * torch.from_numpy(times)[:, None]))
    sums = []
    for vector, total in zip(server.layout.uploaded, upload.sums, strict=True):
        rows, width = (vector.values, vector.size) if vector.table is None else (vector.table.rows, vector.table.width)
        added = torch.zeros(rows, width, dtype=torch.int64)
        for one in of(pieces, vector_name(vector)):
            units = (one.values.double() * unit).round_().to(torch.int64)
            added.index_add_(0, torch.from_numpy(one.ids), units)
        sums.append(added.view(total.shape))
    return replace(upload, seen=tuple(pieces), sums=sums)


def of(pieces: list[TableRows], name: str) -> Iterator[TableRows]:
    return (one for one in pieces if one.table == name)


def lengths(upload: Upload) -> npt.NDArray[np.float64]:
    """Length of every participant's whole change."""
    users = np.unique(np.concatenate([one.users for one in upload.seen]))
    square = np.zeros(len(users))
    for one in upload.seen:
        values: Tensor = one.values.double()
        np.add.at(square, np.searchsorted(users, one.users), values.square().sum(1).numpy())
    return np.sqrt(square)


def failed(found: dict[str, Any]) -> bool:
    """Whether the attack has had its way."""
    if found["kind"] == "promote":
        return bool(found["exposure"] >= EXPOSED)
    return bool(found["auc"] + found["gauc"] < found["alone"]["auc"] + found["alone"]["gauc"])


def measured(bench: Bench, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All runs, one after another."""
    attacks = [Attack(kind, strength=float(times)) for kind, _, times in (a.partition(":") for a in options.attacks)]
    for defence in options.defences:
        yield bench.run(defence, Attack("none"))
        for attack in attacks:
            for share in options.shares:
                found = bench.run(defence, replace(attack, share=share))
                yield found
                broken = found["failed"]
            # From the greatest share up to where it fails, or down to where it does not.
            near, way = options.shares[-1], -1 if broken else 1
            for share in [
                s for s in SWEEP[::way] if options.sweep and way * s > way * near and s not in options.shares
            ]:
                found = bench.run(defence, replace(attack, share=share))
                yield found
                if found["failed"] != broken:
                    break


def synthetic(users: int, seed: int, folder: Path) -> tuple[Dataset, Foundation]:
    synthesise(folder / "raw", users=users, items=1000, seed=seed, rows_per_user=80)
    dataset = prepare(open_source("kuairand-pure", folder / "raw"), folder / "dataset", seed=seed)
    return dataset, pretrain(dataset, out=folder / "foundation", seed=seed, reader="none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--foundation", type=Path)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--participation", type=float, default=1.0)
    parser.add_argument("--trim", type=float, default=0.1)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.01, 0.05])
    parser.add_argument("--attacks", nargs="*", default=["flip:10", "scale:100", "promote:1", "promote:10"])
    parser.add_argument("--defences", nargs="*", default=["mean", "trimmed_mean", "median", "norm_bound"])
    parser.add_argument("--asked", type=int, default=300, help="honest users whose ten best items are looked at")
    parser.add_argument("--set", nargs="*", default=[], help="other settings of FedPA, as key=value")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.dataset:
            dataset, foundation = load_dataset(options.dataset), load_foundation(options.foundation)
        else:
            dataset, foundation = synthetic(options.users, options.seed, Path(folder))
        bench = Bench(dataset, foundation, options)
        report: dict[str, Any] = {
            "dataset": dataset.manifest["source"],
            "users": int((bench.rows.train > 0).sum()),
            "items": dataset.n_items,
            "rounds": options.rounds,
            "participation": options.participation,
            "trim": options.trim,
            "set": options.set,
            "norm_bound": bench.norm_bound,
            "target_rows": int((bench.rows.items.numpy() == bench.target).sum()),
            "frozen": bench.quality(bench.frozen, np.ones(len(bench.rows.users), bool)),
            "alone": bench.quality(bench.alone, np.ones(len(bench.rows.users), bool)),
            "runs": [],
        }
        for found in measured(bench, options):
            report["runs"].append(found)
            print(json.dumps(found), flush=True)
            if options.out:
                options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
