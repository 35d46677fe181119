"""Targets by name and by pattern."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fedpa
from fedpa.errors import ConfigError
from fedpa.models.wrap.targets import find_layers


def module() -> nn.Module:
    """Two blocks with a query, a value and a feed-forward of linear layer and activation; an output."""
    blocks = [
        nn.ModuleDict(
            {
                "query": nn.Linear(4, 4),
                "value": nn.Linear(4, 4),
                "forward_": nn.Sequential(nn.Linear(4, 6), nn.GELU()),
                "norm": nn.LayerNorm(4),
                "conv": nn.Conv1d(4, 4, 1),
            }
        )
        for _ in range(2)
    ]
    return nn.ModuleDict({"blocks": nn.ModuleList(blocks), "out": nn.Linear(4, 1)})


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["query"], ["blocks.0.query", "blocks.1.query"]),
        (["1.query", "out"], ["blocks.1.query", "out"]),
        (["blocks.0.query"], ["blocks.0.query"]),
        (["blocks.1.*"], ["blocks.1.query", "blocks.1.value", "blocks.1.forward_"]),
        (["forward_"], ["blocks.0.forward_", "blocks.1.forward_"]),
        (["forward_.0"], ["blocks.0.forward_.0", "blocks.1.forward_.0"]),
        (r"blocks\.\d\.(query|value)", ["blocks.0.query", "blocks.0.value", "blocks.1.query", "blocks.1.value"]),
        (
            "all-linear",
            [f"blocks.{n}.{name}" for n in range(2) for name in ("query", "value", "forward_")] + ["out"],
        ),
    ],
)
def test_what_matches(wanted: Any, expected: list[str]) -> None:
    assert find_layers(module(), wanted, "target") == expected


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["qurey"], r"target 'qurey' of ModuleDict: matches nothing; near: query"),
        (["blocks.0.quer"], r"near: blocks\.0\.query"),
        (["zzz"], r"matches nothing; its linear layers: blocks\.0\.query, "),
        (["norm"], r"matches 'blocks\.0\.norm', which is LayerNorm; expected nn\.Linear"),
        (["conv"], r"which is Conv1d"),
        (["query", "nothing"], r"target 'nothing'"),
        ("(", r"is not a regular expression"),
        ("quer", r"target 'quer'"),
    ],
)
def test_what_matches_no_linear_layer_is_an_error(wanted: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_layers(module(), wanted, "target")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"targets": ["out"], "train": ["out"]}, "'out' is both a target and trained itself"),
        ({"targets": ["forward_"], "train": ["1.forward_.0"]}, "is both a target"),
        ({"targets": ["out"], "train": ["forward_"]}, r"train 'blocks\.0\.forward_': expected nn\.Linear, found Seq"),
        ({"targets": ["out"], "engine": "fast"}, "unknown engine 'fast'"),
        ({"targets": ["out"], "rows_per_chunk": 0}, "rows_per_chunk and gate_hidden must be at least 1, cache"),
    ],
)
def test_contradictions_are_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fedpa.wrap(module(), **values)


def test_a_weight_of_two_names_is_not_trained() -> None:
    net = module()
    net.add_module("tied", nn.Linear(4, 1))
    net.get_submodule("tied").weight = net.get_parameter("out.weight")
    with pytest.raises(ConfigError, match=r"train: 'out\.weight' and 'tied\.weight' are one weight"):
        fedpa.wrap(net, ["query"], train=["tied"])


def test_half_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"its weights are torch\.bfloat16; expected all torch\.float32"):
        fedpa.wrap(module().to(torch.bfloat16), ["out"])


def test_the_hash_is_of_class_targets_labels_and_weights() -> None:
    torch.manual_seed(0)
    first = module()
    torch.manual_seed(0)
    second = module()
    hashes = [
        fedpa.wrap(first, ["out"]).hash,
        fedpa.wrap(first, ["query"]).hash,
        fedpa.wrap(first, ["out"], train=["query"]).hash,
        fedpa.wrap(first, ["out"], engine="loop").hash,
    ]
    assert len(set(hashes)) == 4
    assert fedpa.wrap(second, ["out"], rank=2).hash == hashes[0]
    with torch.no_grad():
        second.get_parameter("out.bias").add_(1e-6)
    assert fedpa.wrap(second, ["out"]).hash != hashes[0]


def test_a_wrapped_module_is_not_saved_as_a_folder() -> None:
    with pytest.raises(ConfigError, match="a wrapped module is not saved"):
        fedpa.wrap(module(), ["out"]).save("folder")
