from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from fedpa.data import tables
from fedpa.data.source import Feature, FeatureDivision
from fedpa.data.validate import validate
from fedpa.errors import ConfigError, DataError
from shared import need

SCHEMA = """
name: shop
interactions: {file: log.csv, user: customer, item: sku, time: at, labels: {click: bought, seen: seen}}
users: {file: people.csv, id: customer, categorical: [town], numeric: [age]}
items: {file: goods.parquet, id: sku, categorical: [kind]}
groups: [town, tier]
division: {feature: tier, values: [gold]}
undated: [people.csv]
"""


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    (tmp_path / "log.csv").write_text("customer,sku,at,bought,seen\n1,a7,1685336204570.0,1,1\n2,7,1685336204571,0,1\n")
    (tmp_path / "people.csv").write_text("customer,town,age,tier\n1,Łódź,33,gold\n2,,,none\n")
    pl.DataFrame({"sku": ["a7", "7"], "kind": [3, None]}).write_parquet(tmp_path / "goods.parquet")
    return tmp_path


def edit(raw: Path, old: str, new: str, name: str = "schema.yaml") -> None:
    path = raw / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_tables_under_common_names(raw: Path) -> None:
    source = tables.load(raw)
    validate(source)
    assert source.name == "shop"
    assert source.labels == ("click", "seen")
    assert source.interactions.collect().rows(named=True) == [
        {"user_id": 1, "item_id": "a7", "time": 1685336204570, "click": 1, "seen": 1},
        {"user_id": 2, "item_id": "7", "time": 1685336204571, "click": 0, "seen": 1},
    ]
    assert source.users is not None
    assert source.users.collect().rows(named=True) == [
        {"user_id": 1, "town": "Łódź", "tier": "gold", "age": 33.0},
        {"user_id": 2, "town": None, "tier": "none", "age": None},
    ]
    assert source.items is not None
    assert source.items.collect().rows() == [("a7", "3"), ("7", None)]
    assert source.user_features == (Feature("town"), Feature("age", "numeric"))
    assert source.division == FeatureDivision("tier", ("gold",))
    assert source.groups == ("town", "tier")
    assert source.undated == ("people.csv",)


@pytest.mark.parametrize(("listed", "name"), [("[page]", "page"), ("{surface: page}", "surface")])
def test_row_features_under_their_names(raw: Path, listed: str, name: str) -> None:
    assert tables.load(raw).row_features == ()
    edit(raw, "seen: seen}", f"seen: seen}}, row_features: {listed}")
    with pytest.raises(DataError, match=r"log\.csv: no column 'page'"):
        tables.load(raw)
    (raw / "log.csv").write_text("customer,sku,at,bought,seen,page\n1,a7,1,1,1,03\n2,7,2,0,1,\n")
    source = tables.load(raw)
    validate(source)
    assert source.row_features == (name,)
    assert source.interactions.collect()[name].to_list() == ["03", None]


def test_schema_elsewhere(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("schema") / "mine.yaml"
    elsewhere.write_text(SCHEMA)
    assert tables.load(elsewhere, raw).interactions.collect().height == 2
    with pytest.raises(DataError, match=r"log\.csv: no such file"):
        tables.load(elsewhere)


def test_one_type_for_an_id_in_all_tables(raw: Path) -> None:
    edit(raw, "1,Łódź", "one,Łódź", "people.csv")
    source = tables.load(raw)
    assert source.users is not None
    assert source.users.collect_schema()["user_id"] == pl.String
    assert source.interactions.collect_schema()["user_id"] == pl.String
    with pytest.raises(DataError, match="1 values of user_id are not in the table of users: '1'"):
        validate(source)


def test_ids_as_text_keep_leading_zeros(raw: Path) -> None:
    edit(raw, "groups:", "ids: text\ngroups:")
    edit(raw, "1,a7", "01,a7", "log.csv")
    edit(raw, "1,Łódź", "01,Łódź", "people.csv")
    source = tables.load(raw)
    validate(source)
    assert source.interactions.collect().get_column("user_id").to_list() == ["01", "2"]


def test_only_a_parquet_log_with_dates(tmp_path: Path) -> None:
    moments = [datetime(2023, 5, 22), datetime(2023, 5, 23)]
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": [5, 5], "time": moments, "click": [True, False]})
    frame.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "schema.yaml").write_text("name: tiny\ninteractions: {file: log.parquet}\n")
    source = tables.load(tmp_path)
    validate(source)
    assert source.interactions.collect().rows() == [(1, 5, 1684713600000, 1), (2, 5, 1684800000000, 0)]
    assert source.users is None
    assert source.items is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("undated:", "undatd:", "undatd: Extra inputs are not permitted"),
        ("name: shop\n", "", "name: Field required"),
        ("id: sku", "key: sku", "items.key: Extra inputs"),
        ("[gold]", "[]", "division.values"),
        ("name: shop", "name: [", "not readable as YAML"),
        ("[people.csv]", "[persons.csv]", "undated names 'persons.csv'"),
        ("numeric: [age]", "numeric: [town]", "'town' is both categorical and numeric"),
        ("seen: seen", "seen: bought", "share a column"),
        ("seen: seen}", "seen: seen}, row_features: [seen]", "share a column or a name"),
        ("seen: seen}", "seen: seen}, row_features: {place: at}", "share a column"),
        ("seen: seen}", "seen: seen}, row_features: {time: tier}", "share a column or a name"),
    ],
)
def test_mistakes_in_the_schema(raw: Path, old: str, new: str, message: str) -> None:
    edit(raw, old, new)
    with pytest.raises(ConfigError, match=message):
        tables.load(raw)


def test_groups_need_their_column(raw: Path) -> None:
    edit(raw, "[town, tier]", "[town, teir]")
    with pytest.raises(DataError, match=r"people\.csv: no column 'teir' to group or divide users by"):
        tables.load(raw)
    edit(raw, "users: {file: people.csv, id: customer, categorical: [town], numeric: [age]}\n", "")
    edit(raw, "undated: [people.csv]", "")
    with pytest.raises(ConfigError, match="there is no users table"):
        tables.load(raw)


def test_missing_column_missing_schema(raw: Path) -> None:
    edit(raw, "time: at", "time: when")
    with pytest.raises(DataError, match=r"log\.csv: no column 'when'; its columns are customer, sku, at"):
        tables.load(raw)
    with pytest.raises(ConfigError, match="no such file"):
        tables.load(raw / "other.yaml")


def test_shipped_example_reads_real_data() -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "kuaisar-r.yaml"
    source = tables.load(example, need("data/kuaisar-r"))
    validate(source)
    assert source.interactions.select(pl.len()).collect().item() == 117_590
