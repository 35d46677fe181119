"""The top-k task: who is tested on what, what is drawn, and what is counted."""

import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpa.adaptation import adapt
from fedpa.data.dataset import PARTS, Dataset, Part
from fedpa.data.encode import fit_context
from fedpa.data.leave_one_out import leave_one_out, pair_keys, seen_items
from fedpa.data.statistics import COUNTS
from fedpa.draws import uniform, user_keys
from fedpa.errors import ArtifactError, ConfigError, DataError
from fedpa.models.pretrain import pretrain
from logged import Row, logged, many
from prepared import QUICK, small

Split = Literal["per-user", "global-time"]
Placed = set[tuple[int, int, int, str]]

# User 1 is open, the others are private. Item 9 is shown to nobody.
HAND: list[Row] = [
    (1, 0, 10, 1),
    (1, 1, 20, 0),
    (1, 2, 30, 1),
    (1, 0, 40, 1),  # again
    (2, 3, 11, 1),
    (2, 1, 12, 0),
    (2, 4, 21, 1),
    (2, 0, 31, 1),
    (2, 3, 41, 1),  # again
    (2, 5, 51, 0),
    (3, 6, 15, 1),
    (3, 7, 25, 1),
    (4, 8, 15, 0),
    (5, 0, 5, 1),
    (5, 2, 6, 1),
    (5, 8, 7, 1),
    (5, 7, 8, 1),
]


def positives(data: Dataset) -> Placed:
    rows = np.flatnonzero(data.label == 1)
    ids = data.user_ids.to_numpy()[data.user[rows]].tolist()
    parts = [PARTS[part] for part in data.part[rows]]
    return set(zip(ids, data.item[rows].tolist(), data.time[rows].tolist(), parts, strict=True))


def table(data: Dataset) -> pl.DataFrame:
    return pl.read_parquet(data.path / "interactions.parquet").with_columns(part=pl.Series(data.part))


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("hand")
    return leave_one_out(logged(folder, HAND, {2, 3, 4, 5}, items=10), folder / "out")


def test_the_last_new_click_is_tested_and_the_one_before_validates(hand: Dataset) -> None:
    assert positives(hand) == {
        (1, 0, 10, "foundation"),
        (1, 2, 30, "foundation"),
        (2, 3, 11, "train"),
        (2, 4, 21, "val"),
        (2, 0, 31, "test"),
        (3, 6, 15, "train"),
        (3, 7, 25, "train"),
        (5, 0, 5, "train"),
        (5, 2, 6, "train"),
        (5, 8, 7, "val"),
        (5, 7, 8, "test"),
    }


def test_the_manifest_says_who_is_left_out_and_what_was_dropped(hand: Dataset) -> None:
    counts, chosen = hand.manifest["counts"], hand.manifest["settings"]
    assert counts["left_out"] == {"cold": 0, "fewer_than_3_positives": 2}
    assert counts["judged"] == 2
    assert counts["unseen_test_items"] == 0  # 0 was clicked by users 1 and 5, 7 by user 3
    assert counts["dropped"] == {"no_positive": 4, "repeats": 2, "not_chosen": 0}
    assert (counts["rows_read"], counts["drawn"], counts["rows"]) == (17, 44, 55)
    assert (chosen["split"], chosen["source_split"]) == ("leave-one-out", "per-user")
    assert len(chosen["source"]) == 64
    assert np.flatnonzero(seen_items(hand)).tolist() == [0, 2, 3, 6, 7]


def test_every_positive_has_its_negatives_at_its_own_time(hand: Dataset) -> None:
    for user, _, time, part in positives(hand):
        here = (hand.user_ids.to_numpy()[hand.user] == user) & (hand.time == time)
        assert hand.label[here].tolist() == [1, 0, 0, 0, 0]
        assert {PARTS[code] for code in hand.part[here]} == {part}
        assert (hand.labels["like"][here][1:] == 0).all()


