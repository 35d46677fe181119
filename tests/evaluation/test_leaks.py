"""Sound data sets keep the checks silent; every known fault, planted, is named."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from fedpa.artifacts import sha256
from fedpa.data.dataset import Dataset, Part
from fedpa.data.prepare import prepare
from fedpa.data.sources import open_source
from fedpa.data.split import tie_starts
from fedpa.data.statistics import COUNTS, causal_counts
from fedpa.data.synthetic import synthesise
from fedpa.errors import DataError
from fedpa.evaluation.leaks import Leak, check_leaks, moves_with_the_future
from fedpa.evaluation.leaks.chance import partial_rank_correlation, poisson_tails, rank_correlation
from fedpa.evaluation.leaks.counters import follows_labels
from fedpa.evaluation.metrics import auc, gauc
from fedpa.methods.two_counters import two_counter_scores

Change = Callable[[pl.DataFrame], pl.DataFrame]
Features = Literal["causal", "reference"]


# Data


@cache
def raw(folder: Path, users: int, items: int, rows: float, seed: int) -> Path:
    synthesise(folder / f"raw-{users}-{items}-{rows}-{seed}", users=users, items=items, rows_per_user=rows, seed=seed)
    return folder / f"raw-{users}-{items}-{rows}-{seed}"


@cache
def _prepared(folder: Path, features: Features, users: int, items: int, rows: float, seed: int) -> Dataset:
    source = open_source("kuairand-pure", raw(folder, users, items, rows, seed))
    return prepare(source, folder / f"{features}-{users}-{items}-{rows}-{seed}", features=features)


def prepared(
    folder: Path, features: Features = "causal", users: int = 600, items: int = 400, rows: float = 25, seed: int = 0
) -> Dataset:
    return _prepared(folder, features, users, items, rows, seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("leaks")


@pytest.fixture(scope="module")
def sound(folder: Path) -> Dataset:
    return prepared(folder)


def edited(
    dataset: Dataset,
    out: Path,
    changes: Mapping[str, Change],
    manifest: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Dataset:
    """A copy of a data set folder with some tables changed, its manifest kept true."""
    shutil.copytree(dataset.path, out)
    for name, change in changes.items():
        change(pl.read_parquet(out / name)).write_parquet(out / name)
    content = json.loads((out / "manifest.json").read_text())
    manifest(content)
    content["files"] = {
        name: {"name": name, "bytes": (out / name).stat().st_size, "sha256": sha256(out / name)}
        for name in content["files"]
    }
    (out / "manifest.json").write_text(json.dumps(content))
    return Dataset(out)


def with_column(dataset: Dataset, out: Path, values: NDArray[Any], kind: str = "numeric") -> Dataset:
    """A data set with one more item feature, in 30 bins of equal size."""
    codes = np.searchsorted(np.unique(np.quantile(values, np.arange(1, 30) / 30)), values, side="right").astype(
        np.int32
    )
    facts: dict[str, Any] = {"name": "planted", "kind": kind, "size": 31, "edges": [], "transform": "none"}
    return edited(
        dataset,
        out,
        {"items.parquet": lambda table: table.with_columns(pl.Series("feature:planted", codes))},
        lambda manifest: manifest["features"]["item"].append(facts),
    )


def with_rows(dataset: Dataset, out: Path, **columns: NDArray[Any]) -> Dataset:
    return edited(
        dataset,
        out,
        {"interactions.parquet": lambda table: table.with_columns(pl.Series(n, c) for n, c in columns.items())},
    )


def running(dataset: Dataset) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Own rows and clicks strictly before each row, not frozen at the cut."""
    at, of = tie_starts(dataset.user, dataset.time), tie_starts(dataset.user)
    click = dataset.label == 1
    before = np.cumsum(click) - click
    return (at - of).astype(np.uint32), (before[at] - before[of]).astype(np.uint32)


