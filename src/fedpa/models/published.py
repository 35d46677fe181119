"""Read a checkpoint of the published code as a foundation.

Zhang et al., *Federated Adaptation for Foundation Model-based Recommendations*, IJCAI 2024, arXiv 2405.04840.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedpa.artifacts import sha256
from fedpa.data.dataset import Dataset
from fedpa.errors import ArtifactError
from fedpa.models.foundation import Foundation
from fedpa.models.mlp import MLP

__all__ = ["import_reference"]

_TABLES = {"user": "embedding_user_features", "item": "embedding_video_features"}
_ADAPTERS = ("gate_layers.", "loras.")
_NESTED = ("state_dict", "model")
_SAVE = "save the weights alone: torch.save(model.state_dict(), file)"


def import_reference(file: Path | str, dataset: Dataset) -> Foundation:
    """Make a foundation of a checkpoint in the published naming.

    Reads ``embedding_user_features.F.weight`` and ``embedding_video_features.F.weight`` [codes of F, width],
    ``fc_layers.L.weight`` [out, in] and ``.bias`` [out], ``affine_output.weight`` [1, in] and ``.bias`` [1].
    Gates and LoRA (``gate_layers.*``, ``loras.*``) are left out: they are adapters. No code of the file is run.

    Parameters
    ----------
    file : path
        A state dict that ``torch.save`` wrote, as it is or under ``state_dict`` or ``model``.
    dataset : Dataset
        Prepared with ``reference`` features, whose codes are those of the published encoding.

    Returns
    -------
    Foundation
        In the precision of the file; its facts name the file and its SHA-256.

    Raises
    ------
    ArtifactError
        If the file is missing, damaged or holds more than weights, the data set has other than reference
        features, or a weight is missing, unknown, not finite or of another shape; every one is named.
    """
    path = Path(file)
    if dataset.manifest["settings"]["features"] != "reference":
        raise ArtifactError(
            f"{dataset.path}: has {dataset.manifest['settings']['features']} features, a published checkpoint "
            "reads the reference features",
            "prepare the data set with --features reference",
        )
    features = {side: dataset.manifest["features"][side] for side in ("user", "item", "context")}
    sizes = {side: [(each["name"], each["size"]) for each in found] for side, found in features.items()}
    state = {name: value for name, value in _state(path).items() if not name.startswith(_ADAPTERS)}
    model = _shaped(path, state, sizes)
    wanted = _wanted(model)
    if faults := _faults(state, wanted):
        raise ArtifactError(
            f"{path}: does not fit the encoders of {dataset.path}: {'; '.join(faults)}",
            "give the checkpoint that was trained on this data set's features",
        )
    precise = any(value.dtype == torch.float64 for value in state.values())
    model = model.to(torch.float64 if precise else torch.float32)
    with torch.no_grad():
        for name, place in _wanted(model).items():
            place.copy_(state[name])
    return Foundation.of(model, features, {"imported": path.name, "sha256": sha256(path)})


def _state(path: Path) -> dict[str, Tensor]:
    """Every named tensor of a checkpoint."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise ArtifactError(f"{path}: {found}, expected a checkpoint", "give the .pth file of the published code")
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{path}: not a checkpoint of weights alone: it is damaged or holds code, which is not run "
            f"({_reason(error)})",
            _SAVE,
        ) from error
    except Exception as error:  # torch.load raises whatever the damaged part of a file leads to
        raise ArtifactError(f"{path}: cannot be read as a checkpoint ({_reason(error)})", _SAVE) from error
    while isinstance(content, Mapping) and (inner := next((key for key in _NESTED if key in content), None)):
        content = content[inner]
    if not isinstance(content, Mapping):
        raise ArtifactError(f"{path}: holds a {type(content).__name__}, expected named weights", _SAVE)
    odd = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if odd or not content:
        raise ArtifactError(f"{path}: expected named weights, found {', '.join(odd[:5]) or 'none'}", _SAVE)
    return {str(name): value for name, value in content.items()}


def _shaped(path: Path, state: Mapping[str, Tensor], sizes: Mapping[str, list[tuple[str, int]]]) -> MLP:
    """An untrained backbone with the checkpoint's number and widths of layers."""
    numbers = sorted(int(found[1]) for name in state if (found := re.fullmatch(r"fc_layers\.(\d+)\.weight", name)))
    width = next((v.shape[1] for n, v in state.items() if n.startswith(tuple(_TABLES.values())) and v.dim() == 2), None)
    if width is None or not numbers or numbers != list(range(len(numbers))):
        layers = ", ".join(f"fc_layers.{number}" for number in numbers) or "no fc_layers"
        tables = "no embeddings" if width is None else "embeddings"
        raise ArtifactError(
            f"{path}: found {tables} and {layers}, expected embedding_user_features.*, embedding_video_features.* "
            "and fc_layers numbered from 0",
            "give a checkpoint of the published code",
        )
    hidden = [state[f"fc_layers.{number}.weight"].shape[0] for number in numbers]
    return MLP(sizes, int(width), hidden)


def _wanted(model: MLP) -> dict[str, Tensor]:
    """The model's weights under their published names, sharing its memory."""
    found = {
        f"{prefix}.{name}.weight": model.named_table(side, name)
        for side, prefix in _TABLES.items()
        for name, _ in model.features[side]
    }
    for name, module in [*((f"fc_layers.{i}", m) for i, m in enumerate(model.layers)), ("affine_output", model.head)]:
        found |= {f"{name}.{kind}": module.get_parameter(kind).data for kind in ("weight", "bias")}
    return found


def _faults(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Everything that keeps a checkpoint from fitting, one phrase each."""
    faults = []
    for name, place in wanted.items():
        if name not in state:
            faults.append(f"{name} is missing")
        elif state[name].shape != place.shape:
            faults.append(f"{name} has shape {list(state[name].shape)}, expected {list(place.shape)}")
        elif not bool(torch.isfinite(state[name]).all()):
            faults.append(f"{name} holds values that are not finite")
    return faults + [f"{name} is unknown" for name in state if name not in wanted]


def _reason(error: Exception) -> str:
    """What went wrong, in one line: PyTorch's text goes on with advice to run the code."""
    text = str(error)
    unsupported = re.search(r"unsupported [^\n]*", text, re.IGNORECASE)
    return unsupported[0].rstrip(".") if unsupported else text.partition(". ")[0] or type(error).__name__