def test_a_global_split_keeps_its_cuts(tmp_path: Path) -> None:
    # 20 rows: the cuts are the times of the rows at places 12 and 16.
    filler: list[Row] = [(1, item, 10 * item + 1, 1) for item in range(6)]
    both: list[Row] = [(2, 0, 5, 1), (2, 1, 125, 1), (2, 2, 135, 1), (2, 3, 165, 1), (2, 4, 175, 1)]
    no_val: list[Row] = [(3, 0, 15, 1), (3, 1, 126, 0), (3, 2, 166, 1)]
    no_test: list[Row] = [(4, 0, 16, 1), (4, 1, 127, 1), (4, 2, 167, 0)]
    rest: list[Row] = [(5, 0, 17, 0), (5, 1, 18, 1), (5, 3, 70, 1)]
    data = logged(tmp_path, filler + both + no_val + no_test + rest, {2, 3, 4, 5}, items=6, split="global-time")
    assert data.manifest["settings"]["cuts"] == [125, 165]
    made = leave_one_out(data, tmp_path / "out")
    private = {row for row in positives(made) if row[0] != 1}
    assert private == {
        (2, 0, 5, "train"),
        (2, 2, 135, "val"),
        (2, 4, 175, "test"),
        (3, 0, 15, "train"),
        (4, 0, 16, "train"),
        (5, 1, 18, "train"),
        (5, 3, 70, "train"),
    }
    assert made.manifest["counts"]["left_out"] == {"cold": 0, "no_test_positive": 2, "no_validation_positive": 1}
    # Own counts stop at the cuts: the click at 125 and the one at 135 are between them.
    own = {part: made.user_views[made.rows(part)] for part in ("train", "val", "test")}
    judged = {part: set(own[part].tolist()) for part in ("val", "test")}
    assert judged == {"val": {1}, "test": {3}}


def test_users_who_clicked_at_one_time_are_not_tested_on_the_highest_number(tmp_path: Path) -> None:
    users = range(1, 301)
    log: list[Row] = [(0, 0, 1, 1), *((user, item, 7, 1) for user in users for item in (2, 5, 8))]
    made = leave_one_out(logged(tmp_path, log, users, items=9), tmp_path / "out")
    test = made.rows("test")
    tested = made.item[test[made.label[test] == 1]]
    assert np.bincount(tested, minlength=9)[[2, 5, 8]].tolist() == pytest.approx([100, 100, 100], abs=40)
    again = leave_one_out(logged(tmp_path / "again", log, users, items=9), tmp_path / "again" / "out", seed=1)
    assert (again.item[again.rows("test")] != made.item[test]).any()


# Draws


def test_draws_are_uniform_over_all_but_the_training_positives(tmp_path: Path) -> None:
    """Of 20 items, 0, 4, 5 and 19 are excluded; the validation item 6 and the test item 7 are like any other."""
    log: list[Row] = [(0, 0, 1, 1), *((1, item, 2 + place, 1) for place, item in enumerate((5, 0, 19, 4, 6, 7)))]
    made = leave_one_out(logged(tmp_path, log, {1}, items=20), tmp_path / "out", negatives=2000)
    for part, n in (("train", 8000), ("val", 2000), ("test", 2000)):
        rows = made.rows(part)
        drawn = np.bincount(made.item[rows[made.label[rows] == 0]], minlength=20)
        assert drawn.sum() == n
        assert drawn[[0, 4, 5, 19]].tolist() == [0, 0, 0, 0]
        others = np.delete(drawn, [0, 4, 5, 19])
        # Chi-square with 15 degrees of freedom exceeds 52 once in 200,000 times.
        assert ((others - n / 16) ** 2 / (n / 16)).sum() < 52
        assert drawn[7] == pytest.approx(n / 16, abs=5 * (n / 16) ** 0.5)
        assert drawn[6] == pytest.approx(n / 16, abs=5 * (n / 16) ** 0.5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 5), st.integers(0, 3))
