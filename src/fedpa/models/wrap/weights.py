"""Pre-trained weights from a local folder of safetensors files."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn

from fedpa.errors import ArtifactError

__all__ = ["load_weights"]

_INDEX = ".safetensors.index.json"


def load_weights(module: nn.Module, path: Path | str) -> None:
    """Fill a module with weights from a file or a folder, tensor after tensor; nothing is downloaded.

    Parameters
    ----------
    module : Module
    path : path
        A ``.safetensors`` file; or a folder with one, or with several and the ``*.safetensors.index.json`` that says
        which weight is in which of them, as Hugging Face saves large models.

    Raises
    ------
    ArtifactError
        If a file is missing or damaged, or a name or shape differs from the module's. Weights that the module shares
        between two names need one of them only.
    """
    files = _files(Path(path))
    state = module.state_dict()
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safetensors.safe_open(file, "pt") as opened:
                found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError) as error:
            raise ArtifactError(f"{file}: cannot be read ({error})", "save the weights again") from error
    _compare(Path(path), module, state, found)
    with torch.no_grad():
        for file in files:
            with safetensors.safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    state[name].copy_(opened.get_tensor(name))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such file or folder", "give a local folder with .safetensors files")
    indexes = sorted(path.glob(f"*{_INDEX}"))
    files = sorted(path.glob("*.safetensors"))
    if indexes:
        try:
            names = json.loads(indexes[0].read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ArtifactError(f"{indexes[0]}: is no index of safetensors files ({error!r})") from error
        files = [path / name for name in sorted(set(names))]
    elif len(files) > 1:
        raise ArtifactError(
            f"{path}: holds {len(files)} .safetensors files and no *{_INDEX}, so that it is not known which are meant",
            "give the file, or add the index",
        )
    if not files:
        raise ArtifactError(f"{path}: holds no .safetensors file", "save the weights with safetensors")
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise ArtifactError(f"{absent[0]}: missing, although {indexes[0].name} names it", "copy all files")
    return files


def _compare(path: Path, module: nn.Module, state: dict[str, Tensor], found: dict[str, tuple[int, ...]]) -> None:
    given = {state[name].data_ptr() for name in found if name in state}
    missing = [name for name, value in state.items() if name not in found and value.data_ptr() not in given]
    unexpected = [name for name in found if name not in state]
    wrong = [
        f"{name} is {list(shape)}, expected {list(state[name].shape)}"
        for name, shape in found.items()
        if name in state and shape != tuple(state[name].shape)
    ]
    complaints = [
        f"{len(names)} {what} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        if names
    ]
    if complaints:
        raise ArtifactError(
            f"{path}: does not fit {type(module).__name__}: {'; '.join(complaints)}",
            "give the folder of this very architecture, or load it into the submodule that it belongs to: "
            "weights={'encoder': folder}",
        )
