from pathlib import Path

import polars as pl
import pytest

from fedpa.data import kuairand
from fedpa.data.synthetic import synthesise
from fedpa.data.validate import validate
from fedpa.errors import ConfigError, DataError
from shared import need

LOG = "user_id,video_id,time_ms,is_click,is_like,long_view\n"
USER = {
    "user_id": 7,
    **dict.fromkeys(("user_active_degree", "follow_user_num_range", "fans_user_num_range"), "u"),
    **dict.fromkeys(("friend_user_num_range", "register_days_range"), "r"),
    **dict.fromkeys(("is_lowactive_period", "is_live_streamer", "is_video_author"), -124),
    **dict.fromkeys(("follow_user_num", "fans_user_num", "friend_user_num", "register_days"), 3),
    **{f"onehot_feat{number}": 1 for number in range(18)},
}


def make(folder: Path, suffix: str, logs: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, rows in logs.items():
        (folder / name).write_text(LOG + rows)
    users = pl.DataFrame([USER, {**USER, "user_id": 8, "onehot_feat4": None}])
    users.with_columns(pl.col("onehot_feat4").cast(pl.Float64)).write_csv(folder / f"user_features_{suffix}.csv")
    (folder / f"video_features_basic_{suffix}.csv").write_text(
        "video_id,video_type,upload_type,video_duration,music_type,tag\n"
        '1,NORMAL,Web,5000.0,9.0,"12,65"\n2,AD,Kmovie,,,\n'
    )
    return folder


@pytest.mark.parametrize("inside", ["", "data", "KuaiRand-Pure/data", "KuaiRand-Pure"])
def test_rows_and_tables_under_common_names(tmp_path: Path, inside: str) -> None:
    folder = make(
        tmp_path / "raw" / inside,
        "pure",
        {
            "log_standard_4_22_to_5_08_pure.csv": "7,1,1650882384975,1,0,1\n8,2,1650882384976,0,1,0\n",
            "log_random_4_22_to_5_08_pure.csv": "8,1,1650882384977,1,0,0\n",
        },
    )
    (folder / "video_features_statistic_pure.csv").write_text(
        "video_id,play_duration,comment_stay_duration,complete_play_cnt\n2,1.5,2.5,3.5\n1,4.0,5.0,6.0\n"
    )
    source = kuairand.load(tmp_path / "raw", labels=("long_view", "click"))
    validate(source)
    assert source.name == "kuairand-pure"
    assert source.interactions.collect().to_dict(as_series=False) == {
        "user_id": [7, 8],
        "item_id": [1, 2],
        "time": [1650882384975, 1650882384976],
        "long_view": [1, 0],
        "click": [1, 0],
        "hour": [18, 18],
    }
    assert source.interactions.collect_schema()["click"] == pl.Int8
    assert source.random_exposure is not None
    assert source.random_exposure.collect().rows() == [(8, 1, 1650882384977, 0, 1, 18)]
    assert source.items is not None
    assert source.items.collect().rows(named=True) == [
        {"item_id": 1, "video_type": "NORMAL", "upload_type": "Web", "video_duration": 5000.0, "music_type": 9}
        | {"tag": "12,65", "first_tag": "12"}
        | {"play_duration": 4.0, "comment_stay_duration": 5.0, "complete_play_cnt": 6.0},
        {"item_id": 2, "video_type": "AD", "upload_type": "Kmovie", "video_duration": None, "music_type": None}
        | {"tag": None, "first_tag": None}
        | {"play_duration": 1.5, "comment_stay_duration": 2.5, "complete_play_cnt": 3.5},
    ]
    assert source.users is not None
    assert source.users.select("onehot_feat4", "is_live_streamer").collect().rows() == [(1, -124), (None, -124)]
    assert source.undated == ("user_features_pure.csv", "video_features_statistic_pure.csv")
    assert source.notes[1] == "not found: log_standard_4_08_to_4_21_pure.csv"
    assert source.oracle is None
    assert [path.parent for path in source.files] == [folder] * 5
    leaks = {"play_duration", "comment_stay_duration", "complete_play_cnt", "tag"}
    assert leaks.isdisjoint(feature.name for feature in source.item_features)


def test_the_surface_is_offered_where_every_log_has_it(tmp_path: Path) -> None:
    hours = [1650902399999, 1650902400000, 1650988799999]  # 23:59:59.999, midnight and the next end of a day in UTC+8
    logs = {
        "log_standard_4_08_to_4_21_pure.csv": f"7,1,{hours[0]},1,0,1\n",
        "log_standard_4_22_to_5_08_pure.csv": "".join(f"8,2,{time},0,1,0\n" for time in hours[1:]),
    }
    folder = make(tmp_path / "raw", "pure", logs)
    source = kuairand.load(folder)
    assert source.row_features == ("hour",)
    assert source.interactions.collect()["hour"].to_list() == [23, 0, 23]
    early, late = (folder / name for name in logs)
    early.write_text(early.read_text().replace("view\n", "view,tab\n").replace(",1\n", ",1,4\n"))
    assert kuairand.load(folder).row_features == ("hour",)
    late.write_text(late.read_text().replace("view\n", "view,tab\n").replace(",0\n", ",0,\n"))
    source = kuairand.load(folder)
    assert source.row_features == ("tab", "hour")
    assert source.interactions.collect()["tab"].to_list() == [4, None, None]
    validate(source)


def test_parts_in_order_and_no_statistics(tmp_path: Path) -> None:
    make(
        tmp_path / "raw",
        "27k",
        {f"log_standard_4_08_to_4_21_27k_part{part}.csv": f"7,{1 + part % 2},{part},1,0,0\n" for part in range(1, 11)},
    )
    source = kuairand.load(tmp_path / "raw", "27k")
    assert source.interactions.collect().get_column("time").to_list() == list(range(1, 11))
    assert source.reference is None
    assert source.random_exposure is None
    (tmp_path / "raw" / "log_standard_4_08_to_4_21_27k_part3.csv").unlink()
    with pytest.raises(DataError, match=r"no log_standard_4_08_to_4_21_27k_part3\.csv"):
        kuairand.load(tmp_path / "raw", "27k")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no standard log of KuaiRand-Pure"):
        kuairand.load(tmp_path)
    folder = make(tmp_path / "raw", "1k", {"log_standard_4_22_to_5_08_1k.csv": "7,1,5,1,0,0\n"})
    with pytest.raises(DataError, match="name the source kuairand-1k"):
        kuairand.load(folder)
    (folder / "user_features_1k.csv").unlink()
    with pytest.raises(DataError, match=r"no user_features_1k\.csv"):
        kuairand.load(folder, "1k")


def test_unknown_label_and_variant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown label"):
        kuairand.load(tmp_path, labels=("clicks",))
    with pytest.raises(ConfigError, match="unknown KuaiRand variant"):
        kuairand.load(tmp_path, "2k")  # type: ignore[arg-type]


def test_a_label_that_is_no_small_number_is_named_by_line(tmp_path: Path) -> None:
    folder = make(tmp_path / "raw", "pure", {"log_standard_4_22_to_5_08_pure.csv": "7,1,5,1,0,0\n7,1,6,300,0,0\n"})
    with pytest.raises(DataError, match="line 3, column 'is_click': '300'"):
        validate(kuairand.load(folder))


def test_synthetic_data_brings_its_oracle(tmp_path: Path) -> None:
    counts = synthesise(tmp_path / "s", users=50, items=30, rows_per_user=5)
    source = kuairand.load(tmp_path / "s")
    validate(source)
    assert source.oracle is not None
    oracle = source.oracle.collect()
    assert oracle.columns == ["user_id", "item_id", "time", "probability"]
    assert oracle.height == counts["interactions"]
    keys = ["user_id", "item_id", "time"]
    assert oracle.select(keys).equals(source.interactions.select(keys).collect())


def test_real_data() -> None:
    source = kuairand.load(need("data/kuairand-pure"))
    validate(source)
    log = source.interactions.select(pl.len(), pl.col("click").mean(), pl.col("user_id").n_unique()).collect()
    rows, rate, users = log.row(0)
    assert (rows, users) == (228_329, 25_156)
    assert rate == pytest.approx(0.442, abs=5e-4)
