"""Adapt a foundation to the private users of a data set, round by round."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
import yaml

from fedpa.artifacts import FORMAT_VERSION, publish, write_json
from fedpa.data.dataset import Dataset, Part
from fedpa.device import open_device
from fedpa.errors import ConfigError
from fedpa.evaluation.metrics import auc, gauc, log_loss
from fedpa.federation.device import DeviceStore
from fedpa.federation.rows import ShardRows
from fedpa.federation.server import FRACTION_BITS, Server, Upload
from fedpa.federation.shard import Shard
from fedpa.methods import Baseline, FederatedMethod, Method, find_method
from fedpa.models.foundation import Foundation
from fedpa.models.wrap.wrapped import limits_of
from fedpa.own_code import absolute, is_own_code
from fedpa.progress import progress_bar
from fedpa.run import Run

__all__ = ["adapt", "split_values"]

_SPLITS = {"train": Part.TRAIN, "val": Part.VAL, "test": Part.TEST}
Values = dict[str, dict[str, float | None]]


def adapt(
    foundation: Foundation | None,
    dataset: Dataset,
    *,
    out: Path | str | None = None,
    method: str = "fedpa",
    preset: str = "default",
    seed: int = 0,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = False,
    foundation_path: Path | str | None = None,
    **settings: Any,
) -> Run:
    """Adapt a foundation to private users.

    Parameters
    ----------
    foundation : Foundation or None
        What `fedpa.wrap` returns is one too; None for methods that need none, such as ``"two-counters"``.
    dataset : Dataset
        Prepared with the features that the foundation was trained on.
    out : path, optional
        Folder to write; without it the run lives in a temporary folder for as long as the object does.
    method : str
        A name (`fedpa.methods.method_names`) or ``my_file.py:MyMethod``.
    preset : str
        Named settings of the method.
    seed : int
        Of every draw. The same seed on the same machine gives the same bytes.
    device : str
        For instance ``"cpu"`` or ``"cuda"``.
    overwrite : bool
        Replace `out` if it exists.
    progress : bool
        Draw a bar on standard error.
    foundation_path : path, optional
        Where `foundation` was loaded from, or ``my_file.py:build`` for a wrapped module, noted in the run so that it
        can be found again.
    **settings
        Fields of the method's settings, over the preset.

    Returns
    -------
    Run
        The best round by validation. Interrupted by Ctrl-C, the best round so far, marked ``interrupted``.

    Raises
    ------
    ConfigError
        If the method, preset, device or a setting is unknown or invalid.
    ArtifactError
        If the foundation does not fit the data set, or `out` exists.
    """
    chosen = find_method(method).configured(preset, settings, foundation)
    if foundation is None and chosen.reads_foundation:
        raise ConfigError(f"method {chosen.name}: needs a foundation", "pretrain one or load one with load_foundation")
    if foundation is not None:
        foundation.check(dataset)
    place = open_device(device)
    keep: tempfile.TemporaryDirectory[str] | None = None
    if out is None:
        keep = tempfile.TemporaryDirectory(prefix="fedpa-")
        target = Path(keep.name) / "run"
    else:
        target = Path(out)
    with publish(target, overwrite=overwrite) as room:
        config = {
            "method": absolute(method) if is_own_code(method) else method,
            "preset": preset,
            "seed": seed,
            "settings": chosen.settings.model_dump(mode="json"),
            "label": dataset.label_name,
            "dataset": {"path": str(dataset.path.resolve()), "hash": dataset.hash},
            "foundation": None
            if foundation is None
            else {
                "path": _noted(foundation_path),
                "hash": foundation.hash,
            },
            "fedpa": version("fedpa"),
        }
        (room / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=True), encoding="utf-8")
        rounds = _Rounds(chosen, foundation, dataset, seed, place, room)
        summary = rounds.run(progress)
        write_json(
            room / "summary.json",
            {
                "kind": "run",
                "format_version": FORMAT_VERSION,
                "dataset": dataset.manifest["source"],
                "method": chosen.name,
                "preset": preset,
                "seed": seed,
                **summary,
            },
        )
    run = Run(target, foundation=foundation, dataset=dataset)
    run.temporary = keep
    return run


def _noted(foundation_path: Path | str | None) -> str | None:
    """A foundation's name as a run keeps it."""
    if foundation_path is None:
        return None
    return absolute(str(foundation_path)) if is_own_code(str(foundation_path)) else str(Path(foundation_path).resolve())


def split_values(rows: ShardRows, scores: npt.NDArray[np.floating]) -> Values:
    """AUC, GAUC and log-loss of the three splits; None where a split lacks rows or a class."""
    labels = rows.labels.cpu().numpy().astype(np.int8)
    found: Values = {}
    for name, part in _SPLITS.items():
        here = rows.part == part
        y, s = labels[here], scores[here]
        found[name] = {
            "auc": auc(y, s),
            "gauc": gauc(rows.user[here], y, s).value,
            "logloss": log_loss(y, s) if len(y) else None,
        }
    return found


def _selected(values: dict[str, float | None], select: str) -> float | None:
    """The validation value that picks the best round."""
    if select != "mean":
        return values[select]
    pooled, within = values["auc"], values["gauc"]
    return None if pooled is None or within is None else (pooled + within) / 2


