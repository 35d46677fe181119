"""Chosen settings are found by data set, task and method."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import yaml

from arrays import toy
from fedpa.errors import ConfigError
from fedpa.methods import find_method, parse_spec
from fedpa.tuning.chosen import Chosen, chosen_settings, data_name, read_chosen, write_chosen

ONE = Chosen({"lr": 0.01, "batch_size": 8}, 20, 0.65, 0.6)


def test_written_and_read_again(tmp_path: Path) -> None:
    written = {("click", "fedpa+reference"): ONE, ("topk", "fedpa"): Chosen({}, 1, None, None)}
    write_chosen(tmp_path / "chosen.yaml", written)
    assert read_chosen(tmp_path / "chosen.yaml") == written


@pytest.mark.parametrize("text", ["- a", "click: [fedpa]", "click: {fedpa: {lr: 0.1}}", "click: {fedpa: 1}", "{", ""])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "chosen.yaml"
    file.write_text(text)
    if not text:
        assert read_chosen(file) == {}
        return
    with pytest.raises(ConfigError, match=r"(?s)chosen\.yaml.*\n.*fedpa tune"):
        read_chosen(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_chosen(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("source", ["unheard-of", "../ranges", "a/b", ""])
def test_an_unknown_data_set_has_none(source: str) -> None:
    assert chosen_settings(source, "click", "fedpa") is None


@pytest.mark.parametrize(("features", "split"), [("causal", "per-user"), ("reference", "published")])
def test_what_settings_are_chosen_for(features: str, split: str) -> None:
    data = toy(2, np.full(2, 2))
    settings = {"features": features, "split": split, "min_rows": 5}
    data.manifest |= {"source": "kuaisar-r", "label": "like", "settings": settings}
    assert data_name(data) == f"kuaisar-r-like-{features}-{split}"


def test_all_that_is_shipped_fits_its_method() -> None:
    folder = files("fedpa.tuning") / "chosen"
    for file in folder.iterdir() if folder.is_dir() else ():
        source = file.name.removesuffix(".yaml")
        for task, specs in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            for spec in specs:
                chosen = chosen_settings(source, task, spec)
                assert chosen is not None
                name, preset = parse_spec(spec)
                find_method(name).configured(preset, chosen.settings)
