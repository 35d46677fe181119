"""Pseudo-private users: nothing of a private user, everything else as in a prepared data set."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from fedpa.adaptation import adapt
from fedpa.data.dataset import OPEN, PRIVATE, Dataset, Part
from fedpa.data.encode import fit_context
from fedpa.data.leave_one_out import leave_one_out
from fedpa.data.pseudo import pseudo_private
from fedpa.data.statistics import COUNTS, causal_counts
from fedpa.errors import ArtifactError, ConfigError, DataError
from fedpa.models.pretrain import pretrain
from logged import logged, many
from prepared import QUICK, small

OPENED, CLOSED = range(60), range(60, 90)
LOG = many(90, 1500, 12, times=2000)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return logged(tmp_path_factory.mktemp("source"), LOG, CLOSED, items=12)


@pytest.fixture(scope="module")
def pseudo(source: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pseudo_private(source, tmp_path_factory.mktemp("pseudo") / "out")


def rows_of(data: Dataset, rows: NDArray[Any] | slice = slice(None)) -> list[tuple[int, ...]]:
    ids = data.user_ids.to_numpy()[data.user[rows]]
    like = data.labels["like"][rows]
    return sorted(
        zip(*(a.tolist() for a in (ids, data.item[rows], data.time[rows], data.label[rows], like)), strict=True)
    )


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("split", ["per-user", "global-time"])
@pytest.mark.parametrize("features", ["causal", "reference"])
def test_labels_of_private_users_change_no_byte(
    tmp_path: Path, features: Literal["causal", "reference"], split: Literal["per-user", "global-time"]
) -> None:
    # Without exact repeats, since these are dropped by their labels and so would move the cuts of global time.
    log = sorted({row[:3]: row for row in LOG}.values())
    flipped = [(user, item, time, 1 - click if user in CLOSED else click) for user, item, time, click in log]
    made = []
    for name, rows in (("one", log), ("two", flipped)):
        data = logged(tmp_path / name, rows, CLOSED, items=12, features=features, split=split)
        made.append((data.hash, content(pseudo_private(data, tmp_path / name / "pseudo").path)))
    (before, first), (after, second) = made
    assert before != after
    assert first == second


def test_labels_of_open_users_do_change_it(tmp_path: Path, pseudo: Dataset) -> None:
    flipped = [(user, item, time, 1 - click if user == 3 else click) for user, item, time, click in LOG]
    data = logged(tmp_path, flipped, CLOSED, items=12)
    assert content(pseudo_private(data, tmp_path / "pseudo").path) != content(pseudo.path)


def test_rows_and_users_are_the_open_ones(source: Dataset, pseudo: Dataset) -> None:
    opened = source.rows("foundation", "foundation_val")
    assert rows_of(pseudo) == rows_of(source, opened)
    assert pseudo.user_ids.to_list() == list(OPENED)
    assert pseudo.manifest["counts"]["rows"] == len(opened)
    pseudo.verify()


def test_codes_and_encoders_stay(source: Dataset, pseudo: Dataset) -> None:
    assert (pseudo.user_codes == source.user_codes[: len(OPENED)]).all()
    assert (pseudo.groups["city"] == source.groups["city"][: len(OPENED)]).all()
    assert (pseudo.item_codes == source.item_codes).all()
    for table in ("user", "item"):
        assert pseudo.manifest["features"][table] == source.manifest["features"][table]
    assert pseudo.manifest["groups"] == source.manifest["groups"]


def test_users_are_divided_and_their_rows_split_60_20_20(pseudo: Dataset) -> None:
    assert 15 <= (pseudo.side == PRIVATE).sum() <= 45
    held_out = 0
    for user in range(pseudo.n_users):
        parts = pseudo.part[pseudo.user == user]
        if pseudo.side[user] == OPEN:
            assert len(set(parts.tolist())) == 1
            held_out += parts[0] == Part.FOUNDATION_VAL
            continue
        n = len(parts)
        time = pseudo.time[pseudo.user == user]
        if n < 5 or len(np.unique(time)) < n:
            continue
        expected = (
            [Part.TRAIN] * -(-3 * n // 5) + [Part.VAL] * (-(-4 * n // 5) - -(-3 * n // 5)) + [Part.TEST] * (n // 5)
        )
        assert parts.tolist() == expected
    assert held_out > 0


def test_only_pseudo_open_rows_are_counted(pseudo: Dataset) -> None:
    opened = (pseudo.side == OPEN)[pseudo.user]
    for row in range(0, pseudo.n_rows, 37):
        earlier = opened & (pseudo.time < pseudo.time[row])
        same = earlier & (pseudo.item == pseudo.item[row])
        assert pseudo.open_views[row] == earlier.sum()
        assert pseudo.item_views[row] == same.sum()
        assert pseudo.item_clicks[row] == pseudo.label[same].sum()
    again = causal_counts(pseudo.user, pseudo.item, pseudo.time, pseudo.label, pseudo.part)
    assert all((getattr(pseudo, name) == again[name]).all() for name in COUNTS)
    encoders = [encoder.to_json() for encoder in fit_context(again, pseudo.part == Part.FOUNDATION)]
    assert pseudo.manifest["features"]["context"] == encoders


def test_global_time_cuts_the_open_rows_anew(tmp_path: Path) -> None:
    data = logged(tmp_path, LOG, CLOSED, items=12, split="global-time")
    pseudo = pseudo_private(data, tmp_path / "pseudo")
    first, second = pseudo.manifest["settings"]["cuts"]
    assert second < data.manifest["settings"]["cuts"][0]
    assert first == np.sort(pseudo.time)[3 * pseudo.n_rows // 5]
    for part, begin, end in (("train", 0, first), ("val", first, second), ("test", second, 10**9)):
        time = pseudo.time[pseudo.rows(part)]
        assert len(time) > 0
        assert ((time >= begin) & (time < end)).all()


def test_the_share_and_the_seed_choose_users(source: Dataset, pseudo: Dataset, tmp_path: Path) -> None:
    few = pseudo_private(source, tmp_path / "few", share=0.2)
    chosen, of = few.side == PRIVATE, pseudo.side == PRIVATE
    assert 2 <= chosen.sum() <= 25
    assert (chosen <= of).all(), "a user's draw does not depend on the share"
    other = pseudo_private(source, tmp_path / "other", seed=1)
    assert (other.side != pseudo.side).any()


def test_the_oracle_goes_along(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """And what is trained on prepared data trains on this, the cold users of the source left out."""
    made = small(tmp_path_factory)
    data = pseudo_private(made.dataset, tmp_path / "pseudo")
    opened = made.dataset.rows("foundation", "foundation_val")
    assert data.oracle is not None
    assert made.dataset.oracle is not None
    assert (data.oracle == made.dataset.oracle[opened]).all()
    assert data.manifest["counts"]["sides"]["cold"] == 0
    foundation = pretrain(data, epochs=1)
    run = adapt(foundation, data, out=tmp_path / "run", **QUICK | {"rounds": 1})
    assert run.evaluate("test")["rows"] == data.manifest["counts"]["parts"]["test"]
    assert leave_one_out(data, tmp_path / "topk").manifest["counts"]["judged"] > 0


@pytest.mark.parametrize("change", [{"share": 0.0}, {"share": 1.0}, {"seed": -1}])
def test_settings_out_of_range_are_refused(source: Dataset, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        pseudo_private(source, tmp_path / "out", **change)


def test_what_cannot_be_divided_is_refused(source: Dataset, tmp_path: Path) -> None:
    alone = logged(tmp_path, [(1, 0, 1, 1), (1, 1, 2, 0), *[(2, 0, time, 1) for time in range(9)]], {2}, items=2)
    with pytest.raises(DataError, match="1 open user"):
        pseudo_private(alone, tmp_path / "out")
    drawn = leave_one_out(source, tmp_path / "drawn")
    with pytest.raises(ConfigError, match="its negatives were drawn"):
        pseudo_private(drawn, tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(ArtifactError, match="already exists"):
        pseudo_private(source, tmp_path / "there")
    assert pseudo_private(source, tmp_path / "there", overwrite=True).n_users == len(OPENED)


def test_no_folder_holds_a_private_user_by_name(source: Dataset, pseudo: Dataset) -> None:
    users = pl.read_parquet(pseudo.path / "users.parquet")
    assert users.columns == pl.read_parquet(source.path / "users.parquet").columns
    assert not set(users["user_id"]) & set(CLOSED)
    assert source.hash not in (pseudo.path / "manifest.json").read_text()