def leave_one_out(
    dataset: Dataset,
    out: Path,
    *,
    exclude: tuple[Part, ...] = (Part.TRAIN,),
    weights: NDArray[Any] | None = None,
    prefer: bool = False,
) -> Dataset:
    """Made by hand: a private user's last item is tested, the one before validated, 4 negatives per training item.

    `exclude` names the parts whose items are never drawn; training items alone are right.
    """
    random = np.random.default_rng(0)
    table = pl.read_parquet(dataset.path / "interactions.parquet").select("user", "item", "time")
    table = table.unique(["user", "item"], keep="first", maintain_order=True)
    rows: list[tuple[int, int, int, int, int]] = []
    for (user,), own in table.group_by("user", maintain_order=True):
        items, times = own["item"].to_numpy(), own["time"].to_list()
        if dataset.side[int(str(user))] == 0 or len(items) < 3:
            rows += [(int(str(user)), int(i), t, 1, Part.FOUNDATION) for i, t in zip(items, times, strict=True)]
            continue
        part = np.full(len(items), Part.TRAIN)
        part[-2:] = Part.VAL, Part.TEST
        chance = np.ones(dataset.n_items) if weights is None else weights.copy()
        chance[items[np.isin(part, exclude)]] = 0
        if prefer:
            chance[items[-1]] *= 3
        drawn = iter(random.choice(dataset.n_items, size=4 * len(items), p=chance / chance.sum()))
        for item, time, which in zip(items, times, part, strict=True):
            rows.append((int(str(user)), int(item), time, 1, int(which)))
            if which == Part.TRAIN:
                rows += [(int(str(user)), int(next(drawn)), time, 0, int(which)) for _ in range(4)]
    user, item, time, label, code = np.array(rows, dtype=np.int64).T
    columns = (user.astype(np.uint32), item.astype(np.uint32), time, label.astype(np.int8), code.astype(np.uint8))
    made = pl.DataFrame(dict(zip(("user", "item", "time", dataset.label_name), columns, strict=False)))
    counts = causal_counts(*columns)
    other = [name for name in dataset.label_names if name != dataset.label_name]
    made = made.with_columns(pl.lit(0, pl.Int8).alias(name) for name in other)
    made = made.hstack([pl.Series(name, counts[name]) for name in COUNTS])
    parts = pl.DataFrame({"row": np.arange(len(made), dtype=np.uint32)}).with_columns(
        pl.Series("part", columns[4]).replace_strict(
            range(9), [part.name.lower() for part in Part], return_dtype=pl.Enum([part.name.lower() for part in Part])
        )
    )

    def fewer(manifest: dict[str, Any]) -> None:
        manifest["counts"]["rows"] = len(made)
        manifest["files"].pop("oracle.parquet", None)

    return edited(dataset, out, {"interactions.parquet": lambda _: made, "splits.parquet": lambda _: parts}, fewer)


def one(leaks: list[Leak], kind: str) -> Leak:
    found = [leak for leak in leaks if leak.kind == kind]
    assert len(found) == 1, leaks
    return found[0]


# Sound data


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sound_data_keep_the_checks_silent(folder: Path, seed: int) -> None:
    assert check_leaks(prepared(folder, seed=seed)) == []


def test_a_random_column_is_silent(sound: Dataset, tmp_path: Path) -> None:
    noise = np.random.default_rng(3).random(sound.n_items)
    assert check_leaks(with_column(sound, tmp_path / "out", noise)) == []


# Negatives


def test_negatives_from_all_but_the_training_items_are_silent(sound: Dataset, tmp_path: Path) -> None:
    assert check_leaks(leave_one_out(sound, tmp_path / "out")) == []


def test_negatives_by_popularity_are_silent(sound: Dataset, tmp_path: Path) -> None:
    popular = np.bincount(sound.item, minlength=sound.n_items) + 1.0
    assert check_leaks(leave_one_out(sound, tmp_path / "out", weights=popular)) == []


def test_negatives_that_avoid_the_test_item_are_named(sound: Dataset, tmp_path: Path) -> None:
    data = leave_one_out(sound, tmp_path / "out", exclude=(Part.TRAIN, Part.VAL, Part.TEST))
    leak = one(check_leaks(data), "negatives")
    # About 380 tested users with 4 x 20 draws from 380 items.
    tested = data.user[data.rows("test")]
    draws = np.bincount(data.user[(data.label == 0) & (data.part == Part.TRAIN)], minlength=data.n_users)[tested]
    expected = float((draws / (data.n_items - draws / 4)).sum())
    assert "0 times" in leak.found
    assert leak.level == "leak"
    assert float(leak.expected.split()[1]) == pytest.approx(expected, rel=0.15)
    assert leak.p_value == pytest.approx(2 * np.exp(-expected), abs=1e-9)


def test_negatives_that_prefer_the_test_item_are_named(sound: Dataset, tmp_path: Path) -> None:
    leak = one(check_leaks(leave_one_out(sound, tmp_path / "out", prefer=True)), "negatives")
    assert leak.evidence == pytest.approx(3.0, rel=0.3)


# Statistics over the test period


