"""`fedpa.wrap`: make a foundation of any PyTorch module."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fedpa.errors import ConfigError
from fedpa.models.inputs import Inputs
from fedpa.models.mlp import MLP
from fedpa.models.wrap.forward import Forward
from fedpa.models.wrap.rows import PastInputs
from fedpa.models.wrap.targets import find_layers, is_adaptable
from fedpa.models.wrap.weights import load_weights
from fedpa.models.wrap.wrapped import Loss, Wrapped

__all__ = ["wrap"]


def wrap(
    module: nn.Module,
    targets: str | Sequence[str],
    *,
    rank: int = 4,
    alpha: float | None = None,
    groups: Sequence[str] | None = None,
    gate_hidden: int = 8,
    train: str | Sequence[str] = (),
    labels: Sequence[str] = (),
    loss: Loss | None = None,
    history: int = 0,
    engine: Literal["flat", "loop"] = "flat",
    weights: Path | str | Mapping[str, Path | str] | None = None,
    rows_per_chunk: int = 1024,
    cache_bytes: int = 256 << 20,
) -> Wrapped:
    """Make a foundation of any module: FedPA's adapters go around its linear layers.

    Parameters
    ----------
    module : Module
        Called with one argument, `fedpa.models.wrap.rows.Rows`; returns logits [rows], or [rows, labels]. It is frozen
        and put in eval mode; its code and its weights stay as they are.
    targets : str or sequence of str
        The layers that get adapters: ``nn.Linear``, or ``nn.Sequential`` of one and an activation. In a sequence each
        is a whole name or the end of one from a dot on, in which ``*`` stands for anything; one string is a regular
        expression over whole names, or ``"all-linear"``, as in PEFT.
    rank, alpha, groups, gate_hidden
        Of the adapters, where `adapt` is not told otherwise: rank and scale of LoRA (`alpha` None: the preset's),
        keys of the group-level LoRA (None: all of the data set's) and hidden width of every gate.
    train : str or sequence of str
        Linear layers, such as the output head, that each device trains itself, as FedPA does with its head; they are no
        targets.
    labels : sequence of str
        The data set's labels behind several logits, first the one that is scored, which is the data set's own.
    loss : callable, optional
        From logits and labels, both [rows] or [rows, labels], to the loss of each row [rows]; by default the binary
        cross-entropy, summed over labels.
    history : int
        Of how many latest own rows `Rows.history` tells; 0 for none.
    engine : {"flat", "loop"}
        ``loop`` runs one user after another, for modules in which rows of a batch meet each other.
    weights : path or mapping, optional
        A local folder of safetensors files, or by submodule such folders; see `load_weights`.
    rows_per_chunk : int
        Rows that go through the module together, which bounds memory; one user's rows of a step always do.
    cache_bytes : int
        Of results of frozen parts kept across chunks and rounds.

    Returns
    -------
    Wrapped
        Takes a foundation's place in `adapt` and `load_run`.

    Raises
    ------
    ConfigError
        If a target matches no linear layer, or a setting is out of range.
    ArtifactError
        If weights are missing or do not fit.
    """
    if engine not in ("flat", "loop"):
        raise ConfigError(f"wrap: unknown engine {engine!r}, expected 'flat' or 'loop'")
    if rows_per_chunk < 1 or gate_hidden < 1 or cache_bytes < 0 or history < 0:
        raise ConfigError("wrap: rows_per_chunk and gate_hidden must be at least 1, cache_bytes and history at least 0")
    for name, folder in {"": weights}.items() if not isinstance(weights, Mapping) else weights.items():
        if folder is not None:
            load_weights(_submodule(module, name), folder)
    found = find_layers(module, targets, "target")
    trained = find_layers(module, train, "train") if train else []
    _compatible(module, found, trained)
    defaults: dict[str, Any] = {"rank": rank, "gate_hidden": (gate_hidden,) * len(found)}
    defaults |= {} if alpha is None else {"alpha": alpha}
    defaults |= {} if groups is None else {"groups": tuple(groups)}
    module.eval().requires_grad_(False)
    forward = Forward(module, found, trained, max(1, len(labels)), loop=engine == "loop")
    facts = {
        "module": f"{type(module).__module__}.{type(module).__qualname__}",
        "targets": found,
        "train": trained,
        "labels": list(labels),
        "history": history,
        "engine": engine,
    }
    return Wrapped(
        model=cast(MLP, module),
        features={},
        facts=facts,
        hash=_hash(module, facts),
        inputs=PastInputs() if history else Inputs(),
        forward=forward,
        labels=tuple(labels),
        loss=loss or _cross_entropy,
        defaults=defaults,
        rows_per_chunk=rows_per_chunk,
        cache_bytes=cache_bytes,
    )


def _hash(module: nn.Module, facts: Mapping[str, Any]) -> str:
    """SHA-256 over class, targets, labels and weights."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy [rows], summed over labels."""
    losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return losses if losses.dim() == 1 else losses.sum(-1)


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        known = ", ".join(child for child, _ in module.named_children())
        raise ConfigError(f"weights: {type(module).__name__} has no submodule {name!r}; it has {known}") from None


def _compatible(module: nn.Module, targets: Sequence[str], trained: Sequence[str]) -> None:
    """Refuse what is contradictory from the names alone."""
    both = [name for name in targets if any(name == one or one.startswith(f"{name}.") for one in trained)]
    if both:
        raise ConfigError(f"{both[0]!r} is both a target and trained itself", "leave it out of one of the two")
    for name in trained:
        layer = module.get_submodule(name)
        if isinstance(layer, nn.Sequential) or not is_adaptable(layer):
            raise ConfigError(f"train {name!r}: expected nn.Linear, found {type(layer).__name__}")
    names: dict[int, list[str]] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    shared = [same for same in names.values() if len(same) > 1]
    tied = next((same for same in shared if any(name.rpartition(".")[0] in trained for name in same)), None)
    if tied:
        raise ConfigError(
            f"train: {tied[0]!r} and {tied[1]!r} are one weight, which training would part",
            "make the layer a target, or give it a weight of its own",
        )
    dtypes = {value.dtype for value in module.parameters() if value.is_floating_point()}
    if dtypes not in ({torch.float32}, {torch.float64}):
        raise ConfigError(
            f"{type(module).__name__}: its weights are {', '.join(sorted(map(str, dtypes))) or 'none'}; expected all "
            "torch.float32 or all torch.float64",
            "convert it: module.float()",
        )
