"""A run whose adapters can leave it: its parameters as tensors by name, and what a device must know of them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from fedpa.artifacts import FORMAT_VERSION, write_json
from fedpa.errors import ConfigError
from fedpa.federation.rule import LocalRule
from fedpa.federation.server import FRACTION_BITS
from fedpa.methods.method import FederatedMethod
from fedpa.models.adapted import AdaptedMLP
from fedpa.models.bias import WithPersonalBias
from fedpa.models.history.light import LightHistory
from fedpa.run import Run

__all__ = ["Exportable", "file_stem"]

Ints = npt.NDArray[np.int64]
_TRAINING = (
    "epochs", "batch_size", "optimizer", "lr", "adam_betas", "adam_eps", "keep_optimizer", "proximal",
    "personal_decay", "participation", "weighting", "table_mean",
)  # fmt: skip
"""Settings that a device trains by."""
_HOOKS = ("phases", "before_scoring", "loss", "local_loss")
_PLAIN = re.compile(r"[0-9a-z_-]{1,64}")
_SHUT = -1e4


class Exportable:
    """What an export writes of a run.

    Parameters
    ----------
    run : Run

    Attributes
    ----------
    model : AdaptedMLP
    layout : Layout
        Of the whole model, with the personal bias if the run has one.
    foundation : Foundation
    mlp : MLP

    Raises
    ------
    ConfigError
        If devices could not score or train as the run's method does.
    """

    def __init__(self, run: Run) -> None:
        method = run.method
        if not isinstance(method, FederatedMethod):
            raise _refused(run, "it has no adapters")
        model = run.model.model if isinstance(run.model, WithPersonalBias) else run.model
        if not isinstance(model, AdaptedMLP) or run.foundation is None:
            raise _refused(run, "it does not adapt the backbone of `fedpa pretrain`")
        reader = run.foundation.inputs.history
        if reader is not None and not isinstance(reader, LightHistory):
            raise _refused(run, f"its foundation reads users' pasts with {reader.name!r}, expected 'light' or none")
        changed = [name for name in _HOOKS if getattr(type(method), name) is not getattr(LocalRule, name)]
        if changed or method.forgets_personal:
            raise _refused(run, f"it has a local step of its own ({', '.join(changed) or 'forgets_personal'})")
        self.run, self.method, self.model, self.layout = run, method, model, run.model.layout
        self.foundation, self.mlp = run.foundation, run.foundation.model
        for name, scope in self.layout.scopes.items():
            if scope.keeps or scope.sees == "rows":
                raise _refused(run, f"parameter {name!r} has the scope {scope}, which has no place in an export")
        for table in self.layout.tables:
            if self.layout.scopes[table.name].kind != "shared":
                raise _refused(run, f"table {table.name!r} is {self.layout.scopes[table.name]}, expected shared")
        self._dtype = method.settings.torch_dtype

    def foundation_tensors(self) -> dict[str, Tensor]:
        """The frozen weights, those of the reader of the past under ``history.``, and parameters.

        Of those the ones that are not zero where the graph is to be the foundation itself.
        """
        reader = self.foundation.inputs.history
        found = dict(self.mlp.state_dict())
        found |= {f"history.{name}": value for name, value in (reader.state() if reader is not None else {}).items()}
        for parameter in self.layout.parameters():
            if parameter.name.endswith(".gate.1.bias") and self.model.gate_scale == 1:
                found[parameter.name] = torch.tensor([0.0] + [_SHUT] * (parameter.size - 1))
        return {name: value.to(self._dtype).contiguous() for name, value in found.items()}

    def shared_tensors(self) -> dict[str, Tensor]:
        """Every parameter of a user who has nothing of its own: of a group one row per value, of a table all rows.

        Without the user's embedding, which starts at that of its features.
        """
        found = self.run.server.named()
        for parameter in self.layout.parameters():
            if parameter.name not in found and isinstance(parameter.start, Tensor):
                found[parameter.name] = parameter.start.to(self._dtype).clone()
        return found

    def manifest(self) -> dict[str, Any]:
        """What is true of all adapters: formats, features, scopes and the settings of a local round."""
        settings, reader = self.model.settings, self.foundation.inputs.history
        return {
            "kind": "export",
            "format_version": FORMAT_VERSION,
            **self._origin(),
            "seed": self.run.config["seed"],
            "dtype": settings.dtype,
            "alpha": settings.alpha,
            "gate_scale": self.model.gate_scale,
            "branches": self._branches(),
            "layers": len(self.mlp.layers),
            "features": {side: [list(each) for each in self.mlp.features[side]] for side in ("user", "item")}
            | {"context": self.foundation.features["context"]},
            "history": None if reader is None else reader.spec(),
            "parameters": self._parameters(),
            "training": {name: getattr(settings, name) for name in _TRAINING},
            "fraction_bits": FRACTION_BITS[self._dtype],
        }

    def write_adapters(self, folder: Path, users: Ints, kept: npt.NDArray[np.bool_]) -> int:
        """Write the JSON file of some users, and beside it the adapter of those whose is `kept`; returns its bytes."""
        run, data = self.run, self.run.dataset
        shard = run.recommender.shard
        numbers = run.rows.users[users]
        weights = shard.weights_of(users, run.server.state)
        own = {}
        for parameter in self.layout.parameters():
            if self.layout.scopes[parameter.name].kind == "personal":
                span = self.layout.places[parameter.name]
                own[parameter.name] = weights[:, span.begin : span.end].unflatten(1, parameter.shape)
        codes = torch.from_numpy(data.user_codes[numbers]).long()
        if "user_embedding" not in own:
            own["user_embedding"] = self.mlp.embed("user", codes).to(self._dtype)
        written = 0
        for place, number in enumerate(numbers):
            user = data.user_ids[int(number)]
            card = {
                **self._origin(),
                "user": user,
                "user_codes": codes[place].tolist(),
                "groups": self._groups(int(number)),
                "adapter": bool(kept[place]),
            }
            write_json(folder / f"{file_stem(user)}.json", card)
            if kept[place]:
                file = folder / f"{file_stem(user)}.safetensors"
                tensors = {name: value[place].clone() for name, value in own.items()}
                safetensors.torch.save_file(tensors, file, {"foundation": self.foundation.hash})
                written += file.stat().st_size
        return written

    def _origin(self) -> dict[str, Any]:
        """What an adapter belongs to."""
        return {
            "foundation": self.foundation.hash,
            "method": self.method.name,
            "round": self.run.summary["best_round"],
            "rank": self.model.settings.rank,
            "targets": [f"layers.{layer}" for layer in range(len(self.mlp.layers))] if self._branches() else [],
        }

    def _branches(self) -> list[str]:
        """Names of a layer's adapters in their order, such as ``user`` and ``group.<key>``."""
        stacked = next((block for block in self.layout.blocks if block.name == "layers.0.up"), None)
        parameters = () if stacked is None else stacked.parameters
        return [parameter.name.removeprefix("layers.0.").removesuffix(".b") for parameter in parameters]

    def _parameters(self) -> dict[str, dict[str, Any]]:
        """Scope, shape and factor on the learning rate of every parameter; of a table the shape is that of all rows."""
        tables = {table.name: table.parameter for table in self.layout.tables}
        found: dict[str, dict[str, Any]] = {}
        for parameter in (*self.layout.parameters(), *tables.values()):
            scope = self.layout.scopes[parameter.name]
            found[parameter.name] = {
                "scope": scope.kind,
                "shape": list(parameter.shape),
                "rate": self.method.lr_scale(parameter.name),
                **({"group": scope.key} if scope.key else {}),
                **({"table": True} if parameter.name in tables else {}),
            }
        return found

    def _groups(self, number: int) -> dict[str, dict[str, Any]]:
        """Of every group that parameters are averaged in, a user's value and its row; row -1 where it is unknown."""
        rows = self.run.recommender.shard.assembly.groups_of(number, self.run.dataset)
        known = {key: self.run.dataset.manifest["groups"][key]["vocabulary"] for key in rows}
        return {key: {"row": row, "value": known[key][row] if row >= 0 else None} for key, row in rows.items()}


def file_stem(user: int | str) -> str:
    """A user's name for its files, safe on any file system and of one user alone.

    An id of lower-case letters, digits, ``_`` and ``-`` is its own name; another is named by a hash, after a dot.
    """
    text = str(user)
    return text if _PLAIN.fullmatch(text) else f"id.{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def _refused(run: Run, reason: str) -> ConfigError:
    return ConfigError(
        f"{run.path}: method {run.config['method']} cannot be exported: {reason}",
        "export a run of fedpa, local-only, fedit, ffa-lora, fedsa-lora, personal-lora, head-only, user-bias or biases "
        "around a foundation of `fedpa pretrain`",
    )