def test_a_count_that_knows_its_own_row_is_named(sound: Dataset, tmp_path: Path) -> None:
    clicks = sound.item_clicks + (sound.label == 1).astype(np.uint32)
    leaks = check_leaks(with_rows(sound, tmp_path / "out", item_clicks=clicks))
    assert one(leaks, "counts").where == "interactions.parquet, item_clicks"
    assert one(leaks, "counts").evidence == pytest.approx(float(sound.label.mean()))
    assert len(leaks) == 1


def test_published_statistics_of_the_whole_period_are_named(folder: Path) -> None:
    leaks = check_leaks(prepared(folder, "reference"))
    names = {leak.where.rpartition(" ")[2] for leak in leaks}
    assert {leak.kind for leak in leaks} == {"item-column"}
    assert names == {"play_duration", "comment_stay_duration", "complete_play_cnt"}


def test_views_of_the_test_period_are_named_and_earlier_ones_are_not(sound: Dataset, tmp_path: Path) -> None:
    instant = np.quantile(sound.time, 0.6)
    later, earlier = (np.bincount(sound.item[some], minlength=sound.n_items) for some in (
        sound.time >= instant, sound.time < instant))  # fmt: skip
    assert check_leaks(with_column(sound, tmp_path / "earlier", earlier)) == []
    assert one(check_leaks(with_column(sound, tmp_path / "later", later)), "item-column").evidence > 0.5
    assert one(check_leaks(with_column(sound, tmp_path / "all", later + earlier)), "item-column").evidence > 0.3


def test_the_age_of_an_item_is_not_a_leak(sound: Dataset, tmp_path: Path) -> None:
    """Young items rise and old ones fall: age predicts later views, and earlier ones the other way round."""
    upload = np.random.default_rng(0).random(sound.n_items)
    young = upload[sound.item]
    early = sound.time < np.quantile(sound.time, 0.7)
    kept = np.random.default_rng(1).random(sound.n_rows) < np.where(early, 0.2 * (1 - young), young**1.5)
    views = [np.bincount(sound.item[some & kept], minlength=sound.n_items) for some in (early, ~early)]
    assert partial_rank_correlation(upload, views[1], views[0])[0] > 0.3
    assert rank_correlation(upload, views[0] + views[1]) > 0.3

    def drop(table: pl.DataFrame) -> pl.DataFrame:
        table = table.filter(pl.Series(kept))
        if "item" in table.columns:
            user, item, time, label = (table[name].to_numpy() for name in ("user", "item", "time", sound.label_name))
            counts = causal_counts(user, item, time, label, sound.part[kept])
            table = table.with_columns(pl.Series(name, counts[name]) for name in COUNTS)
        return table

    changes = dict.fromkeys(("interactions.parquet", "splits.parquet", "oracle.parquet"), drop)
    fewer = edited(sound, tmp_path / "late", changes, lambda manifest: manifest["counts"].update(rows=int(kept.sum())))
    assert check_leaks(with_column(fewer, tmp_path / "out", upload)) == []


def test_a_column_that_follows_popularity_loosely_is_silent(folder: Path, tmp_path: Path) -> None:
    """A price or a length may well tell something of later views, as of earlier ones."""
    sound = prepared(folder, users=3000, items=9000)
    place = np.argsort(np.argsort(np.bincount(sound.item, minlength=sound.n_items))) / sound.n_items
    loose = place + np.random.default_rng(0).normal(0, 1.0, sound.n_items)
    assert 0.2 < rank_correlation(loose, place) < 0.3
    assert check_leaks(with_column(sound, tmp_path / "out", loose)) == []


def test_numbers_as_categories_are_a_warning(sound: Dataset, tmp_path: Path) -> None:
    """Codes of a vocabulary say nothing, but its values do: here they run against the codes."""
    views = np.bincount(sound.item, minlength=sound.n_items)
    values = np.unique(views)[::-1]
    codes = np.searchsorted(-values, -views).astype(np.int32)
    facts: dict[str, Any] = {"name": "shows", "kind": "reference", "size": len(values)}
    for vocabulary, level in ((values.astype(str).tolist(), "warning"), ([f"v{v}" for v in values], None)):
        data = edited(
            sound,
            tmp_path / str(level),
            {"items.parquet": lambda table: table.with_columns(pl.Series("feature:shows", codes))},
            lambda manifest, known=vocabulary: manifest["features"]["item"].append({**facts, "vocabulary": known}),  # type: ignore[misc]
        )
        leaks = check_leaks(data)
        assert [leak.level for leak in leaks] == ([] if level is None else [level])


