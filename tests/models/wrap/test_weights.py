"""Weights from a local folder of safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import fedpa
from fedpa.errors import ArtifactError, ConfigError


class Net(nn.Module):
    """Two layers, of which the second's weight has two names."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.second.weight


def saved(folder: Path, files: int = 1) -> dict[str, torch.Tensor]:
    """Weights as Hugging Face writes them: shared ones once, large models in several files with an index."""
    state = {k: v for k, v in Net(1).state_dict().items() if k != "tied.weight"}
    folder.mkdir(exist_ok=True)
    if files == 1:
        safetensors.torch.save_file(state, folder / "model.safetensors")
        return state
    index = {}
    for number, name in enumerate(state):
        file = f"model-{number % files + 1:05}-of-{files:05}.safetensors"
        index[name] = file
    for file in set(index.values()):
        safetensors.torch.save_file({k: v for k, v in state.items() if index[k] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return state


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("part", ["", "inside"])
def test_weights_are_loaded(tmp_path: Path, files: int, part: str) -> None:
    state = saved(tmp_path / "weights", files)
    net = Net()
    module = nn.ModuleDict({"inside": net, "other": nn.Linear(2, 2)}) if part else net
    fedpa.wrap(module, ["first"], weights={part: tmp_path / "weights"} if part else tmp_path / "weights")
    for name, value in state.items():
        assert torch.equal(net.state_dict()[name], value)
    assert net.tied.weight is net.second.weight


def test_a_file_is_as_good_as_its_folder(tmp_path: Path) -> None:
    saved(tmp_path)
    net = Net()
    fedpa.load_weights(net, tmp_path / "model.safetensors")
    assert torch.equal(net.first.weight, Net(1).first.weight)


def test_a_transformer_that_was_saved_is_loaded(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    torch.manual_seed(0)
    source = BertModel(config)
    source.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    torch.manual_seed(1)
    into = BertModel(config)
    fedpa.load_weights(into, tmp_path)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in into.state_dict().items())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = saved(tmp_path)
    broken = {**state, "first.weight": torch.zeros(4, 5), "more": torch.zeros(1)}
    del broken["first.bias"]
    safetensors.torch.save_file(broken, tmp_path / "model.safetensors")
    net, before = Net(), Net()
    with pytest.raises(
        ArtifactError,
        match=r"1 missing \(first\.bias\); 1 unexpected \(more\); "
        r"1 of another shape \(first\.weight is \[4, 5\], expected \[4, 3\]\)",
    ):
        fedpa.load_weights(net, tmp_path)
    assert torch.equal(net.first.weight, before.first.weight)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    net = Net()
    with pytest.raises(ArtifactError, match="gone: no such file or folder"):
        fedpa.load_weights(net, tmp_path / "gone")
    with pytest.raises(ArtifactError, match=r"holds no \.safetensors file"):
        fedpa.load_weights(net, tmp_path)
    saved(tmp_path, 2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"00002-of-00002\.safetensors: missing, although model"):
        fedpa.load_weights(net, tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"12345678")
    with pytest.raises(ArtifactError, match=r"00002-of-00002\.safetensors: cannot be read"):
        fedpa.load_weights(net, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ArtifactError, match="is no index of safetensors files"):
        fedpa.load_weights(net, tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ArtifactError, match=r"holds 2 \.safetensors files and no"):
        fedpa.load_weights(net, tmp_path)


def test_a_submodule_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Net has no submodule 'encoder'; it has first, second"):
        fedpa.wrap(Net(), ["first"], weights={"encoder": tmp_path})
