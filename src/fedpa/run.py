"""A finished adaptation: load it, score, evaluate, recommend, forget."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import safetensors
import safetensors.torch
import torch

from fedpa.artifacts import read_manifest, replace_file, write_json
from fedpa.data.dataset import COLD, Dataset, Part
from fedpa.errors import ArtifactError, ConfigError, DataError
from fedpa.evaluation.report import click_report
from fedpa.federation.coordinator import checkpoints, erase_downlink
from fedpa.federation.device import DeviceStore, node_generations
from fedpa.federation.kept import kept_tally
from fedpa.federation.node import divided
from fedpa.federation.rows import ShardRows
from fedpa.federation.rule import AdaptedModel
from fedpa.federation.server import Server
from fedpa.federation.shard import Shard
from fedpa.federation.touched import TouchedRows
from fedpa.methods import Baseline, FederatedMethod, FrozenFoundation, Method, TwoCounters
from fedpa.models.foundation import Foundation
from fedpa.models.inputs import Inputs
from fedpa.models.wrap.wrapped import limits_of
from fedpa.origin import dataset_of, foundation_of, method_of
from fedpa.recommend import CatalogueScorer, Recommendation, Recommender
from fedpa.settings import Settings
from fedpa.unfinished import read_config

if TYPE_CHECKING:
    from fedpa.evaluation.leave_one_out import LeaveOneOut

__all__ = ["Run", "load_run"]

PARTS = ("train", "val", "test", "unbiased")
_SUPPORT = (0, 1, 3, 5)


class Run:
    """A run folder.

    Parameters
    ----------
    path : Path
        The folder that `adapt` wrote.
    foundation, dataset : optional
        Used instead of the ones whose paths the run noted; their hashes must be the run's.

    Attributes
    ----------
    summary : dict
        ``summary.json``: best round, values per split, bytes, parameters by scope.
    config : dict
        ``config.yaml``: method, settings, seed, paths and hashes of foundation and data set.
    """

    def __init__(self, path: Path, *, foundation: Foundation | None = None, dataset: Dataset | None = None) -> None:
        self.path = path
        self.summary: dict[str, Any] = read_manifest(path, "run", "summary.json")
        self.config: dict[str, Any] = read_config(path)
        self.temporary: tempfile.TemporaryDirectory[str] | None = None
        self._foundation, self._dataset = foundation, dataset

    @cached_property
    def method(self) -> Method:
        """The method with the run's settings, and with what it learnt if it is not a federated one."""
        method = method_of(self.config, self.path)
        if isinstance(method, Baseline):
            method.open(self.path)
        return method

    @cached_property
    def dataset(self) -> Dataset:
        """The data set; refused if it is not the one of the run."""
        return dataset_of(self.config, self._dataset)

    @cached_property
    def foundation(self) -> Foundation | None:
        """The foundation; refused if its hash is not the one that the adapters carry."""
        return foundation_of(self.config, self.path, self._foundation, "load_run")

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """``metrics.jsonl``: one dict per round."""
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    @cached_property
    def rows(self) -> ShardRows:
        """Rows of the private users."""
        plain = self._plain_rows
        kept = kept_tally(self.path, self.method.settings.item_counts, self.dataset.n_items)
        return self.method.rows(self.foundation, self.dataset, plain, kept or self.method.tally(self.dataset, plain))

    @cached_property
    def _plain_rows(self) -> ShardRows:
        """The same rows without what the method adds; the yardsticks read them as far back as the method does."""
        rows = ShardRows.of(self.dataset, dtype=self.method.settings.torch_dtype, device=torch.device("cpu"))
        return rows.online(self.dataset) if self.method.settings.history == "online" else rows

    @property
    def _inputs(self) -> Inputs:
        return Inputs() if self.foundation is None else self.foundation.inputs

    @cached_property
    def scores(self) -> npt.NDArray[Any]:
        """Click probabilities of all rows, in the order of `rows`."""
        if isinstance(self.method, Baseline):
            return self.method.scores(self.foundation, self.dataset, self.rows)
        return self._shard(self.rows, self._store()).scores(self.server.state)

    @cached_property
    def model(self) -> AdaptedModel:
        """The adapted foundation."""
        if not isinstance(self.method, FederatedMethod):
            raise ConfigError(f"{self.path}: method {self.method.name} has no model")
        return self.method.model(self.foundation, self.dataset, self.config["seed"], torch.device("cpu"))

    @cached_property
    def server(self) -> Server:
        """Shared and group parameters of the best round."""
        file = self.path / "shared.safetensors"
        server = cast(FederatedMethod, self.method).server(self.model.layout)
        try:
            named = safetensors.torch.load_file(file)
            with safetensors.safe_open(file, "pt") as opened:
                carried = (opened.metadata() or {}).get("foundation")
        except (OSError, safetensors.SafetensorError) as error:
            raise ArtifactError(f"{file}: cannot be read ({error})", "adapt again") from error
        noted = self.config["foundation"]
        if carried != ("" if noted is None else noted["hash"]):
            raise ArtifactError(f"{file}: carries foundation {str(carried)[:12]}, the run's config says another one")
        server.load(named, str(file))
        return server

    def evaluate(
        self,
        part: str = "test",
        *,
        bootstrap: int = 0,
        top_k: int | None = None,
        ranking_users: int | None = None,
    ) -> dict[str, Any]:
        """All metrics of one part, with the frozen foundation as the one to be worse or better than.

        Parameters
        ----------
        part : {"train", "val", "test", "unbiased", "cold"}
            ``unbiased``: randomly exposed rows; ``cold``: cold users after 0, 1, 3 and 5 of their rows.
        bootstrap : int
            Draws of users for 95% intervals; 0 for none.
        top_k : int, optional
            Also rank the whole catalogue: HR, NDCG, Recall at k and coverage.
        ranking_users : int, optional
            Rank for this many users only, the first by their draw.

        Raises
        ------
        DataError
            If the data set has no rows of that part.
        """
        if part == "cold":
            return {f"support_{k}": self._cold(k, bootstrap) for k in _SUPPORT}
        if part not in PARTS:
            raise ConfigError(f"unknown part {part!r}, expected one of {', '.join((*PARTS, 'cold'))}")
        here = self.rows.part == Part[part.upper()]
        if not here.any():
            raise DataError(f"{self.dataset.path}: has no rows of part {part!r}")
        report = self._report(self.rows, self.scores, here, bootstrap)
        if top_k is not None:
            report["ranking"] = self.recommender.ranking(part, top_k, ranking_users)
        return report

    def leave_one_out(self, k: int = 10, *, sampled: int = 99, most: int | None = 2000, seed: int = 0) -> LeaveOneOut:
        """Rank the whole catalogue for the users of a leave-one-out data set.

        Parameters
        ----------
        k : int
            Length of the list.
        sampled : int
            Negatives of the field's sampled figure, which stands beside the full one.
        most : int, optional
            Rank for so many users only, chosen by a draw of `seed`.

        Raises
        ------
        DataError
            If the data set was not made by `fedpa.data.leave_one_out`.
        """
        from fedpa.evaluation.leave_one_out import leave_one_out_report

        rows = self.rows
        if isinstance(self.method, Baseline):
            score = self._catalogue_baseline
        else:
            shard = self._shard(rows, self._store())
            score = CatalogueScorer(self.dataset, self.model, shard, self.server.state, self._inputs)
        return leave_one_out_report(self.dataset, rows, score, k=k, sampled=sampled, most=most, seed=seed)

    def _catalogue_baseline(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        rows = self.rows.candidates(self.dataset, positions)
        method = cast(Baseline, self.method)
        return method.scores(self.foundation, self.dataset, rows).reshape(len(positions), -1)

    def yardsticks(self, part: str = "test", *, bootstrap: int = 0) -> dict[str, dict[str, Any]]:
        """Reports of the two counters, the frozen foundation, this run and, where it is known, the oracle."""
        here = self.rows.part == Part[part.upper()]
        return {
            name: self._report(self.rows, scores, here, bootstrap) for name, scores in self._yardstick_scores().items()
        }

    def yardstick_scores(self, part: str = "test") -> dict[str, npt.NDArray[Any]]:
        """Scores of a part's rows [rows], in the order of `rows`, by the same names as `yardsticks`."""
        here = self.rows.part == Part[part.upper()]
        return {name: scores[here] for name, scores in self._yardstick_scores().items()}

    def _yardstick_scores(self) -> dict[str, npt.NDArray[Any]]:
        found = {"two counters": self._counters(self._plain_rows)}
        baseline = self._baseline(self._plain_rows)
        if baseline is not None:
            found["frozen foundation"] = baseline
        if isinstance(self.method, FederatedMethod):
            found["FedPA" if self.method.name == "fedpa" else self.method.name] = self.scores
        if self.dataset.oracle is not None:
            found["oracle"] = self.dataset.oracle[self.rows.row]
        return found

    def predictions(self) -> pl.DataFrame:
        """Every scored row: ``user``, ``item`` (the user's own ids), ``time``, ``split``, ``label``, ``score``."""
        rows, data = self.rows, self.dataset
        return pl.DataFrame(
            {
                "user": data.user_ids.gather(rows.users[rows.user]),
                "item": data.item_ids.gather(rows.items.numpy()),
                "time": data.time[rows.row],
                "split": pl.Series([part.name.lower() for part in Part]).gather(rows.part),
                "label": rows.labels.numpy().astype(np.int8),
                "score": self.scores,
            }
        )

    def recommend(self, user: int | str | Sequence[int | str], k: int = 10) -> Recommendation | list[Recommendation]:
        """The k best unseen items of one user, or of many.

        Parameters
        ----------
        user : id or sequence of ids
            As in the raw data.
        k : int

        Raises
        ------
        DataError
            If a user is not in the data set.
        """
        if isinstance(user, int | str):
            return self.recommender.recommend(user, k)
        return [self.recommender.recommend(one, k) for one in user]

    @cached_property
    def recommender(self) -> Recommender:
        """Ready to score the catalogue; made once."""
        return Recommender(self.dataset, self.model, self._shard(self.rows, self._store()), self.server, self._inputs)

    def forget(self, user: int | str) -> dict[str, Any]:
        """Erase a user's personal parameters.

        Returns
        -------
        dict
            ``erased`` (weights that were not zero) and ``cannot_undo``, in words.

        Raises
        ------
        DataError
            If the user is unknown or not private.
        """
        number = self.dataset.user_index(user)
        local = np.flatnonzero(self.rows.users == number)
        if not len(local):
            raise DataError(f"user {user!r} is not a private user of {self.dataset.path}: it has no personal state")
        erased = 0
        if isinstance(self.method, FederatedMethod):
            touched = Shard.touched_rows(self.model, self.rows)
            erased = self._store(touched).erase(self.path, int(local[0]), touched)
            self._erase_generations(int(local[0]), touched)
            erase_downlink(self.path, number)
        self.summary["forgotten"] = int(self.summary.get("forgotten", 0)) + 1
        with replace_file(self.path / "summary.json") as fresh:
            write_json(fresh, self.summary)
        self.__dict__.pop("recommender", None)
        self.__dict__.pop("scores", None)
        return {
            "user": user,
            "erased": erased,
            "cannot_undo": (
                "the user's past share in the averages of shared and group parameters, copies and backups of this "
                "folder, predictions written before, and the user's rows in the data set folder"
            ),
        }

    def _erase_generations(self, user: int, touched: Mapping[str, TouchedRows]) -> None:
        """Erase a user from every round that can be gone back to."""
        first = 0
        for node, users in enumerate(divided(self.dataset, self.config.get("engine", {}).get("shards", 1))):
            folder = checkpoints(self.path) / f"node-{node}"
            if first <= user < first + len(users) and folder.is_dir():
                generations = node_generations(folder)
                held = generations.good()
                generations.keep(held)  # what is damaged is of no use, and may hold the user
                for number, about in held.items():
                    draft = generations.draft(number)
                    draft.fill(generations.path(number))
                    self._store(touched).erase(draft.path, user, touched, first=first)
                    draft.publish(about)
            first += len(users)

    def _report(
        self, rows: ShardRows, scores: npt.NDArray[Any], here: npt.NDArray[np.bool_], bootstrap: int
    ) -> dict[str, Any]:
        baseline = self._baseline(self._plain_rows if rows is self.rows else rows)
        owner = rows.user[here]
        return click_report(
            owner,
            rows.labels.numpy()[here].astype(np.int8),
            scores[here],
            baseline=None if baseline is None else baseline[here],
            groups={key: self._group_names(key, values[owner].numpy()) for key, values in rows.groups.items()},
            history=rows.train[owner],
            bootstrap=bootstrap,
            seed=self.config["seed"],
        )

    def _group_names(self, key: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        names = [*map(str, self.dataset.manifest["groups"][key]["vocabulary"]), "unknown"]
        found: npt.NDArray[Any] = np.array(names)[values]
        return found

    def _baseline(self, rows: ShardRows) -> npt.NDArray[Any] | None:
        if self.foundation is None:
            return None
        return FrozenFoundation(Settings()).scores(self.foundation, self.dataset, rows)

    def _counters(self, rows: ShardRows) -> npt.NDArray[Any]:
        return TwoCounters(Settings()).scores(None, self.dataset, rows)

    def _cold(self, support: int, bootstrap: int) -> dict[str, Any]:
        """Cold users after `support` rows: as many local rounds as the run had, nothing uploaded."""
        if not (self.dataset.side == COLD).any():
            raise DataError(f"{self.dataset.path}: has no cold users", "prepare the data set with --cold-users")
        settings = self.method.settings.model_copy(update={"participation": 1.0})
        rows = ShardRows.cold(self.dataset, support, dtype=settings.torch_dtype, device=torch.device("cpu"))
        rows = self.method.rows(self.foundation, self.dataset, rows, self.rows.tally)
        if isinstance(self.method, Baseline):
            scores = self.method.scores(self.foundation, self.dataset, rows)
        else:
            with tempfile.TemporaryDirectory(prefix="fedpa-") as folder:
                store = Shard.new_store(self.model, rows, settings, Path(folder))
                shard = self._shard(rows, store)
                for number in range(1, self.summary["best_round"] + 1 if support else 1):
                    shard.round(self.server.state, number)
                scores = shard.scores(self.server.state)
        return self._report(rows, scores, rows.part == Part.COLD_TEST, bootstrap)

    def _store(self, touched: Mapping[str, TouchedRows] | None = None) -> DeviceStore:
        touched = touched or Shard.touched_rows(self.model, self.rows)
        settings = self.method.settings
        return DeviceStore.open(self.path, self.model.layout, touched, len(self.rows.users), settings)

    def _shard(self, rows: ShardRows, store: DeviceStore) -> Shard:
        method = cast(FederatedMethod, self.method)
        settings = method.settings.model_copy(update={"participation": 1.0})
        limits = limits_of(self.foundation)
        return Shard(self.model, rows, settings, store, seed=self.config["seed"], rule=method, **limits)


def load_run(path: Path | str, *, foundation: Foundation | None = None, dataset: Dataset | None = None) -> Run:
    """Open a run folder; foundation and data set are opened when they are needed.

    Raises
    ------
    ArtifactError
        If the folder is missing, damaged or from another version.
    """
    return Run(Path(path), foundation=foundation, dataset=dataset)