def test_a_click_rate_of_all_rows_is_named_and_the_true_one_is_not(sound: Dataset, tmp_path: Path) -> None:
    """What is known beforehand cannot explain the draw, however good it is."""
    views = np.bincount(sound.item, minlength=sound.n_items) + 1e-9
    rate = np.bincount(sound.item, weights=sound.label, minlength=sound.n_items) / views
    assert sound.oracle is not None
    true = np.bincount(sound.item, weights=sound.oracle, minlength=sound.n_items) / views
    assert check_leaks(with_column(sound, tmp_path / "true", true)) == []
    leak = one(check_leaks(with_column(sound, tmp_path / "rate", rate)), "item-column")
    assert "click rates" in leak.found


# Numbers of items


def renumbered(dataset: Dataset, out: Path, order: NDArray[np.int64]) -> Dataset:
    """Item ``order[k]`` becomes number k."""
    numbers = np.argsort(order)
    item = numbers[dataset.item].astype(np.uint32)
    return edited(
        dataset,
        out,
        {
            "interactions.parquet": lambda table: table.with_columns(pl.Series("item", item)),
            "items.parquet": lambda table: table[order].with_columns(table["item_id"]),
        },
    )


def test_numbers_by_popularity_are_a_leak(sound: Dataset, tmp_path: Path) -> None:
    order = np.argsort(-np.bincount(sound.item, minlength=sound.n_items), kind="stable")
    leaks = check_leaks(renumbered(sound, tmp_path / "out", order))
    assert one(leaks, "item-numbering").level == "leak"
    assert "sorted by views" in leaks[0].found
    tested = np.bincount(sound.item[sound.rows("test")], minlength=sound.n_items)
    leaks = check_leaks(renumbered(sound, tmp_path / "test", np.argsort(-tested, kind="stable")))
    assert "sorted by views in test rows" in one(leaks, "item-numbering").found


def test_drawn_negatives_are_not_popularity_and_ties_are_no_excuse(folder: Path, tmp_path: Path) -> None:
    data = leave_one_out(prepared(folder, items=1500), tmp_path / "data")
    clicked = data.label == 1
    for name, rows in (("all rows", clicked), ("test rows", clicked & (data.part == Part.TEST))):
        order = np.argsort(-np.bincount(data.item[rows], minlength=data.n_items), kind="stable")
        leak = one(check_leaks(renumbered(data, tmp_path / name, order)), "item-numbering")
        assert (leak.level, leak.found.partition(" (")[0]) == ("leak", f"items are sorted by views in {name}")


@pytest.mark.parametrize("order", ["time", "the order of rows"])
def test_numbers_by_first_occurrence_are_a_warning(sound: Dataset, tmp_path: Path, order: str) -> None:
    rows = np.argsort(sound.time, kind="stable") if order == "time" else np.arange(sound.n_rows)
    items, first = np.unique(sound.item[rows], return_index=True)
    seen = items[np.argsort(first)].astype(np.int64)
    unseen = np.setdiff1d(np.arange(sound.n_items), seen)
    leak = one(check_leaks(renumbered(sound, tmp_path / "out", np.concatenate([seen, unseen]))), "item-numbering")
    assert leak.level == "warning"
    assert f"first occurrence in {order}" in leak.found


