import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fedpa.errors import ArtifactError, ConfigError, DataError
from fedpa.reproduction.movielens import METHODS, popularity, reproduce
from fedpa.reproduction.published import PUBLISHED
from fedpa.reproduction.ratings import read_ratings
from fedpa.reproduction.rounds import Task
from fedpa.reproduction.tables import markdown, table
from reproduction.files import ITEMS, USERS, write_files


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_files(folder / "ml-1m", "1m")
    write_files(folder / "ml-100k", "100k")
    return folder


def test_every_method_in_both_protocols(raw: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "out"
    found = reproduce("movielens-1m", raw, out=out, protocol="both", rounds=2, seeds=2, draws=50, say=said.append)
    assert json.loads((out / "results.json").read_text()) == found
    rows = found["rows"]
    assert [(row["method"], row["protocol"]) for row in rows] == [
        (method, protocol) for protocol in ("after-split", "published") for method in ("popularity", *METHODS)
    ]
    for row in rows:
        for measured in row["metrics"].values():
            assert 0 <= measured["low"] <= measured["value"] <= measured["high"] <= 1
        shorts = [part["short"] for part in row["departures"]]
        assert ("drawn after the split" in shorts) == (
            row["protocol"] == "after-split" and row["method"] != "popularity"
        )
        if row["method"] == "popularity":
            assert row["published"] is row["gap"] is None
            continue
        assert "2 rounds, not 100" in shorts
        published = PUBLISHED["movielens-1m"][row["method"]]
        assert row["published"] == {"hr": published.hr, "ndcg": published.ndcg}
        assert row["gap"]["hr"] == pytest.approx(row["metrics"]["hr"]["value"] - published.hr)
        assert row["gap"]["ndcg"] == pytest.approx(row["metrics"]["ndcg"]["value"] - published.ndcg)
        for best, run in zip(row["best_rounds"], row["runs"], strict=True):
            assert [line["round"] for line in run] == [1, 2]
            assert run[best - 1]["val_hr"] == max(line["val_hr"] for line in run)
        at_best = [run[best - 1]["test_hr"] for best, run in zip(row["best_rounds"], row["runs"], strict=True)]
        assert row["metrics"]["hr"]["value"] == pytest.approx(np.mean(at_best))
    effects = found["after_split_minus_published"]
    by = {(row["method"], row["protocol"]): row["metrics"]["hr"]["value"] for row in rows}
    for method in METHODS:
        difference = by[method, "after-split"] - by[method, "published"]
        assert effects[method]["hr"]["value"] == pytest.approx(difference)
    assert len(said) == 2 * len(METHODS) * 2
    assert said[0].startswith("fedmf, after-split, seed 0: ")
    assert said[0].endswith(" minutes for 2 rounds")

    text = (out / "results.md").read_text()
    assert text == markdown(found)
    for wanted in ("65.15 / 39.38", "60.62 / 33.25", "64.45 / 37.78", "73.26 / 44.36", "drawn after the split; "):
        assert wanted in text
    assert f"{USERS} users, {ITEMS} items" in text
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(table(found))
    assert "73.26" in console.export_text()


def test_what_cannot_be_cited_is_left_out(raw: Path) -> None:
    found = reproduce("movielens-100k", raw, methods=["fedmf"], rounds=1, redraw=False, draws=10)
    row = found["rows"][1]
    assert row["published"] is row["gap"] is None
    assert found["uncited"] in markdown(found)
    assert "training negatives drawn once" in [part["short"] for part in row["departures"]]
    assert found["after_split_minus_published"] == {}


def test_equal_seeds_give_equal_results(raw: Path) -> None:
    first, again = (
        reproduce("movielens-1m", raw, methods=["pfedrec"], protocol="published", rounds=1, draws=10) for _ in range(2)
    )
    assert first["rows"][1]["metrics"] == again["rows"][1]["metrics"]


def test_changed_settings_are_named(raw: Path) -> None:
    found = reproduce("movielens-1m", raw, methods=["fedmf"], rounds=1, draws=10, settings={"item_rate": 3.0})
    assert "item_rate=3.0" in [part["short"] for part in found["rows"][1]["departures"]]
    assert found["settings"]["fedmf"]["item_rate"] == 3.0


def test_popularity(raw: Path) -> None:
    """Against counting by hand: the 100 candidates of every user sorted by training ratings."""
    ratings = read_ratings("movielens-1m", raw)
    task = Task.drawn(ratings, "published", 0)
    count = [sum((ratings.item == item) & (ratings.nth > 1)) for item in range(ratings.n_items)]
    expected = []
    for item, negatives in zip(ratings.test, task.test_negatives, strict=True):
        above = sum(count[other] > count[item] for other in negatives)
        tied = sum(count[other] == count[item] for other in negatives)
        expected.append(min(max(10 - above, 0), tied + 1) / (tied + 1))
    assert popularity(task).sampled.hr(10).tolist() == pytest.approx(expected)


def test_faults(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no ratings\.dat"):
        reproduce("movielens-1m", tmp_path)
    with pytest.raises(ConfigError, match="cannot reproduce 'lastfm'"):
        reproduce("lastfm", raw)
    with pytest.raises(ConfigError, match="methods: found 'fedpa', expected some of fedmf, fedncf"):
        reproduce("movielens-1m", raw, methods=["fedpa"])
    with pytest.raises(ConfigError, match="methods: found none"):
        reproduce("movielens-1m", raw, methods=[])
    with pytest.raises(ConfigError, match="protocol: found 'before', expected after-split, published or both"):
        reproduce("movielens-1m", raw, protocol="before")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rounds: found 0, expected 1 or more"):
        reproduce("movielens-1m", raw, rounds=0)
    with pytest.raises(ConfigError, match="unknown setting 'rate'"):
        reproduce("movielens-1m", raw, settings={"rate": 1})
    with pytest.raises(ConfigError, match="needs a foundation"):
        reproduce("movielens-1m", raw, settings={"on_foundation": True})
    (tmp_path / "there").mkdir()
    with pytest.raises(ArtifactError, match="already exists"):
        reproduce("movielens-1m", raw, out=tmp_path / "there", rounds=1)
