"""Export a run to devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch

from fedpa.artifacts import publish, write_json
from fedpa.data.dataset import Part
from fedpa.errors import ConfigError, DataError
from fedpa.evaluation.metrics import row_log_loss
from fedpa.exporting.exportable import Exportable
from fedpa.exporting.items import write_items
from fedpa.exporting.own_rows import write_own_rows
from fedpa.methods import FrozenFoundation
from fedpa.run import Run
from fedpa.settings import Settings

__all__ = ["export"]

Ints = npt.NDArray[np.int64]
_PIECE = 4096


def export(
    run: Run,
    out: Path | str,
    *,
    users: Sequence[int | str] | None = None,
    only_if_better: bool = False,
    rows: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write what devices need to score, and to train, with a run: see ``docs/on-device.md`` for the files.

    Parameters
    ----------
    run : Run
        Of a method that adapts the backbone of `fedpa.pretrain`.
    out : path
        Folder to write.
    users : sequence of ids, optional
        Private users; by default all of them.
    only_if_better : bool
        Leave out adapters with a higher log-loss than the foundation on the user's own validation rows. Without such
        rows nothing speaks against an adapter, and it is written.
    rows : bool
        Also write the users' own rows, as their devices would have logged them.
    overwrite : bool
        Replace `out` if it exists.

    Returns
    -------
    dict
        Numbers of ``users``, of ``adapters`` written and of those ``left_out``, with `only_if_better` of users
        ``without_validation_rows``, and ``bytes`` by file; ``bytes["adapter"]`` is the mean of adapters.

    Raises
    ------
    ConfigError
        If the run's method cannot be exported, or ONNX is not installed.
    DataError
        If a user is unknown or not private.
    """
    graph = _graph()
    ready = Exportable(run)
    chosen = np.arange(len(run.rows.users)) if users is None else _local(run, users)
    kept, report = np.ones(len(chosen), np.bool_), {}
    if only_if_better:
        better, unjudged = _judged(run)
        kept, report = better[chosen], {"without_validation_rows": int(unjudged[chosen].sum())}
    with publish(Path(out), overwrite=overwrite) as room:
        content, inputs = graph.adapted_graph(ready.mlp, ready.model, ready.layout)
        (room / "foundation.onnx").write_bytes(content)
        carried = {"foundation": ready.foundation.hash}
        safetensors.torch.save_file(ready.foundation_tensors(), room / "foundation.safetensors", carried)
        safetensors.torch.save_file(ready.shared_tensors(), room / "shared.safetensors", carried)
        write_items(room / "items.npz", run)
        write_json(room / "manifest.json", {**ready.manifest(), "inputs": inputs})
        names = ("foundation.onnx", "foundation.safetensors", "shared.safetensors", "items.npz", "manifest.json")
        sizes = {name: (room / name).stat().st_size for name in names}
        (room / "adapters").mkdir()
        written = [
            ready.write_adapters(room / "adapters", chosen[piece], kept[piece])
            for piece in (slice(first, first + _PIECE) for first in range(0, len(chosen), _PIECE))
        ]
        if rows:
            write_own_rows(room / "rows", run, chosen)
    adapters = int(kept.sum())
    return {
        "users": len(chosen),
        "adapters": adapters,
        "left_out": len(chosen) - adapters,
        **report,
        "bytes": sizes | ({"adapter": round(sum(written) / adapters)} if adapters else {}),
    }


def _graph() -> ModuleType:
    """The module that makes the graph; it needs an extra."""
    try:
        from fedpa.exporting import graph
    except ImportError:
        raise ConfigError("export: needs ONNX, which is not installed", 'pip install "fedpa[export]"') from None
    return graph


def _local(run: Run, users: Sequence[int | str]) -> Ints:
    """Places of users among the run's private ones, each once."""
    place = {int(number): local for local, number in enumerate(run.rows.users)}
    found = []
    for user in users:
        number = run.dataset.user_index(user)
        if number not in place:
            raise DataError(
                f"user {user!r} is not a private user of {run.dataset.path}: it has no adapter", "name private users"
            )
        found.append(place[number])
    return np.unique(np.array(found, np.int64))


def _judged(run: Run) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Whose adapter does not lose to the foundation on its own validation rows, and who has no such row [users]."""
    here = run.rows.part == Part.VAL
    owner, labels = run.rows.user[here], run.rows.labels.numpy()[here].astype(np.int64)
    plain = FrozenFoundation(Settings()).scores(run.foundation, run.dataset, run.rows)
    lost = row_log_loss(labels, run.scores[here]) - row_log_loss(labels, plain[here])
    users = len(run.rows.users)
    return np.bincount(owner, lost, users) <= 0, np.bincount(owner, minlength=users) == 0
