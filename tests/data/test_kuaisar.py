from pathlib import Path

import pytest

from fedpa.data import kuaisar
from fedpa.data.validate import validate
from fedpa.errors import ConfigError, DataError


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    files = {
        "rec_inter.csv": "user_id,item_id,playing_time,duration_ms,time,timestamp,click,forward,like,follow,search,"
        "search_item_related\n1,10,5.0,9.0,2023-05-22 15:53:20,1684742000123.0,1,0,0,0,0,0\n"
        "2,11,5.0,9.0,2023-05-22 15:53:21,1684742001000.0,0,0,0,0,0,0\n",
        "src_inter.csv": "user_id,search_session_id,search_session_time,search_session_timestamp,keyword,"
        "search_source,item_id,click_cnt,item_type\n"
        '1,1,2023-05-22 21:58:52,1684763932919,"[20, 34]",USER_INPUT,11,2,VIDEO\n'
        '1,1,2023-05-22 21:58:52,1684763932919,"[20, 34]",USER_INPUT,10,0,VIDEO\n'
        '1,1,2023-05-22 21:58:52,1684763932919,"[20, 34]",USER_INPUT,103656000000,1,USER\n',
        "user_features.csv": "user_id,search_active_level,rec_active_level,onehot_feat1,onehot_feat2\n"
        "1,4,3,0,7\n2,0,1,2,1\n",
        "item_features.csv": "item_id,caption,author_id,item_type,upload_time,upload_type,"
        + ",".join(
            f"{level}_level_category_{kind}"
            for level in ("first", "second", "third", "fourth")
            for kind in ("id", "name", "name_en")
        )
        + '\n10,"[1, 2]",5,NORMAL,2023-04-22,LongImport,9,搞笑,Funny,136,搞笑段子,Joke,0,空,empty,0,空,empty\n'
        "11,[],0,AD,1970-01-01,Web,8,空,x,1,空,y,2,空,z,3,空,w\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_recommendation(raw: Path) -> None:
    source = kuaisar.load(raw)
    validate(source)
    assert source.name == "kuaisar-r"
    assert source.interactions.collect().rows() == [(1, 10, 1684742000123, 1), (2, 11, 1684742001000, 0)]
    assert source.items is not None
    assert source.items.collect().row(0) == (10, "NORMAL", "LongImport", "9", "136", "0", "0")
    assert source.users is not None
    assert source.users.collect().rows() == [(1, "4", "3", "0", "7"), (2, "0", "1", "2", "1")]
    assert source.groups == ("search_active_level", "rec_active_level")


def test_search_leaves_out_results_that_are_no_items(raw: Path) -> None:
    source = kuaisar.load(raw, "S")
    validate(source)
    assert source.name == "kuaisar-s"
    found = source.interactions.collect().sort("item_id").rows()
    assert found == [(1, 10, 1684763932919, 0), (1, 11, 1684763932919, 1)]
    assert any("left out" in note for note in source.notes)


def test_a_time_that_is_no_number_is_refused(raw: Path) -> None:
    path = raw / "rec_inter.csv"
    path.write_text(path.read_text().replace("1684742001000.0", "nan"))
    with pytest.raises(DataError, match="no time that is a number: user 2, item 11"):
        validate(kuaisar.load(raw))


def test_faults(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown KuaiSAR part"):
        kuaisar.load(raw, "T")  # type: ignore[arg-type]
    (raw / "item_features.csv").unlink()
    with pytest.raises(DataError, match=r"item_features\.csv: no such file"):
        kuaisar.load(raw)
    with pytest.raises(DataError, match=r"no src_inter\.csv"):
        kuaisar.load(tmp_path / "elsewhere", "S")
