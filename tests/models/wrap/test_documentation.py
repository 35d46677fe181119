"""The example of the documentation runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fedpa
from command import answer
from fedpa.models.wrap.wrapped import Wrapped
from models.wrap.modules import tokens_of
from prepared import small

PAGE = Path(__file__).parents[3] / "docs" / "bring-your-own-foundation.md"


def test_the_example(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    made = small(tmp_path_factory)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset").symlink_to(made.dataset.path.resolve())
    save_file({"tokens": tokens_of(made.dataset.n_items)}, tmp_path / "tokens.safetensors")
    (code,) = re.findall(r"```python\n(# my_file\.py\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_file.py").write_text(code)
    names: dict[str, object] = {}
    exec(code, names)
    ranker = names["TextRanker"]
    module = ranker(tokens_of(made.dataset.n_items), made.dataset.user_features)  # type: ignore[operator]
    (tmp_path / "weights").mkdir()
    save_file(module.state_dict(), tmp_path / "weights" / "model.safetensors")
    rounds = ("--set", "rounds=1", "--set", "patience=0")
    assert answer("adapt", "my_file.py:build", "dataset", "--out", "run", *rounds)["rounds"] == 1
    run = fedpa.load_run("run")
    wrapped = run.foundation
    assert wrapped is not None
    assert torch.equal(wrapped.model.get_parameter("head.bias"), module.head.bias)
    assert isinstance(wrapped, Wrapped)
    wrapped.check(made.dataset)
    lower = [f"text.encoder.layer.{layer}" for layer in range(3)]
    assert wrapped.once == (*lower, "text.encoder.layer.3.attention.self.key")
