"""A checkpoint of the published code becomes a foundation that computes the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import arrays
from fedpa.data.dataset import Dataset
from fedpa.data.prepare import prepare
from fedpa.data.sources import open_source
from fedpa.errors import ArtifactError
from fedpa.methods.fedpa import FedPA
from fedpa.models.adapted import AdapterSettings
from fedpa.models.foundation import load_foundation
from fedpa.models.published import import_reference
from shared import need

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    source = open_source("kuairand-pure", need("data/kuairand-pure"))
    return prepare(source, tmp_path_factory.mktemp("reference") / "dataset", features="reference", min_rows=5)


@pytest.fixture(scope="module")
def golden() -> dict[str, npt.NDArray[Any]]:
    with np.load(need("golden/three_rounds.npz")) as file:
        return {name.removeprefix("init/"): file[name] for name in file.files if name.startswith("init/")}


def checkpoint(golden: dict[str, npt.NDArray[Any]]) -> State:
    return {name: torch.from_numpy(value) for name, value in golden.items()}


def forward(weights: dict[str, npt.NDArray[Any]], dataset: Dataset, user: int, item: int) -> float:
    """The published backbone, written by hand: embeddings, two layers with ReLU, a head."""
    x = np.concatenate(
        [
            *(
                weights[f"embedding_user_features.{feature.name}.weight"][code]
                for feature, code in zip(dataset.user_features, dataset.user_codes[user], strict=True)
            ),
            *(
                weights[f"embedding_video_features.{feature.name}.weight"][code]
                for feature, code in zip(dataset.item_features, dataset.item_codes[item], strict=True)
            ),
        ]
    )
    for layer in range(2):
        x = np.maximum(weights[f"fc_layers.{layer}.weight"] @ x + weights[f"fc_layers.{layer}.bias"], 0)
    return float(weights["affine_output.weight"][0] @ x + weights["affine_output.bias"][0])


@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
def test_forward_is_the_published_one(
    dataset: Dataset, golden: dict[str, npt.NDArray[Any]], tmp_path: Path, nest: str | None
) -> None:
    file = tmp_path / "epoch.pth"
    torch.save(checkpoint(golden) if nest is None else {nest: checkpoint(golden), "epoch": 3}, file)
    foundation = import_reference(file, dataset)
    assert foundation.facts == {"imported": "epoch.pth", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    pairs = [(0, 0), (3, 11), (dataset.n_users - 1, dataset.n_items - 1), (17, 4000)]
    users, items = (torch.tensor(side) for side in zip(*pairs, strict=True))
    found = foundation.model(
        torch.from_numpy(dataset.user_codes)[users].long(),
        torch.from_numpy(dataset.item_codes)[items].long(),
        torch.zeros(len(pairs), 0, dtype=torch.int64),
    )
    expected = [forward(golden, dataset, user, item) for user, item in pairs]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)

    foundation.save(tmp_path / "foundation")
    loaded = load_foundation(tmp_path / "foundation")
    loaded.check(dataset)
    assert loaded.hash == foundation.hash
    model = FedPA(AdapterSettings()).build(loaded, dataset, 0, torch.device("cpu"))
    assert model.layout.size > 0


def toy() -> tuple[Dataset, State]:
    """A small data set and a checkpoint that fits it."""
    data = arrays.toy(6, np.full(6, 5))
    state = {
        "embedding_user_features.kind.weight": torch.randn(3, 2),
        "embedding_user_features.size.weight": torch.randn(3, 2),
        "embedding_video_features.type.weight": torch.randn(4, 2),
        "embedding_video_features.colour.weight": torch.randn(3, 2),
        "fc_layers.0.weight": torch.randn(5, 8),
        "fc_layers.0.bias": torch.randn(5),
        "affine_output.weight": torch.randn(1, 5),
        "affine_output.bias": torch.randn(1),
        "gate_layers.0.weight": torch.randn(8, 8),
        "loras.0_lora_a": torch.randn(8, 4),
    }
    return data, state


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def changed(name: str, value: object) -> Callable[[State], State]:
    return lambda state: {**state, name: value}  # type: ignore[dict-item]


def test_other_widths_and_numbers_of_layers_are_read_from_the_file(tmp_path: Path) -> None:
    data, state = toy()
    torch.save(state, tmp_path / "a.pth")
    model = import_reference(tmp_path / "a.pth", data).model
    assert (model.embedding, model.hidden) == (2, (5,))
    assert model.head.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("affine_output.bias"), "affine_output.bias is missing"),
        (without("embedding_user_features.size.weight"), "embedding_user_features.size.weight is missing"),
        (without("fc_layers.0.weight"), "no fc_layers"),
        (
            changed("embedding_video_features.type.weight", torch.zeros(7, 2)),
            r"embedding_video_features.type.weight has shape \[7, 2\], expected \[4, 2\]",
        ),
        (changed("fc_layers.0.weight", torch.zeros(5, 9)), r"fc_layers.0.weight has shape \[5, 9\], expected \[5, 8\]"),
        (changed("affine_output.bias", torch.tensor([float("nan")])), "affine_output.bias holds values that are not"),
        (changed("embedding_user_features.city.weight", torch.zeros(2, 2)), "embedding_user_features.city.weight is"),
        (changed("fc_layers.2.weight", torch.zeros(5, 5)), "fc_layers.0, fc_layers.2, expected .* numbered from 0"),
        (changed("optimizer", {"lr": 1}), "expected named weights, found optimizer"),
        (lambda state: {}, "expected named weights, found none"),
        (lambda state: list(state.values()), "holds a list, expected named weights"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: Callable[[State], Any], message: str) -> None:
    data, state = toy()
    torch.save(change(state), tmp_path / "a.pth")
    with pytest.raises(ArtifactError, match=message) as raised:
        import_reference(tmp_path / "a.pth", data)
    assert str(tmp_path / "a.pth") in str(raised.value)
    assert raised.value.fix


def test_every_mismatch_is_named_at_once(tmp_path: Path) -> None:
    data, state = toy()
    del state["affine_output.bias"]
    state["fc_layers.0.bias"] = torch.zeros(6)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ArtifactError) as raised:
        import_reference(tmp_path / "a.pth", data)
    assert "affine_output.bias is missing" in raised.value.message
    assert "fc_layers.0.bias has shape [6], expected [5]" in raised.value.message


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, state = toy()
    torch.save({**state, "extra": Code()}, tmp_path / "a.pth")
    with pytest.raises(ArtifactError, match=r"holds code, which is not run .*mkdir") as raised:
        import_reference(tmp_path / "a.pth", data)
    assert raised.value.fix
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello" * 100, b"PK\x03\x04 cut short", b"\x80\x04\x95"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.pth: (cannot be read as|not) a checkpoint"):
        import_reference(tmp_path / "a.pth", toy()[0])


def test_missing_file_and_causal_features_are_refused(tmp_path: Path) -> None:
    data, state = toy()
    with pytest.raises(ArtifactError, match="no such file"):
        import_reference(tmp_path / "a.pth", data)
    torch.save(state, tmp_path / "a.pth")
    data.manifest["settings"]["features"] = "causal"
    with pytest.raises(ArtifactError, match="causal features") as raised:
        import_reference(tmp_path / "a.pth", data)
    assert raised.value.fix == "prepare the data set with --features reference"
