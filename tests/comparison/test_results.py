from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from compared import CLICK, NASTY, results, row
from fedpa.comparison.long_form import csv_text
from fedpa.comparison.results import Measured, Results, read_results, write_results
from fedpa.errors import ArtifactError


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = results()
    write_results(tmp_path, written)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.html", "results.csv", "results.json", "results.md",
    ]  # fmt: skip
    assert read_results(tmp_path / "results.json") == written
    content = json.loads((tmp_path / "results.json").read_text())
    assert (content["kind"], content["format_version"], content["fedpa"]) == ("comparison", 1, "1.2.3")
    assert Results.model_validate(written.as_dict()) == written
    # Equal results give equal bytes, and what is there is replaced.
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_results(tmp_path, written)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_csv_holds_every_value() -> None:
    made = results(row("odd", "0.1 + 0.2", "baseline", metrics={"gauc": Measured(value=0.1 + 0.2)}))
    lines = list(csv.DictReader(io.StringIO(csv_text(made))))
    mine = [line for line in lines if line["method"] == "my.py:Mine"]
    assert {line["title"] for line in mine} == {NASTY}
    seeds = [line for line in mine if line["seed"] != "all" and line["metric"] == "gauc"]
    assert [(line["seed"], float(line["value"])) for line in seeds] == [("0", 0.59), ("2", 0.61)]
    (mean,) = [line for line in mine if (line["seed"], line["metric"], line["reference"]) == ("all", "auc", "")]
    assert [mean[key] for key in ("value", "low", "high", "p", "error")] == ["0.6", "0.58", "0.62", "", ""]
    (gain,) = [line for line in mine if (line["metric"], line["reference"]) == ("logloss", "foundation")]
    assert [gain[key] for key in ("value", "low", "high", "p", "p_holm")] == ["0.01", "-0.002", "0.022", "0.02", "0.04"]
    assert len(mine) == len(CLICK) * (2 + 1 + 1)
    (odd,) = [line for line in lines if line["method"] == "odd" and line["metric"] == "gauc" and not line["reference"]
              and line["seed"] == "all"]  # fmt: skip
    assert float(odd["value"]) == 0.1 + 0.2
    (failed,) = [line for line in lines if line["method"] == "fedrap"]
    assert (failed["error"], failed["value"], failed["inputs"]) == ("loss <nan> | stopped", "", "item ids")
    assert {line["task"] for line in lines} == {"click", "topk"}


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(ArtifactError, match=r"results\.json: cannot be read"):
        read_results(path)
    path.write_text('{"kind": "comparison"}')
    with pytest.raises(ArtifactError, match="not the results of a comparison \\(dataset: Field required\\)"):
        read_results(path)
    path.write_text(json.dumps(results(format_version=99).as_dict()))
    with pytest.raises(ArtifactError, match="format version 99, this fedpa reads version 1"):
        read_results(path)
    with pytest.raises(ValidationError, match="finite"):
        Measured(value=float("nan"))
