"""The synthetic data set: official layout, reproducible bytes, labels that follow the oracle."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from fedpa.artifacts import sha256
from fedpa.data import synthetic
from fedpa.data.synthetic import OPEN_DEGREES, synthesise
from fedpa.errors import ArtifactError, ConfigError

LOG = "log_standard_4_22_to_5_08_pure.csv"
HEADERS = {
    LOG: "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,"
    "long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab",
    "user_features_pure.csv": "user_id,user_active_degree,is_lowactive_period,is_live_streamer,"
    "is_video_author,follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,"
    "friend_user_num,friend_user_num_range,register_days,register_days_range,"
    + ",".join(f"onehot_feat{number}" for number in range(18)),
    "video_features_basic_pure.csv": "video_id,author_id,video_type,upload_dt,upload_type,visible_status,"
    "video_duration,server_width,server_height,music_id,music_type,tag",
    "video_features_statistic_pure.csv": "video_id,counts,show_cnt,show_user_num,play_cnt,play_user_num,"
    "play_duration,complete_play_cnt,complete_play_user_num,valid_play_cnt,valid_play_user_num,"
    "long_time_play_cnt,long_time_play_user_num,short_time_play_cnt,short_time_play_user_num,play_progress,"
    "comment_stay_duration,like_cnt,like_user_num,click_like_cnt,double_click_cnt,cancel_like_cnt,"
    "cancel_like_user_num,comment_cnt,comment_user_num,direct_comment_cnt,reply_comment_cnt,"
    "delete_comment_cnt,delete_comment_user_num,comment_like_cnt,comment_like_user_num,follow_cnt,"
    "follow_user_num,cancel_follow_cnt,cancel_follow_user_num,share_cnt,share_user_num,download_cnt,"
    "download_user_num,report_cnt,report_user_num,reduce_similar_cnt,reduce_similar_user_num,collect_cnt,"
    "collect_user_num,cancel_collect_cnt,cancel_collect_user_num,direct_comment_user_num,"
    "reply_comment_user_num,share_all_cnt,share_all_user_num,outsite_share_all_cnt",
}
USERS, ITEMS = 5000, 400  # more than one block of users


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    return out / "data", synthesise(out, users=USERS, items=ITEMS, seed=3, rows_per_user=20)


@pytest.fixture(scope="module")
def log(made: tuple[Path, dict[str, int]]) -> pl.DataFrame:
    return pl.read_csv(made[0] / LOG)


@pytest.fixture(scope="module")
def oracle(made: tuple[Path, dict[str, int]]) -> pl.DataFrame:
    return pl.read_parquet(made[0] / "oracle.parquet")


def test_headers_are_the_official_ones(made: tuple[Path, dict[str, int]]) -> None:
    folder, _ = made
    assert {path.name for path in folder.iterdir()} == {*HEADERS, "oracle.parquet"}
    for name, header in HEADERS.items():
        with (folder / name).open(encoding="utf-8") as file:
            assert file.readline().rstrip("\n") == header


def test_counts_and_ids_agree(made: tuple[Path, dict[str, int]], log: pl.DataFrame) -> None:
    folder, counts = made
    users = pl.read_csv(folder / "user_features_pure.csv", infer_schema_length=None)
    videos = pl.read_csv(folder / "video_features_basic_pure.csv", infer_schema_length=None)
    assert users["user_id"].to_list() == list(range(USERS)) == log["user_id"].unique().sort().to_list()
    assert videos["video_id"].to_list() == list(range(ITEMS))
    assert log["video_id"].is_between(0, ITEMS - 1).all()
    expected = {"users": USERS, "items": ITEMS, "interactions": log.height, "clicks": log["is_click"].sum()}
    assert counts == expected
    assert log.height / USERS == pytest.approx(20, rel=0.05)
    statistics = pl.read_csv(folder / "video_features_statistic_pure.csv")
    shows = (statistics["show_cnt"] * statistics["counts"]).sum()
    assert shows == pytest.approx(log.height)


def test_rows_are_sorted_by_user_then_strictly_by_time_within_the_period(log: pl.DataFrame) -> None:
    assert log.select(pl.struct("user_id", "time_ms").is_duplicated().any()).item() is False
    assert log.select("user_id", "time_ms").equals(log.select("user_id", "time_ms").sort("user_id", "time_ms"))
    assert log["date"].min() == 20220425
    assert log["date"].max() == 20220508
    row = log.row(17, named=True)
    local = datetime.fromtimestamp(row["time_ms"] / 1000, UTC).astimezone(timezone(timedelta(hours=8)))
    assert f"{local:%Y%m%d}" == str(row["date"])
    assert local.hour * 100 == row["hourmin"]


def test_oracle_has_the_rows_of_the_log_in_its_order(log: pl.DataFrame, oracle: pl.DataFrame) -> None:
    keys = ["user_id", "video_id", "time_ms"]
    assert oracle.schema == {**dict.fromkeys(keys, pl.Int64), "probability": pl.Float64}
    assert oracle.select(keys).equals(log.select(keys))


def test_labels_follow_the_probabilities(log: pl.DataFrame, oracle: pl.DataFrame) -> None:
    click, probability = log["is_click"].to_numpy(), oracle["probability"].to_numpy()
    assert 0.35 < click.mean() < 0.45
    for rows in np.array_split(np.argsort(probability), 10):
        p = probability[rows]
        assert abs(click[rows].sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())


def test_oracle_ranks_far_better_than_popularity(log: pl.DataFrame, oracle: pl.DataFrame) -> None:
    # The item's own click rate has seen every label and still falls far short of the oracle.
    rate = log.select(pl.col("is_click").mean().over("video_id")).to_series()
    popularity = roc_auc_score(log["is_click"], rate)
    assert 0.55 < popularity < 0.65
    assert roc_auc_score(log["is_click"], oracle["probability"]) > popularity + 0.12


def test_users_have_the_official_values(made: tuple[Path, dict[str, int]]) -> None:
    users = pl.read_csv(made[0] / "user_features_pure.csv", infer_schema_length=None)
    listed = users["user_active_degree"].is_in(OPEN_DEGREES).mean()
    assert isinstance(listed, float)
    assert 0.8 * listed + 0.2 * (1 - listed) == pytest.approx(0.4, abs=0.02)
    follow, label = users["follow_user_num"], users["follow_user_num_range"]
    assert set(label) == {
        *("0", "(0,10]", "(10,50]", "(50,100]", "(100,150]", "(150,250]", "(250,500]", "500+"),
    }
    assert follow.filter(label == "(250,500]").is_between(251, 500).all()
    assert users["register_days"].filter(users["register_days_range"] == "730+").min() == 731
    assert 0 < users["onehot_feat4"].null_count() < 0.1 * USERS


def digests(out: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in (out / "data").iterdir()}


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    for name, seed in ("a", 0), ("b", 0), ("c", 1):
        synthesise(tmp_path / name, users=50, items=30, seed=seed, rows_per_user=5)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert all(digests(tmp_path / "a")[name] != digest for name, digest in digests(tmp_path / "c").items())


def test_whole_blocks_do_not_depend_on_the_number_of_users(tmp_path: Path) -> None:
    logs = []
    for users in 4096, 4100:
        synthesise(tmp_path / str(users), users=users, items=30, rows_per_user=2)
        logs.append(pl.read_csv(tmp_path / str(users) / "data" / LOG).filter(pl.col("user_id") < 4096))
    assert logs[0].equals(logs[1])


def test_one_row_per_user_and_progress(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    progress: Callable[[int, int], None] = lambda done, total: calls.append((done, total))  # noqa: E731
    counts = synthesise(tmp_path / "set", users=5000, items=10, rows_per_user=1, days=1, progress=progress)
    assert counts["interactions"] == 5000
    assert calls == [(4096, 5000), (5000, 5000)]


def test_crowded_times_are_moved_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_DAY", 24 * 3600)  # 86 seconds a day, so that times collide
    synthesise(tmp_path / "set", users=20, items=10, rows_per_user=1000, days=1)
    log = pl.read_csv(tmp_path / "set" / "data" / LOG)
    assert log.height > 10_000
    assert not log.select(pl.struct("user_id", "time_ms").is_duplicated().any()).item()


@pytest.mark.parametrize(
    ("setting", "number"),
    [("users", 9), ("items", 0), ("seed", -1), ("rows_per_user", 0.5), ("rows_per_user", float("nan")),
     ("days", 0), ("days", 18)],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(tmp_path: Path, setting: str, number: float) -> None:
    settings: dict[str, Any] = {"users": 20, "items": 20} | {setting: number}
    with pytest.raises(ConfigError, match=rf"{setting} is .*, expected") as caught:
        synthesise(tmp_path / "set", **settings)
    assert caught.value.fix is not None
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_kept_unless_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(ArtifactError, match="already exists"):
        synthesise(out, users=20, items=20)
    assert (out / "mine").exists()
    synthesise(out, users=20, items=20, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["data"]