def test_a_draw_takes_the_item_at_its_place_among_those_left(
    data_seed: int, items: int, negatives: int, seed: int
) -> None:
    log = [*many(6, 60, items, data_seed), (0, 0, 1, 1), *((5, item, item, 1) for item in (0, 1))]
    log += [(4, item, 10**6 + item, 1) for item in range(min(3, items))]
    with tempfile.TemporaryDirectory() as folder:
        source = logged(Path(folder), log, {3, 4, 5}, items=items)
        try:
            made = leave_one_out(source, Path(folder) / "out", negatives=negatives, seed=seed)
        except DataError as error:
            assert "can be judged" in error.message
            return
        keys = user_keys(made.user_ids)
        for user in range(made.n_users):
            own = made.user == user
            clicked = own & (made.label == 1)
            learned = set(made.item[clicked & ~np.isin(made.part, (Part.VAL, Part.TEST))].tolist())
            left = [item for item in range(items) if item not in learned]
            expected = []
            for nth, item in enumerate(made.item[clicked].tolist()):
                key = pair_keys(keys[[user]], np.array([nth]))
                expected.append(item)
                for place in range(negatives if left else 0):
                    chance = float(uniform(seed, "leave-one-out/negatives", (place,), key)[0])
                    expected.append(left[int(chance * len(left))])
            assert made.item[own].tolist() == expected


def test_a_user_who_clicked_on_everything_has_no_negative(tmp_path: Path) -> None:
    log: list[Row] = [(0, 0, 1, 1), (0, 1, 2, 1), (0, 2, 3, 1), *((1, item, item, 1) for item in range(3))]
    made = leave_one_out(logged(tmp_path, log, {1}, items=3), tmp_path / "out")
    assert made.label[made.rows("foundation", "foundation_val")].tolist() == [1, 1, 1]
    assert made.label[made.rows("train")].tolist() == [1, 0, 0, 0, 0]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 1000), st.integers(0, 7))
def test_the_test_row_moves_nothing_but_itself(data_seed: int, later: int, other: int) -> None:
    """With another test item at another time, all other rows stay, drawn ones and counts as well."""
    base = [row for row in many(8, 200, 16, data_seed) if row[0] != 7 or row[1] < 8]
    base += [(7, item, 2 * 10**6 + item, 1) for item in range(8)]
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for name, last in (("a", (7, 8, 3 * 10**6, 1)), ("b", (7, 8 + other, 3 * 10**6 + later, 1))):
            source = logged(Path(folder) / name, [*base, last], {5, 6, 7}, items=16)
            made.append(leave_one_out(source, Path(folder) / name / "out"))
        first, second = (table(data).filter((pl.col("part") != Part.TEST) | (pl.col("user") != 7)) for data in made)
        assert first.equals(second)
        drawn = [data.item[(data.user == 7) & (data.part == Part.TEST) & (data.label == 0)].tolist() for data in made]
        assert drawn[0] == drawn[1]


# Counts


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["per-user", "global-time"]), st.sampled_from([40, 10**6]))
def test_counts_are_of_what_was_shown_before(data_seed: int, split: Split, times: int) -> None:
    log = many(9, 150, 8, data_seed, times)
    with tempfile.TemporaryDirectory() as folder:
        source = logged(Path(folder), log, {4, 5, 6, 7, 8}, items=8, split=split)
        try:
            made = leave_one_out(source, Path(folder) / "out", negatives=2)
        except DataError as error:
            assert "can be judged" in error.message
            return
        opened = source.part <= Part.FOUNDATION_VAL
        cuts = source.manifest["settings"]["cuts"]
        for row in range(made.n_rows):
            time, part = made.time[row], made.part[row]
            until = time
            if cuts is not None and part in (Part.VAL, Part.TEST):
                until = cuts[part - Part.VAL]
            item = opened & (source.time < time) & (source.item == made.item[row])
            whole = opened & (source.time < time)
            own = (source.part != Part.UNUSED) & (source.user == made.user[row]) & (source.time < until)
            expected = [n for some in (item, whole, own) for n in (some.sum(), source.label[some].sum())]
            assert [int(getattr(made, name)[row]) for name in COUNTS] == expected