class _Rounds:
    """The loop: train, aggregate, evaluate, keep the best."""

    def __init__(
        self,
        method: Method,
        foundation: Foundation | None,
        dataset: Dataset,
        seed: int,
        device: torch.device,
        room: Path,
    ) -> None:
        self.method, self.foundation, self.dataset = method, foundation, dataset
        self.settings = method.settings
        self.seed, self.device, self.room = seed, device, room
        rows = ShardRows.of(dataset, dtype=self.settings.torch_dtype, device=device)
        self.rows = method.rows(foundation, dataset, rows, method.tally(dataset, rows))
        self.lines: list[dict[str, Any]] = []
        self.downlink = 0  # weights that a participant of the last round received for itself alone

    def run(self, progress: bool) -> dict[str, Any]:
        """Run to the end and return the summary."""
        if isinstance(self.method, Baseline):
            begin = time.perf_counter()
            self.method.fit(self.foundation, self.dataset, self.rows, seed=self.seed, folder=self.room)
            self.method.open(self.room)
            fitted = time.perf_counter()
            values = split_values(self.rows, self.method.scores(self.foundation, self.dataset, self.rows))
            self._note(0, None, values, fitted - begin, time.perf_counter() - fitted)
            return self._summary(0, {}, interrupted=False)
        return self._federated(cast(FederatedMethod, self.method), progress)

    def _federated(self, method: FederatedMethod, progress: bool) -> dict[str, Any]:
        settings = self.settings
        model = method.model(self.foundation, self.dataset, self.seed, self.device)
        server = method.server(model.layout)
        with self._store_folder() as folder:
            store = Shard.new_store(model, self.rows, settings, folder)
            limits = limits_of(self.foundation)
            shard = Shard(model, self.rows, settings, store, seed=self.seed, rule=method, **limits)
            best_state, best_round = list(server.state), 0
            best = self._evaluate(shard, server, 0, None, 0.0)
            stale, interrupted = 0, False
            with progress_bar(f"adapt ({method.name})", settings.rounds, progress) as advance:
                try:
                    for number in range(1, settings.rounds + 1):
                        begin = time.perf_counter()
                        sent = {one.table for one in server.downlink}
                        self.downlink = sum(t.parameter.size for t in model.layout.tables if t.name in sent)
                        upload = shard.round(server.state, number, server.downlink)
                        server.step(upload)
                        value = self._evaluate(shard, server, number, upload, time.perf_counter() - begin)
                        advance(f"val {settings.select} {abs(value):.4f}")
                        if value > best:
                            best, best_round, best_state, stale = value, number, list(server.state), 0
                            store.mark_best()
                        else:
                            stale += 1
                        if settings.patience and stale >= settings.patience:
                            break
                except KeyboardInterrupt:
                    interrupted = True
            server.state = best_state
            self._save(server, store)
        return self._summary(best_round, model.layout.sizes_by_scope(), interrupted=interrupted)

    def _evaluate(self, shard: Shard, server: Server, number: int, upload: Upload | None, seconds: float) -> float:
        """Note a round and return its validation value, higher is better."""
        begin = time.perf_counter()
        values = split_values(self.rows, shard.scores(server.state))
        self._note(number, upload, values, seconds, time.perf_counter() - begin)
        found = _selected(values["val"], self.settings.select)
        if found is None:
            found, sign = values["val"]["logloss"], -1.0
        else:
            sign = -1.0 if self.settings.select == "logloss" else 1.0
        return float(number) if found is None else sign * found

    def _note(self, number: int, upload: Upload | None, values: Values, train: float, evaluate: float) -> None:
        upload = upload or Upload([], [])
        participants = upload.participants
        size = self.settings.torch_dtype.itemsize
        unit = 2.0 ** -FRACTION_BITS[self.settings.torch_dtype]
        line = {
            "round": number,
            "participants": participants,
            "train_loss": upload.loss * unit / participants if participants else None,
            "seconds_train": round(train, 4),
            "seconds_eval": round(evaluate, 4),
            "bytes_up": upload.weights_up * size,
            "bytes_down": (upload.weights_down + self.downlink * participants) * size,
            **values,
        }
        self.lines.append(line)
        with (self.room / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _summary(self, best_round: int, scopes: dict[str, int], *, interrupted: bool) -> dict[str, Any]:
        best = next(line for line in self.lines if line["round"] == best_round)
        rounds = [line for line in self.lines if line["participants"]]
        took_part = sum(line["participants"] for line in rounds)
        return {
            "best_round": best_round,
            "rounds": len(self.lines) - 1,
            "splits": {name: best[name] for name in _SPLITS},
            "seconds_per_round": sum(r["seconds_train"] + r["seconds_eval"] for r in rounds) / max(1, len(rounds)),
            "bytes_up_per_user_round": sum(r["bytes_up"] for r in rounds) / max(1, took_part),
            "bytes_down_per_user_round": sum(r["bytes_down"] for r in rounds) / max(1, took_part),
            "bytes_item_counts_per_user": self._counted(),
            "parameters": scopes | {"frozen": self._frozen() + scopes.get("frozen", 0)},
            "private_users": len(self.rows.users),
            "interrupted": interrupted,
        }

    def _counted(self) -> int:
        """Bytes that a device sends once, before the first round: two numbers per item and period."""
        return 0 if self.rows.tally is None else 8 * len(self.rows.tally.ends) * self.dataset.n_items

    def _frozen(self) -> int:
        if self.foundation is None:
            return 0
        return sum(p.numel() for p in self.foundation.model.parameters())

    def _save(self, server: Server, store: DeviceStore) -> None:
        # One key: safetensors writes several in a random order.
        label = {"foundation": self.foundation.hash if self.foundation else ""}
        safetensors.torch.save_file(server.named(), self.room / "shared.safetensors", label)
        store.save(self.room)

    @contextlib.contextmanager
    def _store_folder(self) -> Iterator[Path]:
        folder = self.room / "store"
        folder.mkdir()
        yield folder
        shutil.rmtree(folder)
