"""A comparison measures every cell once, goes on where it was cut off, and survives methods that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import answer, fedpa
from fedpa.artifacts import sha256
from fedpa.comparison.cells import Cell, Cells
from fedpa.comparison.compare import compare
from fedpa.comparison.plan import applicable, compared_methods, plan, task_dataset
from fedpa.comparison.results import Results, read_results
from fedpa.data.dataset import Part
from fedpa.errors import ArtifactError, ConfigError
from fedpa.tuning.chosen import Chosen, chosen_settings, data_name, write_chosen
from prepared import Small, small
from processes import until

THREE = ("two-counters", "foundation", "fedpa")
PROGRAM = (sys.executable, "-c", "import fedpa.cli; fedpa.cli.main()")
BROKEN = """
import os
from fedpa.methods import TwoCounters

class Broken(TwoCounters):
    name = "broken"
    def scores(self, foundation, dataset, rows):
        raise ValueError("out of luck")

class Dies(TwoCounters):
    name = "dies"
    def scores(self, foundation, dataset, rows):
        os._exit(3)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


def measured(world: Small, out: Path, *specs: str, **options: Any) -> tuple[Results, list[str]]:
    """The results and what was said; one round of whatever trains, one seed."""
    said: list[str] = []
    options = {"settings": {"rounds": 1}, "seeds": 1, "jobs": 1, "draws": 20, **options}
    found = compare(world.dataset, out=out, methods=specs or THREE, say=said.append, **options)
    return found, said


