"""The foundation: a backbone trained on open users, frozen from then on, as one folder with one hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import safetensors
import safetensors.torch
from torch import Tensor

from fedpa.artifacts import FORMAT_VERSION, publish, read_manifest, sha256, write_json
from fedpa.data.dataset import Dataset
from fedpa.errors import ArtifactError
from fedpa.models.history import reader_from_spec
from fedpa.models.inputs import ITEM_ID, Inputs
from fedpa.models.mlp import MLP

__all__ = ["Foundation", "load_foundation"]

_SIDES = ("user", "item", "context")
_ITEMS, _HISTORY_ITEMS = "items.parquet", "history.parquet"
_HISTORY = "history."


@dataclass(frozen=True)
class Foundation:
    """A frozen backbone and the encoders of the data that it reads.

    Attributes
    ----------
    model : MLP
    features : dict
        The encoders of the data set that it was trained on, as in that data set's manifest.
    facts : dict
        How it came to be: settings, seed, epochs, validation values; for a reference import, the file's hash.
    hash : str
        SHA-256 over weights, encoders and inputs: an adapter carries it and fits no other foundation.
    inputs : Inputs
        The reader of users' pasts and the known items, if the model has them.
    path : Path or None
        The folder that it was saved to or loaded from, which a run notes so that it is found again.
    """

    model: MLP
    features: dict[str, Any]
    facts: dict[str, Any]
    hash: str
    inputs: Inputs = field(default_factory=Inputs)
    path: Path | None = field(default=None, compare=False, repr=False)

    @property
    def n_weights(self) -> int:
        """How many numbers were trained, those of its reader included."""
        return sum(value.numel() for value in _weights(self.model, self.inputs).values())

    @classmethod
    def of(
        cls, model: MLP, features: Mapping[str, Any], facts: Mapping[str, Any], inputs: Inputs | None = None
    ) -> Foundation:
        """Freeze a trained model."""
        model, inputs = model.eval().requires_grad_(False), inputs or Inputs()
        digest = hashlib.sha256(json.dumps(features, sort_keys=True).encode())
        if inputs.history is not None:
            digest.update(json.dumps(inputs.history.spec(), sort_keys=True).encode())
        for known in (inputs.item_ids, None if inputs.history is None else inputs.history.item_ids):
            if known is not None:
                digest.update(json.dumps(known.to_list()).encode())
        for name, value in sorted(_weights(model, inputs).items()):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.contiguous().cpu().numpy().tobytes())
        return cls(model, dict(features), dict(facts), digest.hexdigest(), inputs)

    def check(self, dataset: Dataset) -> None:
        """Refuse a data set whose codes mean something else.

        Raises
        ------
        ArtifactError
            Names the feature that differs.
        """
        found: dict[str, Any] = dataset.manifest["features"]
        for side in _SIDES:
            ours = {f["name"]: f for f in self.features[side]}
            theirs = {f["name"]: f for f in found[side]}
            if [*ours] != [*theirs] or any(ours[n] != theirs[n] for n in ours):
                wrong = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
                raise ArtifactError(
                    f"{dataset.path}: its {side} features are encoded otherwise than the foundation's "
                    f"(differs: {', '.join(wrong[:5]) or 'their order'})",
                    "use the data set that the foundation was trained on, or pretrain on this one",
                )

    def save(self, out: Path | str, *, overwrite: bool = False) -> None:
        """Write a folder with ``manifest.json`` and ``foundation.safetensors``."""
        with publish(Path(out), overwrite=overwrite) as room:
            safetensors.torch.save_file(
                {k: v.contiguous().cpu() for k, v in _weights(self.model, self.inputs).items()},
                room / "foundation.safetensors",
                {"foundation": self.hash},
            )
            reader, known = self.inputs.history, self.inputs.item_ids
            if known is not None:
                pl.DataFrame({ITEM_ID: known}).write_parquet(room / _ITEMS)
            if reader is not None and reader.item_ids is not None:
                pl.DataFrame({ITEM_ID: reader.item_ids}).write_parquet(room / _HISTORY_ITEMS)
            write_json(
                room / "manifest.json",
                {
                    "kind": "foundation",
                    "format_version": FORMAT_VERSION,
                    "hash": self.hash,
                    "model": self.model.spec(),
                    "features": self.features,
                    "facts": self.facts,
                    "history": None if reader is None else reader.spec(),
                    "known_items": known is not None,
                    "weights_sha256": sha256(room / "foundation.safetensors"),
                },
            )
        object.__setattr__(self, "path", Path(out).resolve())


def _weights(model: MLP, inputs: Inputs) -> dict[str, Tensor]:
    """The model's, and its reader's under names of their own."""
    own = {} if inputs.history is None else inputs.history.state()
    return {**model.state_dict(), **{_HISTORY + name: value for name, value in own.items()}}


def load_foundation(path: Path | str) -> Foundation:
    """Load a foundation folder.

    Raises
    ------
    ArtifactError
        If it is missing, damaged or from another version.
    """
    folder = Path(path)
    manifest = read_manifest(folder, "foundation")
    weights = folder / "foundation.safetensors"
    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(weights)
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"{weights}: cannot be read ({error})", "pretrain the foundation again") from error
    if sha256(weights) != manifest["weights_sha256"]:
        raise ArtifactError(f"{weights}: differs from the manifest's hash", "pretrain the foundation again")
    own = {name.removeprefix(_HISTORY): state.pop(name) for name in [*state] if name.startswith(_HISTORY)}
    dtype = next(iter(state.values())).dtype
    model = MLP.from_spec(manifest["model"]).to(dtype)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ArtifactError(f"{weights}: does not fit its manifest ({error})") from error
    try:
        items = folder / _HISTORY_ITEMS
        read = pl.read_parquet(items)[ITEM_ID] if items.is_file() else None
        reader = reader_from_spec(manifest["history"], own, read) if manifest.get("history") else None
        known = pl.read_parquet(folder / _ITEMS)[ITEM_ID] if manifest.get("known_items") else None
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"{folder}: cannot be read ({error})", "pretrain the foundation again") from error
    foundation = Foundation.of(model, manifest["features"], manifest["facts"], Inputs(reader, known))
    if foundation.hash != manifest["hash"]:
        raise ArtifactError(f"{folder}: the weights are not those of the manifest's hash {manifest['hash'][:12]}")
    return replace(foundation, path=folder.resolve())