def test_a_positive_knows_what_it_knew(tmp_path: Path) -> None:
    """Foundation and training positives have the very counts that they had in the source."""
    source = logged(tmp_path, many(60, 1500, 30), range(30, 60), items=30)
    made = leave_one_out(source, tmp_path / "out")
    names = ["user", "item", "time", *COUNTS]
    before = table(source).filter(pl.col("part") <= Part.TRAIN).unique(["user", "item", "time"])
    after = table(made).filter((pl.col("part") <= Part.TRAIN) & (pl.col("click") == 1)).select(names)
    joined = after.join(before.select(names), on=["user", "item", "time"], suffix="_before")
    assert len(joined) > 300
    for name in COUNTS:
        assert (joined[name] == joined[f"{name}_before"]).all()


def test_drawn_rows_are_counted_nowhere(tmp_path: Path) -> None:
    source = logged(tmp_path, many(60, 1500, 30), range(30, 60), items=30)
    made = leave_one_out(source, tmp_path / "out")
    assert [values.tolist() for values in made.counted] == [values.tolist() for values in source.counted]
    rows = np.arange(0, made.n_rows, 50)
    items = made.item_context(made.time[rows])[np.arange(len(rows)), made.item[rows]]
    assert (items == made.context_codes[rows, : made.n_item_context]).all()
    own = np.bincount(source.user)
    liked = np.bincount(source.user[source.label == 1])
    opened = source.rows("foundation", "foundation_val")
    expected = made.encode_user(own, liked, len(opened), int(source.label[opened].sum()))
    assert (made.user_context_now() == expected).all()


def test_context_is_fitted_on_the_new_foundation_rows(tmp_path: Path) -> None:
    made = leave_one_out(logged(tmp_path, many(60, 1500, 30), range(30, 60), items=30), tmp_path / "out")
    counts = {name: getattr(made, name) for name in COUNTS}
    encoders = fit_context(counts, made.part == Part.FOUNDATION)
    assert made.manifest["features"]["context"] == [encoder.to_json() for encoder in encoders]
    other = logged(tmp_path / "reference", many(60, 1500, 30), range(30, 60), items=30, features="reference")
    assert leave_one_out(other, tmp_path / "reference" / "out").context_features == ()


# The folder


def test_users_and_items_stay_and_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    source = logged(tmp_path, many(40, 800, 20), range(20, 40), items=20)
    made = [leave_one_out(source, tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert [data.hash == made[0].hash for data in made] == [True, True, False]
    for name in ("users.parquet", "items.parquet"):
        assert (made[0].path / name).read_bytes() == (source.path / name).read_bytes()
    order = np.lexsort((made[0].time, made[0].user))
    assert (order == np.arange(made[0].n_rows)).all()
    made[0].verify()


def test_it_trains_and_leaves_cold_users_out(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    source = small(tmp_path_factory).dataset
    made = leave_one_out(source, tmp_path / "topk")
    assert made.manifest["counts"]["left_out"]["cold"] == source.manifest["counts"]["sides"]["cold"] > 0
    assert not len(made.rows("support", "cold_test", "unbiased", "unused"))
    assert made.oracle is None
    run = adapt(pretrain(made, epochs=1), made, out=tmp_path / "run", **QUICK | {"rounds": 1})
    assert run.evaluate("test")["rows"] == made.manifest["counts"]["judged"] * 5
    assert run.summary["splits"]["val"]["auc"] is not None


@pytest.mark.parametrize("change", [{"negatives": 0}, {"seed": -1}])
def test_settings_out_of_range_are_refused(hand: Dataset, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        leave_one_out(hand, tmp_path / "out", **change)


def test_what_makes_no_task_is_refused(hand: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its negatives were drawn"):
        leave_one_out(hand, tmp_path / "out")
    few = logged(tmp_path, [(1, 0, 1, 1), (2, 0, 1, 1), (2, 1, 2, 1)], {2}, items=3)
    with pytest.raises(DataError, match=r"no private user can be judged .*fewer_than_3_positives: 1"):
        leave_one_out(few, tmp_path / "out")
    none = logged(tmp_path / "none", [(1, 0, 1, 0), *((2, item, item, 1) for item in range(3))], {2}, items=3)
    with pytest.raises(DataError, match="no rows for part foundation"):
        leave_one_out(none, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match="already exists"):
        leave_one_out(logged(tmp_path / "more", HAND, {2}, items=10), tmp_path / "out")