@pytest.fixture(scope="module")
def finished(world: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "comparison"
    found, said = measured(world, out)
    assert found.failed == {}
    assert said[0].startswith("3 cells, 0 of them finished: the rest takes about")
    assert [line.partition(":")[0] for line in said if line.startswith("3/3")]
    return out


def files(out: Path) -> dict[str, tuple[int, str]]:
    return {str(p.relative_to(out)): (p.stat().st_mtime_ns, sha256(p)) for p in (out / "cells").rglob("*.*")}


def test_every_cell_is_kept(world: Small, finished: Path) -> None:
    assert sorted(files(finished)) == sorted(f"cells/click/{spec}/0.{end}" for spec in THREE for end in ("json", "npz"))
    cells = Cells(finished / "cells")
    content = cells.read(Cell("click", "fedpa", 0))
    assert content is not None
    assert (content["error"], content["settings"]["rounds"]) == (None, 1)
    # The settings that are shipped for synthetic users, but for those of the caller.
    shipped = chosen_settings(data_name(world.dataset), "click", "fedpa")
    assert shipped is not None
    assert (content["settings_from"], content["trials"]) == ("tuned", shipped.trials)
    kept = {key: value for key, value in shipped.settings.items() if key != "rounds"}
    assert {key: content["settings"][key] for key in kept} == kept
    assert content["fingerprint"]["dataset"] == world.dataset.hash
    assert [line["round"] for line in content["history"]] == [0, 1]
    trained = content["history"][1]
    assert content["device_seconds"] == pytest.approx(trained["seconds_train"] / trained["participants"])
    splits, metrics = content["summary"]["splits"]["test"], content["metrics"]
    assert {name: metrics[name] for name in ("gauc", "logloss")} == pytest.approx(
        {name: splits[name] for name in ("gauc", "logloss")}, abs=1e-6
    )
    assert metrics["auc"] == pytest.approx(splits["auc"], abs=1e-4)  # a round's is from 10,000 bins of the score
    assert set(content["cold"]) == {"support_0", "support_1", "support_3", "support_5"}
    assert content["by_history"].keys() == {"0-4", "5-9", "10-19", "20-49", "50+"}
    scores = cells.arrays(Cell("click", "foundation", 0))["scores"]
    assert scores.dtype == np.float32
    assert scores.shape == (len(world.dataset.rows(Part.TEST)),)
    counters = cells.read(Cell("click", "two-counters", 0))
    assert counters is not None
    assert (counters["device_seconds"], counters["rounds_to_99"]) == (None, None)
    assert not list((finished / "work").rglob("run"))


def test_only_what_is_missing_is_measured(world: Small, finished: Path) -> None:
    before = files(finished)
    lost = finished / "cells" / "click" / "fedpa" / "0.json"
    lost.unlink()
    _, said = measured(world, finished)
    assert said[0].startswith("3 cells, 2 of them finished")
    assert [line.partition(":")[0] for line in said if "seed" in line] == ["3/3 click fedpa seed 0"]
    after = files(finished)
    assert {name for name in after if after[name] != before[name]} == {
        "cells/click/fedpa/0.json", "cells/click/fedpa/0.npz",
    }  # fmt: skip
    _, said = measured(world, finished)
    assert said[0] == "all 3 cells are finished: nothing is left to measure"
    assert files(finished) == after


def test_other_settings_are_measured_again(world: Small, finished: Path, tmp_path: Path) -> None:
    _, said = measured(world, finished, settings={"rounds": 1, "rank": 2})
    assert said[0].startswith("3 cells, 2 of them finished")
    chosen = tmp_path / "chosen.yaml"
    write_chosen(chosen, {("click", "fedpa"): Chosen({"rank": 2}, 7, 0.6, 0.5)})
    _, said = measured(world, finished, tuned=chosen)
    # The same settings by another way are the same cell.
    assert said[0].startswith("all 3 cells are finished")


@pytest.mark.slow
def test_a_method_that_fails_does_not_stop_the_others(world: Small, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(BROKEN)
    out = tmp_path / "out"
    broken, dies = f"{file}:Broken", f"{file}:Dies"
    found, _ = measured(world, out, broken, dies, "two-counters")
    assert read_results(out / "results.json") == found
    assert [row.error for row in found.tasks[0].rows] == [
        "ValueError: out of luck", "its process ended with exit code 3", None,
    ]  # fmt: skip
    assert found.failed == {
        f"click {broken} seed 0": "ValueError: out of luck",
        f"click {dies} seed 0": "its process ended with exit code 3",
    }
    cells = Cells(out / "cells")
    noted = cells.read(Cell("click", broken, 0))
    assert noted is not None
    assert "out of luck" in noted["details"]
    file.write_text(
        BROKEN.replace('raise ValueError("out of luck")', "return super().scores(foundation, dataset, rows)")
    )
    found, said = measured(world, out, broken, "two-counters")
    assert said[0].startswith("2 cells, 1 of them finished")
    assert found.failed == {}


@pytest.mark.slow
def test_without_a_foundation_only_those_who_need_it_fail(world: Small, finished: Path, tmp_path: Path) -> None:
    (made,) = finished.glob("work/*/foundation-click-0")
    out = tmp_path / "out"
    measured(world, out, "two-counters")
    in_the_way = out / made.relative_to(finished)
    in_the_way.write_text("a file")
    found, said = measured(world, out)
    assert found.failed.keys() == {"click foundation seed 0", "click fedpa seed 0"}
    assert all(reason.startswith("no foundation: ") for reason in found.failed.values())
    assert said[0].startswith("3 cells, 1 of them finished")
    in_the_way.unlink()
    found, _ = measured(world, out)
    assert found.failed == {}


def test_the_exit_code_says_that_cells_failed(world: Small, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(BROKEN)
    arguments = ("compare", world.dataset.path, "--out", tmp_path / "out", "--seeds", 1, "--jobs", 1, "--draws", 10)
    result = fedpa(*arguments, "--methods", f"two-counters,{file}:Broken", code=1)
    assert "1 cells failed" in result.stderr
    assert "out of luck" in result.stderr
    found = answer(*arguments, "--methods", "two-counters")
    assert found["failed"] == {}


@pytest.mark.slow
def test_a_killed_command_goes_on(world: Small, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        *PROGRAM, "compare", str(world.dataset.path), "--out", str(out),
        "--methods", "two-counters,foundation,fedpa,fedpa+reference", "--seeds", "2", "--jobs", "1", "--draws", "10",
        "--set", "rounds=3",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as first:

        def two_are_there() -> bool:
            assert first.poll() is None, first.stderr.read() if first.stderr else ""
            return len(list(out.glob("cells/**/*.json"))) >= 2

        until(two_are_there, 300, "two finished cells", pause=0.02)
        first.kill()
    time.sleep(1)
    kept = files(out)
    whole = [name for name in kept if name.endswith(".json")]
    assert 2 <= len(whole) < 7
    for name in whole:
        json.loads((out / name).read_text())
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert second.stderr.startswith(f"7 cells, {len(whole)} of them finished")
    after = files(out)
    assert len([name for name in after if name.endswith(".json")]) == 7
    assert {name: after[name] for name in whole} == {name: kept[name] for name in whole}
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(world: Small, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        *PROGRAM, "compare", str(world.dataset.path), "--out", str(out),
        "--methods", "two-counters,fedpa+reference", "--seeds", "1", "--jobs", "2", "--set", "rounds=5000",
        "--set", "patience=0",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    ) as first:
        until(lambda: list(out.glob("cells/**/*.json")), 300, "a finished cell", pause=0.05)
        time.sleep(1)
        os.killpg(first.pid, signal.SIGINT)
        _, said = first.communicate(timeout=20)
    assert first.returncode == 130
    assert "1 of 2 cells are finished and kept: the same command goes on from there" in said
    assert len(list(out.glob("cells/**/*.json"))) == 1
    assert not (out / "work" / "scratch").exists()


def test_the_plan_offers_settings_to_those_who_have_them(world: Small) -> None:
    data = {"click": world.dataset}
    planned = plan(["two-counters", "fedpa"], data, 2, "unheard-of", True, {"rank": 2, "rounds": 4})
    by_spec = {one.cell.spec: one for one in planned}
    assert by_spec["fedpa"].settings == {"rank": 2, "rounds": 4}
    assert by_spec["two-counters"].settings == {"rounds": 4}
    assert [one.cell.seed for one in planned if one.cell.spec == "fedpa"] == [0, 1]
    with pytest.raises(ConfigError, match="setting 'ranks': none of the methods has it"):
        applicable({"ranks": 1}, ["two-counters", "fedpa"])


def test_slips_are_named_before_anything_is_written(world: Small, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options, message in (
        ({"methods": ["fedpo"]}, "unknown method 'fedpo'"),
        ({"methods": []}, "methods: none was named"),
        ({"tasks": ("clicks",)}, "unknown task 'clicks', expected click or topk"),
        ({"seeds": 0}, "seeds: found 0, expected at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            compare(world.dataset, out=out, **options)
    assert not out.exists()
    assert "fedpa+reference" in compared_methods("all")
    assert task_dataset(world.dataset, "click", tmp_path) is world.dataset


def test_another_folder_is_left_alone(world: Small, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ArtifactError, match="is not the folder of a comparison"):
        measured(world, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
