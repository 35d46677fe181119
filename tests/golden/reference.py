"""The published three rounds as objects of this package."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from arrays import ArrayDataset
from fedpa.data.dataset import Part
from fedpa.models.foundation import Foundation
from fedpa.models.mlp import MLP

Golden = dict[str, npt.NDArray[Any]]
GROUPS = ("follow_user_num_range", "register_days_range")


def dataset(golden: Golden) -> ArrayDataset:
    """The 120 users and their rows."""
    users, videos = golden["data/users"], golden["data/videos"]
    parts = {"train": Part.TRAIN, "val": Part.VAL, "test": Part.TEST}
    rows = np.concatenate(
        [np.c_[golden[f"data/{name}"], np.full(len(golden[f"data/{name}"]), code)] for name, code in parts.items()]
    )
    rows = rows[np.lexsort((rows[:, 4], rows[:, 0]))]
    names = [str(n) for n in golden["data/user_feature_names"]]
    sizes = {
        "user": {n: len(golden[f"init/embedding_user_features.{n}.weight"]) for n in names},
        "item": {
            str(n): len(golden[f"init/embedding_video_features.{n}.weight"]) for n in golden["data/video_feature_names"]
        },
    }
    return ArrayDataset(
        user_ids=users,
        user_codes=golden["data/user_features"],
        item_codes=golden["data/video_features"],
        user=np.searchsorted(users, rows[:, 0]),
        item=np.searchsorted(videos, rows[:, 1]),
        label=rows[:, 3],
        part=rows[:, 4],
        groups={key: golden["data/user_features"][:, names.index(key)] for key in GROUPS},
        sizes={**sizes, "groups": {key: sizes["user"][key] for key in GROUPS}},
    )


def foundation(golden: Golden, data: ArrayDataset) -> Foundation:
    """The random backbone of the reference rounds."""
    model = MLP({"user": data.user_features, "item": data.item_features, "context": []}).double()
    with torch.no_grad():
        for side, name in (("user", "user"), ("item", "video")):
            for feature, _ in model.features[side]:
                model.named_table(side, feature).copy_(_t(golden, f"embedding_{name}_features.{feature}.weight"))
        for index, layer in enumerate(model.layers):
            layer.get_parameter("weight").copy_(_t(golden, f"fc_layers.{index}.weight"))
            layer.get_parameter("bias").copy_(_t(golden, f"fc_layers.{index}.bias"))
        model.head.weight.copy_(_t(golden, "affine_output.weight"))
        model.head.bias.copy_(_t(golden, "affine_output.bias"))
    return Foundation.of(model, data.manifest["features"], {})


def starts(golden: Golden) -> dict[str, torch.Tensor]:
    """The starts of gates and LoRA under this package's names."""
    found: dict[str, torch.Tensor] = {}
    for layer in range(2):
        for half in range(2):
            for kind in ("weight", "bias"):
                found[f"layers.{layer}.gate.{half}.{kind}"] = _t(golden, f"gate_layers.{2 * layer + half}.{kind}")
        found[f"layers.{layer}.user.a"] = _t(golden, f"loras.{layer}_lora_a").T
        found[f"layers.{layer}.user.b"] = _t(golden, f"loras.{layer}_lora_b")
        for key in GROUPS:
            for factor in "ab":
                values = [_t(golden, f"loras.{key}{layer}_lora_{factor}_{v}") for v in range(8)]
                stacked = torch.stack(values)
                found[f"layers.{layer}.group.{key}.{factor}"] = stacked.mT if factor == "a" else stacked
    return found


def _t(golden: Golden, name: str) -> torch.Tensor:
    return torch.from_numpy(golden[f"init/{name}"])
