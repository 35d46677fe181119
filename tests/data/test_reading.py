import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from fedpa.data.reading import DType, scan_table, table_schema
from fedpa.errors import DataError

INT, TEXT, REAL = pl.Int64, pl.String, pl.Float64


def write(folder: Path, content: bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def rows(path: Path, columns: Mapping[str, DType], **options: object) -> dict[str, list[object]]:
    return scan_table(path, columns, **options).collect().to_dict(as_series=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a,b,c\n1,x,9\n2,y,9\n", {"b": ["x", "y"], "a": [1, 2]}),
        (b"\xef\xbb\xbfa,b\r\n1,x\r\n", {"b": ["x"], "a": [1]}),
        (b'a,b\n1,"x,\ny"\n2,z', {"b": ["x,\ny", "z"], "a": [1, 2]}),
        (b'a,b\n1,z\n2,"x\n""q"", y"\n', {"b": ["z", 'x\n"q", y'], "a": [1, 2]}),
        (b"a,b\n1,\n,y\n", {"b": [None, "y"], "a": [1, None]}),
        ("a,b\n1,搞笑\n".encode(), {"b": ["搞笑"], "a": [1]}),
    ],
)
def test_csv(tmp_path: Path, content: bytes, expected: dict[str, list[object]]) -> None:
    assert rows(write(tmp_path, content), {"b": TEXT, "a": INT}) == expected


def test_csv_without_header_and_with_optional_column(tmp_path: Path) -> None:
    path = write(tmp_path, b"1\tx\n2\ty\n")
    assert rows(path, {"a": INT, "b": TEXT}, separator="\t", has_header=False) == {"a": [1, 2], "b": ["x", "y"]}
    path = write(tmp_path, b"a\n1\n")
    assert rows(path, {"a": INT, "z": INT}, optional=["z"]) == {"a": [1]}


