"""The demo goes the whole path and overwrites nothing but a demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedpa import load_run
from fedpa.demo import demo
from fedpa.errors import ArtifactError, ConfigError


@pytest.mark.slow
def test_demo_ends_with_what_adaptation_is_worth(tmp_path: Path) -> None:
    told: list[str] = []
    found = demo(tmp_path / "demo", users=150, items=60, progress=told.append)
    assert [line.split()[0] for line in told] == [*found["seconds"]]
    run = load_run(tmp_path / "demo/run")
    yardsticks = run.yardsticks()
    assert [*yardsticks] == ["two counters", "frozen foundation", "FedPA", "oracle"]
    assert found["yardsticks"] == {
        name: {key: report[key] for key in ("gauc", "auc", "logloss")} for name, report in yardsticks.items()
    }
    assert found["yardsticks"]["oracle"]["gauc"] > 0.7
    assert found["bytes_up_per_user_round"] == run.summary["bytes_up_per_user_round"] > 0
    user = found["recommendation"]["user"]
    assert user in run.dataset.user_ids.gather(run.rows.users)
    assert found["recommendation"] == run.recommender.recommend(user).as_dict()
    assert (found["recommendation"]["notes"] == []) == (run.summary["best_round"] > 0)
    assert json.loads((tmp_path / "demo/demo.json").read_text())["yardsticks"] == found["yardsticks"]

    again = demo(tmp_path / "demo", users=150, items=60)
    assert again["yardsticks"] == found["yardsticks"]


def test_demo_spares_what_is_no_demo(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ArtifactError, match="is not an earlier demo"):
        demo(tmp_path)
    with pytest.raises(ArtifactError, match="is not an earlier demo"):
        demo(tmp_path / "mine")
    (tmp_path / "demo.json").write_text("[]")
    with pytest.raises(ArtifactError, match="is not an earlier demo"):
        demo(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.slow
def test_a_demo_that_failed_may_be_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="users is 3"):
        demo(tmp_path / "demo", users=3)
    demo(tmp_path / "demo", users=60, items=40)