def test_other_numbers_are_silent(sound: Dataset, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(sound.n_items)
    assert check_leaks(renumbered(sound, tmp_path / "out", order)) == []


# A user's running click rate


def test_running_counts_are_named(sound: Dataset, tmp_path: Path) -> None:
    views, clicks = running(sound)
    leaks = check_leaks(with_rows(sound, tmp_path / "out", user_views=views, user_clicks=clicks))
    where = [leak.where for leak in leaks if leak.kind == "running-counts"]
    assert where == [
        f"interactions.parquet, {name} of {part} rows"
        for name in ("user_views", "user_clicks")
        for part in ("val", "test")
    ]
    assert {"counts", "own-labels"} <= {leak.kind for leak in leaks}
    assert "context code user_rate of test rows" in [leak.where for leak in leaks]


def test_a_running_rate_hidden_in_an_opaque_column_is_named(sound: Dataset, tmp_path: Path) -> None:
    views, clicks = running(sound)
    hidden = np.digitize((clicks + 1) / (views + 2), np.linspace(0.2, 0.8, 15))
    leak = one(check_leaks(with_rows(sound, tmp_path / "out", mystery=hidden)), "own-labels")
    assert leak.where == "interactions.parquet, mystery of test rows"
    innocent = {"noise": np.random.default_rng(0).random(sound.n_rows), "truth": sound.oracle}
    assert check_leaks(with_rows(sound, tmp_path / "sound", **innocent)) == []  # type: ignore[arg-type]


def test_row_features_are_looked_at_once(sound: Dataset, folder: Path, tmp_path: Path) -> None:
    source = open_source("kuairand-pure", raw(folder, 600, 400, 25, 0))
    data = prepare(source, tmp_path / "sound", row_features=["tab", "hour"])
    assert check_leaks(data) == check_leaks(sound)
    _, clicks = running(data)
    codes = np.minimum(clicks, 24).astype(np.int16)
    leak = one(check_leaks(with_rows(data, tmp_path / "out", **{"row:hour": codes})), "own-labels")
    assert leak.where == "context code row:hour of test rows"


def test_a_running_click_rate_lifts_pooled_auc_and_ruins_gauc(folder: Path) -> None:
    lifts = []
    for seed in range(3):
        data = prepared(folder, users=2500, items=100, rows=8, seed=seed)
        rows = data.rows("test")
        item, opened = (data.item_views[rows], data.item_clicks[rows]), (data.open_views[rows], data.open_clicks[rows])
        user, label = data.user[rows], data.label[rows]
        scores = [
            two_counter_scores(*item, views[rows], clicks[rows], *opened)
            for views, clicks in ((data.user_views, data.user_clicks), running(data))
        ]
        pooled, within = [auc(label, each) for each in scores], [gauc(user, label, each).value for each in scores]
        lifts.append((pooled[1] - pooled[0], within[1] - within[0]))  # type: ignore[operator]
    assert all(pooled > 0.001 for pooled, _ in lifts)
    assert all(within < -0.05 for _, within in lifts)


def test_following_labels_is_judged_as_often_as_promised() -> None:
    """Where labels mean nothing, p-values are uniform: the mean of 300 is within 3.5 standard errors of a half."""
    random = np.random.default_rng(0)
    user, time = np.repeat(np.arange(60), 6), np.tile(np.arange(6), 60)
    chances = [
        follows_labels(user, time, random.integers(0, 2, 360), random.integers(0, 9, 360))[1] for _ in range(300)
    ]
    assert np.mean(chances) == pytest.approx(0.5, abs=3.5 / np.sqrt(12 * 300))
    assert np.mean(np.array(chances) < 0.1) == pytest.approx(0.1, abs=0.06)
    assert follows_labels(user, time, np.ones(360), np.arange(360)) == (0.0, 1.0)


def test_following_labels_by_hand() -> None:
    """Steps 2, 0, 1 after labels 1, 0, 0: about their means 1, -1, 0 and 2/3, -1/3, -1/3, so 1 over the root of 4/3."""
    user, time, label, codes = np.zeros(4, int), np.arange(4), np.array([1, 0, 0, 1]), np.array([5, 7, 7, 8])
    correlation, chance = follows_labels(user, time, label, codes)
    assert correlation == pytest.approx(1 / np.sqrt(4 / 3))
    # Over permutations the sum has variance 2 times 2/3 over 2: z is the root of 3/2.
    assert chance == pytest.approx(0.5 * math.erfc(np.sqrt(1.5 / 2)))
    assert follows_labels(user, time, label, -codes)[1] == pytest.approx(1 - chance)
    assert follows_labels(user, np.zeros(4, int), label, codes) == (0.0, 1.0)


# The arithmetic


def test_poisson_tails_are_the_sums() -> None:
    few, many = poisson_tails(1, 2.0)
    assert few == pytest.approx(np.exp(-2) * 3)
    assert many == pytest.approx(1 - np.exp(-2))
    assert poisson_tails(0, 30.0)[0] == pytest.approx(np.exp(-30.0))
    assert poisson_tails(0, 0.0) == (1.0, 1.0)
    assert poisson_tails(2000, 1000.0)[1] < 1e-100


def test_rank_correlation_shares_ties() -> None:
    # Ranks of x are 1.5, 1.5, 3, 4 and of y 1, 2, 3.5, 3.5: 4 over the root of 4.5 times 4.5.
    assert rank_correlation(np.array([1, 1, 2, 3]), np.array([0, 1, 5, 5])) == pytest.approx(4 / 4.5)
    assert rank_correlation(np.ones(4), np.arange(4)) == 0


def test_the_partial_rank_correlation_is_as_certain_as_promised() -> None:
    """x and y follow `given` closely and are independent otherwise: z is standard normal."""
    random = np.random.default_rng(0)
    zs = []
    for _ in range(200):
        given = random.poisson(np.exp(random.normal(1, 1.5, 400)))
        x, y = given + random.random(400), given + random.normal(0, 2, 400)
        correlation, freedom = partial_rank_correlation(x, y, given)
        zs.append(correlation * np.sqrt(freedom))
    assert np.mean(zs) == pytest.approx(0, abs=0.4)
    assert np.std(zs) == pytest.approx(1, abs=0.2)


# Change labels and see what moves


def test_causal_counts_do_not_move_with_the_future(sound: Dataset) -> None:
    def build(label: NDArray[np.int8]) -> NDArray[Any]:
        counts = causal_counts(sound.user, sound.item, sound.time, label, sound.part)
        return np.stack([counts[name] for name in COUNTS], axis=1)

    hidden = sound.part == Part.TEST
    assert len(moves_with_the_future(build, sound.label, sound.time, hidden=hidden, draws=4)) == 0


def test_what_reads_the_future_moves() -> None:
    time, label = np.arange(8, dtype=np.int64), np.array([0, 1, 0, 0, 1, 1, 0, 1], np.int8)
    every = list(range(8))
    assert moves_with_the_future(np.cumsum, label, time, draws=200).tolist() == every
    assert moves_with_the_future(lambda y: np.roll(y, -2), label, time, draws=200).tolist() == every[:6]
    assert moves_with_the_future(lambda y: np.cumsum(y) - y, label, time, draws=200).tolist() == []
    assert label.tolist() == [0, 1, 0, 0, 1, 1, 0, 1]
    hidden = time >= 6
    moved = moves_with_the_future(lambda y: np.cumsum(y) - y, label, time, hidden=hidden)
    assert moved.tolist() == [7]


def test_arrays_of_unequal_length_are_refused() -> None:
    label, time = np.zeros(3, np.int8), np.arange(3, dtype=np.int64)
    with pytest.raises(DataError, match="equal lengths"):
        moves_with_the_future(lambda y: y, label, time[:2])
    with pytest.raises(DataError, match="neither 0 nor 1"):
        moves_with_the_future(lambda y: y, label + 2, time)
    with pytest.raises(DataError, match=r"shape \(2,\) for 3 labels"):
        moves_with_the_future(lambda y: y[:2], label, time)


@pytest.mark.parametrize("features", ["causal", "reference"])
@pytest.mark.parametrize("split", ["per-user", "global-time"])
def test_labels_of_judged_rows_move_no_byte_but_their_own(
    folder: Path, tmp_path: Path, features: Features, split: Literal["per-user", "global-time"]
) -> None:
    arguments: dict[str, Any] = {"features": features, "split": split, "cold_users": 0.2}
    source = raw(folder, 300, 100, 25, 0)
    before = prepare(open_source("kuairand-pure", source), tmp_path / "before", **arguments)
    judged = np.isin(before.part, (Part.TEST, Part.COLD_TEST))
    flipped = pl.DataFrame(
        {
            "user_id": before.user_ids.to_numpy()[before.user[judged]],
            "video_id": before.item_ids.to_numpy()[before.item[judged]],
            "time_ms": before.time[judged],
            "flip": True,
        }
    )
    shutil.copytree(source, tmp_path / "raw")
    log = next((tmp_path / "raw" / "data").glob("log_standard_*"))
    table = pl.read_csv(log).join(flipped, on=["user_id", "video_id", "time_ms"], how="left", maintain_order="left")
    click = pl.when(pl.col("flip").is_null()).then("is_click").otherwise(1 - pl.col("is_click"))
    table.with_columns(is_click=click).drop("flip").write_csv(log)
    after = prepare(open_source("kuairand-pure", tmp_path / "raw"), tmp_path / "after", **arguments)

    assert judged.sum() > 500
    assert (before.label[judged] != after.label[judged]).all()
    for name in ("users.parquet", "items.parquet", "splits.parquet"):
        assert (before.path / name).read_bytes() == (after.path / name).read_bytes()
    first, second = (pl.read_parquet(data.path / "interactions.parquet") for data in (before, after))
    assert first.drop("click").equals(second.drop("click"))
    assert first["click"].filter(pl.Series(~judged)).equals(second["click"].filter(pl.Series(~judged)))
    assert before.context_codes.tobytes() == after.context_codes.tobytes()
    assert before.manifest["features"] == after.manifest["features"]
