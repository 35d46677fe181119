from pathlib import Path

import pytest

from fedpa.data.sources import SOURCES, open_source
from fedpa.errors import ConfigError, DataError


def test_unknown_name_suggests_a_close_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'kuairand-pure'") as caught:
        open_source("kuairand-pur", tmp_path)
    assert all(name in str(caught.value) for name in SOURCES)


def test_every_source_refuses_an_empty_folder(tmp_path: Path) -> None:
    for name in SOURCES:
        with pytest.raises((DataError, ConfigError)) as caught:
            open_source(name, tmp_path)
        assert str(tmp_path) in str(caught.value)


def test_a_schema_is_for_tables_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes no schema"):
        open_source("kuaisar-r", tmp_path, schema=tmp_path / "schema.yaml")


def test_tables_with_a_schema_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,time,click\n1,2,3,1\n")
    schema = tmp_path / "mine.yaml"
    schema.write_text("name: tiny\ninteractions: {file: log.csv}\n")
    assert open_source("tables", tmp_path, schema=schema).interactions.collect().rows() == [(1, 2, 3, 1)]