FAULTS = {
    "text for a number": (b"a,b\n1,x\nfoo,y\n", r"line 3, column 'a': 'foo', expected a whole number"),
    "fraction": (b"a,b\n1,x\n2.5,y\n", r"line 3, column 'a': '2.5', expected a whole number"),
    "too large": (b"a,b\n99999999999999999999,x\n", r"line 2, column 'a': '99999999999999999999'"),
    "after a line break in quotes": (b'a,b\n1,"x\n\ny"\nfoo,y\n', r"line 5, column 'a': 'foo'"),
    "too many fields": (b"a,b\n1,x\n2,y,z\n", r"line 3: 3 fields, expected 2"),
    "cut in a row": (b"a,b\n1,x\n2", r"line 3: the file ends within a row: 1 fields, the header has 2"),
    "open quote": (b'a,b\n1,x\n2,"y\n3,z\n', r"line 3: a double quote opens and is not closed"),
    "not UTF-8": (b"a,b\n1,x\n2,\xff\n", r"line 3: byte 10 of the file is 0xff, which is not UTF-8"),
    "UTF-8 cut at the end": ("a,b\n1,笑".encode()[:-1], r"line 2: byte 6 of the file is 0xe7"),
    "UTF-16": ("a,b\n1,x\n".encode("utf-16"), r"line 1: byte 0 of the file is 0xff"),
    "empty": (b"", r"empty file"),
    "header only": (b"a,b\n", r"a header but no rows"),
    "no column": (b"A,b\n1,x\n", r"no column 'a'; its columns are A, b"),
    "wrong separator": (b"a;b\n1;x\n", r"no column 'a', 'b'; its columns are a;b"),
    "column twice": (b"a,b,a\n1,x,2\n", r"more than one column 'a'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_csv_are_named_with_their_place(tmp_path: Path, fault: str) -> None:
    content, message = FAULTS[fault]
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        rows(path, {"a": INT, "b": TEXT})
    assert str(path) in str(caught.value)
    assert caught.value.fix


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        scan_table(tmp_path / "no.csv", {"a": INT})
    with pytest.raises(DataError, match="is a folder"):
        scan_table(tmp_path, {"a": INT})
    with pytest.raises(DataError, match="no such file"):
        table_schema(tmp_path / "no.csv")


def test_close_column_name_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rename 'user_idd' to 'user_id'"):
        scan_table(write(tmp_path, b"user_idd,b\n1,2\n"), {"user_id": INT})


def test_line_beyond_the_first_pieces(tmp_path: Path) -> None:
    path = write(tmp_path, b"a,b\n" + b"1,x\n" * 600_000 + b"no,x\n" + b"1,x\n" * 10)
    with pytest.raises(DataError, match=r"line 600002, column 'a': 'no'"):
        rows(path, {"a": INT})
    path = write(tmp_path, b"a,b\n" + "1,笑\n".encode() * 600_000 + b"1,\xe7x\n")
    with pytest.raises(DataError, match=rf"line 600002: byte {4 + 600_000 * 6 + 2} of the file is 0xe7"):
        rows(path, {"b": TEXT})


def test_header_less_faults(tmp_path: Path) -> None:
    columns = {"a": INT, "b": TEXT}
    with pytest.raises(DataError, match="line 1: 3 fields, expected 2"):
        scan_table(write(tmp_path, b"1,x,y\n"), columns, has_header=False)
    with pytest.raises(DataError, match="line 2, column 'a': 'q'"):
        rows(write(tmp_path, b"1,x\nq,y\n"), columns, has_header=False)
    with pytest.raises(DataError, match="line 2: the file ends within a row"):
        scan_table(write(tmp_path, b"1,x\n2"), columns, has_header=False)


def test_frame_stays_lazy_and_can_be_used_twice(tmp_path: Path) -> None:
    path = write(tmp_path, b"a,b,c\n3,x,1\n1,y,bad\n2,z,1\n")
    frame = scan_table(path, {"a": INT, "b": TEXT, "c": INT})
    assert frame.select("a").filter(pl.col("a") > 1).collect().get_column("a").to_list() == [3, 2]
    assert frame.select("b").head(2).collect().get_column("b").to_list() == ["x", "y"]
    joined = frame.select("a").join(frame.select("a", "b"), on="a").sort("a").collect(engine="streaming")
    assert joined.rows() == [(1, "y"), (2, "z"), (3, "x")]
    with pytest.raises(DataError, match="line 3, column 'c': 'bad'"):
        frame.select(pl.col("c").sum()).collect(engine="streaming")


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame(
        {"i": [1, None], "f": [2.0, 3.0], "b": [True, False], "t": [datetime(1970, 1, 1, 0, 0, 1), None]}
    ).write_parquet(path)
    found = rows(path, {"f": INT, "i": TEXT, "b": pl.Int8, "t": INT})
    assert found == {"f": [2, 3], "i": ["1", None], "b": [1, 0], "t": [1000, None]}
    assert table_schema(path).names() == ["i", "f", "b", "t"]


def test_faults_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"f": [2.0, 2.5, float("nan")], "s": ["1", "2", "x"], "l": [[1], [2], [3]]}).write_parquet(path)
    with pytest.raises(DataError, match=r"row 2, column 'f': 2.5, expected a whole number"):
        rows(path, {"f": INT})
    with pytest.raises(DataError, match=r"row 3, column 's': 'x', expected a whole number from -128 to 127"):
        rows(path, {"s": pl.Int8})
    with pytest.raises(DataError, match=re.escape("column 'l': holds List(Int64), expected text")):
        rows(path, {"l": TEXT})
    with pytest.raises(DataError, match="no column 'g'; its columns are f, s, l"):
        rows(path, {"g": INT})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a complete Parquet file"):
        rows(path, {"f": INT})
    pl.DataFrame({"f": []}, schema={"f": INT}).write_parquet(path)
    with pytest.raises(DataError, match="columns but no rows"):
        rows(path, {"f": INT})


def test_table_schema_guesses_csv_types(tmp_path: Path) -> None:
    schema = table_schema(write(tmp_path, b"a;b;c\n1;x;2.5\n2;y;3\n"), separator=";")
    assert schema == {"a": INT, "b": TEXT, "c": REAL}
