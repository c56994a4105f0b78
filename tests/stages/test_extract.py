"""Extraction: what lies at the source becomes one snapshot, or a clear word why not."""

from __future__ import annotations

import gzip
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from airflow_mlops.call import ArtifactRef, Store
from airflow_mlops.errors import DataError, DataNotFoundError, MlopsError, SchemaError
from airflow_mlops.spec.stages import Extract
from airflow_mlops.stages import files
from airflow_mlops.stages.extract import extract
from airflow_mlops.stages.tables import read_table, write_table
from tests import toy


def take(
    folder: Path, source: str = "data/{window}.parquet", month: str | None = "2024-02", **options: Any
) -> tuple[ArtifactRef, pa.Table]:
    store = Store(str(folder / "store"))
    window = toy.month(month) if month else None
    ref = extract(Extract(source=str(folder / source), grain="month", **options), window, store)
    return ref, read_table(ref, store)


def two_windows(folder: Path, first: Any, second: Any) -> pa.Table:
    for month, values in (("2024-01", first), ("2024-02", second)):
        toy.write(pa.table({"x": values}), folder / "data" / f"{month}.parquet")
    return take(folder, last=2)[1]


def test_a_window_is_read_whole(tmp_path: Path) -> None:
    toy.months(tmp_path)
    ref, table = take(tmp_path)
    assert table == toy.rows("2024-02")
    assert (ref.kind, ref.rows) == ("dataset", 400)


def test_the_last_windows_are_read_oldest_first(tmp_path: Path) -> None:
    toy.months(tmp_path)
    months = [name[:7] for name in take(tmp_path, last=2)[1]["id"].to_pylist()]
    assert months == ["2024-01"] * 400 + ["2024-02"] * 400


def test_csv_gives_what_parquet_gives(tmp_path: Path) -> None:
    plain = pa.table({"i": [1, 2], "x": [0.5, None], "s": ["a", None], "at": [datetime(2024, 2, 1), None]})
    toy.write(plain, tmp_path / "data" / "2024-02.parquet")
    pacsv.write_csv(plain, tmp_path / "data" / "2024-02.csv")
    read = take(tmp_path, "data/{window}.csv")[1]
    assert read.to_pylist() == plain.to_pylist()
    assert [str(kind) for kind in read.schema.types] == ["int64", "double", "string", "timestamp[ns]"]


@pytest.mark.parametrize(("name", "separator"), [("a.csv.gz", ","), ("a.tsv", "\t"), ("a.tsv.gz", "\t")])
def test_csv_may_be_packed_or_have_tabs(tmp_path: Path, name: str, separator: str) -> None:
    data = f'a{separator}b\n1{separator}"x\ny"\n2{separator}\n'.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert take(tmp_path, name, None)[1].to_pydict() == {"a": [1, 2], "b": ["x\ny", None]}


def test_the_declared_format_goes_before_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a\n1\n")
    assert take(tmp_path, "rows.txt", None, format="csv")[1].to_pydict() == {"a": [1]}


def test_files_are_matched_and_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for part, value in (("b", 2), ("a", 1), ("c", 3)):
        toy.write(pa.table({"x": [value]}), tmp_path / "data" / "2024-02" / f"{part}.parquet")
    assert take(tmp_path, "data/{window}/*.parquet")[1].to_pydict() == {"x": [1, 2, 3]}


def test_equal_content_has_an_equal_digest_wherever_it_lies(tmp_path: Path) -> None:
    toy.months(tmp_path / "here")
    rows = toy.rows("2024-02")
    # Written by somebody else: other row groups, dictionaries and compression.
    other = tmp_path / "there" / "data" / "2024-02.parquet"
    other.parent.mkdir(parents=True)
    pq.write_table(rows, other, row_group_size=37, compression="gzip", use_dictionary=False)
    here, there = take(tmp_path / "here")[0], take(tmp_path / "there")[0]
    assert (here.digest, here.schema_id) == (there.digest, there.schema_id)
    assert here.uri != there.uri


def test_other_content_has_another_digest(tmp_path: Path) -> None:
    toy.months(tmp_path / "here")
    toy.months(tmp_path / "there", shift=0.1)
    assert take(tmp_path / "here")[0].digest != take(tmp_path / "there")[0].digest


def test_texts_are_texts_however_they_are_encoded(tmp_path: Path) -> None:
    plain = pa.array(["a", "b", None])
    encodings = [plain, plain.dictionary_encode(), plain.cast(pa.large_string()), plain.cast(pa.string_view())]
    digests = set()
    for index, values in enumerate(encodings):
        toy.write(pa.table({"x": values}), tmp_path / str(index) / "data" / "2024-02.parquet")
        digests.add(take(tmp_path / str(index))[0].digest)
    assert len(digests) == 1


def test_decimals_are_numbers(tmp_path: Path) -> None:
    toy.write(pa.table({"x": [Decimal("1.50"), None]}), tmp_path / "data" / "2024-02.parquet")
    assert take(tmp_path)[1].to_pydict() == {"x": [1.5, None]}


def test_a_missing_window_names_those_there_are(tmp_path: Path) -> None:
    toy.months(tmp_path)
    with pytest.raises(DataNotFoundError) as caught:
        take(tmp_path, month="2024-05")
    assert "2024-05.parquet for the window 2024-05" in str(caught.value)
    assert "allowed: 2024-01 to 2024-03" in str(caught.value)


def test_a_window_without_those_before_it_says_what_it_reads_and_which_one_could(tmp_path: Path) -> None:
    toy.months(tmp_path)
    with pytest.raises(DataNotFoundError) as caught:
        take(tmp_path, month="2024-01", last=2)
    said = str(caught.value).replace(str(tmp_path), "")
    assert said.endswith(
        "2023-12.parquet for the window 2023-12: a run about 2024-01 reads 2 windows, 2023-12 to 2024-01; "
        "allowed: 2024-02 to 2024-03; "
        "try: give the run a window with 1 before it, or declare fewer (windows: {last: N})"
    )
    with pytest.raises(DataNotFoundError, match="allowed: none yet: there are 2024-01 to 2024-03"):
        take(tmp_path, month="2024-03", last=4)


def test_a_source_that_has_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="no window of this source has arrived"):
        take(tmp_path)
    with pytest.raises(DataNotFoundError, match="there is no file"):
        take(tmp_path, "nothing.csv", None)
    with pytest.raises(DataNotFoundError, match="the run has none"):
        take(tmp_path, month=None)


@pytest.mark.parametrize(
    ("name", "head", "before", "line"),
    [
        ("a.csv", "a,city", 2, 4),
        ("a.csv", "a,st\xe4dte", 2, 1),
        ("a.csv.gz", "a,city", 2, 4),
        ("a.csv", "a,city", 700_000, 700_002),
    ],
)
def test_a_csv_of_another_encoding_is_told_with_its_line(
    tmp_path: Path, name: str, head: str, before: int, line: int
) -> None:
    text = (f"{head}\n" + "1,Bonn\n" * before + "2,K\xf6ln\n").encode("latin-1")
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    byte = "0xe4 at position 5" if line == 1 else "0xf6 at position 4"
    with pytest.raises(DataError, match=f"{name} is not UTF-8: line {line} has byte {byte}; try: convert it"):
        take(tmp_path, name, None)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_an_empty_window_is_not_found(tmp_path: Path, kind: str) -> None:
    empty = toy.rows("2024-02", 5).slice(0, 0)
    file = toy.write(empty, tmp_path / "data" / "2024-02.parquet")
    if kind == "csv":
        pacsv.write_csv(empty, file.with_suffix(".csv"))
    with pytest.raises(DataNotFoundError, match="no rows in the window 2024-02"):
        take(tmp_path, "data/{window}." + kind)


@pytest.mark.parametrize("damage", ["cut at the end", "cut in the middle", "overwritten", "empty", "csv"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    file = toy.write(toy.rows("2024-02"), tmp_path / "data" / "2024-02.parquet")
    data = file.read_bytes()
    file.write_bytes(
        {
            "cut at the end": data[:-100],
            "cut in the middle": data[: len(data) // 2],
            "overwritten": data[:200] + b"\xff" * 2000 + data[2200:],
            "empty": b"",
            "csv": b"a,b\n1,2\n",
        }[damage]
    )
    with pytest.raises(DataError, match=r"2024-02.parquet is no readable parquet file") as caught:
        take(tmp_path)
    assert not caught.value.retryable
    assert not Path(tmp_path, "store", "artifacts").exists()


@pytest.mark.parametrize("text", ["", "a,b\n1\n", "a,b\n1,2,3\n"])
def test_a_csv_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match="no readable csv file"):
        take(tmp_path, "a.csv", None)


@pytest.mark.parametrize("keep", [3, 25, -4])
def test_a_packed_csv_that_was_cut_off_is_named(tmp_path: Path, keep: int) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 1000)[:keep])
    with pytest.raises(DataError, match="no readable csv file"):
        take(tmp_path, "a.csv.gz", None)


def test_whole_and_broken_numbers_go_together(tmp_path: Path) -> None:
    table = two_windows(tmp_path, [1, 2], [0.5, None])
    assert table.to_pydict() == {"x": [1.0, 2.0, 0.5, None]}


def test_a_column_that_is_empty_in_one_window_takes_the_others_type(tmp_path: Path) -> None:
    assert two_windows(tmp_path, pa.nulls(1), ["a"]).to_pydict() == {"x": [None, "a"]}


def test_a_column_that_came_later_is_null_before(tmp_path: Path) -> None:
    toy.write(pa.table({"a": [1]}), tmp_path / "data" / "2024-01.parquet")
    toy.write(pa.table({"b": ["x"], "a": [2]}), tmp_path / "data" / "2024-02.parquet")
    assert take(tmp_path, last=2)[1].to_pydict() == {"a": [1, 2], "b": [None, "x"]}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1], ["a"]),
        ([True], [1]),
        ([date(2024, 1, 1)], [datetime(2024, 1, 1)]),
        ([datetime(2024, 1, 1)], [datetime(2024, 1, 1, tzinfo=UTC)]),
        ([[1]], ["a"]),
        ([2**53 + 1], [0.5]),
        (pa.array([2**64 - 1], pa.uint64()), [-1]),
    ],
)
def test_types_that_do_not_fit_together_are_refused(tmp_path: Path, first: Any, second: Any) -> None:
    with pytest.raises(SchemaError, match="'?x'?.*one type in every window"):
        two_windows(tmp_path, first, second)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_column_that_stands_twice_is_refused(tmp_path: Path, kind: str) -> None:
    table = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    file = toy.write(table, tmp_path / "rows.parquet")
    pacsv.write_csv(table, file.with_suffix(".csv"))
    with pytest.raises(SchemaError, match="'a' stands twice"):
        take(tmp_path, f"rows.{kind}", None)


INSTANTS = [datetime(2024, 1, 31, 23, 59, 59), datetime(2024, 2, 1), datetime(2024, 2, 29, 23), datetime(2024, 3, 1)]


@pytest.mark.parametrize(
    "kind",
    [pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.timestamp("ms", "Europe/Berlin")],
    ids=str,
)
def test_only_rows_of_the_window_are_kept(tmp_path: Path, kind: pa.DataType) -> None:
    instants = [at.replace(tzinfo=UTC) if kind.tz else at for at in INSTANTS]
    times = pa.array([*instants, None], kind)
    toy.write(pa.table({"at": times, "n": [0, 1, 2, 3, 4]}), tmp_path / "all.parquet")
    assert take(tmp_path, "all.parquet", time="at")[1]["n"].to_pylist() == [1, 2]
    assert take(tmp_path, "all.parquet", time="at", last=2)[1]["n"].to_pylist() == [0, 1, 2]
    assert take(tmp_path, "all.parquet", None, time="at")[1].num_rows == 5


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()], ids=str)
def test_dates_are_times_too(tmp_path: Path, kind: pa.DataType) -> None:
    days = pa.array([date(2024, 1, 31), date(2024, 2, 1), date(2024, 3, 1)], kind)
    toy.write(pa.table({"at": days, "n": [0, 1, 2]}), tmp_path / "all.parquet")
    assert take(tmp_path, "all.parquet", time="at")[1]["n"].to_pylist() == [1]


def test_a_time_column_must_be_there_and_hold_times(tmp_path: Path) -> None:
    toy.write(pa.table({"at": ["yesterday"]}), tmp_path / "all.parquet")
    with pytest.raises(SchemaError, match=r"'when' \(data.time\).*allowed: at"):
        take(tmp_path, "all.parquet", time="when")
    with pytest.raises(SchemaError, match="'at' holds string"):
        take(tmp_path, "all.parquet", time="at")


def test_a_failed_extraction_leaves_whole_windows_only(tmp_path: Path) -> None:
    toy.months(tmp_path, ["2024-01"])
    (tmp_path / "data" / "2024-02.parquet").write_bytes(b"PAR1")
    with pytest.raises(MlopsError):
        take(tmp_path, last=2)
    (left,) = [file for file in (tmp_path / "store").rglob("*") if file.is_file()]
    assert str(left) == take(tmp_path, month="2024-01")[0].uri


def test_a_folder_of_partitions_has_their_columns(tmp_path: Path) -> None:
    for month, shop, day, value in (("2024-01", "1", "2024-01-05", 1), ("2024-02", "2", "2024-02-05", 2)):
        toy.write(pa.table({"x": [value]}), tmp_path / f"data/month={month}/shop={shop}/day={day}/part-0.parquet")
    toy.write(pa.table({"x": [3]}), tmp_path / "data/month=2024-02/shop=__HIVE_DEFAULT_PARTITION__/a%20b=c/x.parquet")
    table = take(tmp_path, "data/", None)[1]
    assert table.select(["x", "month", "shop", "day"]).to_pylist() == [
        {"x": 1, "month": "2024-01", "shop": 1, "day": date(2024, 1, 5)},
        {"x": 2, "month": "2024-02", "shop": 2, "day": date(2024, 2, 5)},
        {"x": 3, "month": "2024-02", "shop": None, "day": None},
    ]
    # Only the window's own folder is read.
    (tmp_path / "data/month=2024-01/broken.parquet").write_bytes(b"PAR1")
    assert take(tmp_path, "data/month={window}/")[1]["x"].to_pylist() == [2, 3]
    assert take(tmp_path, "data/month={window}/")[1]["month"].to_pylist() == ["2024-02"] * 2


def test_a_column_of_the_file_goes_before_that_of_its_place(tmp_path: Path) -> None:
    toy.write(pa.table({"month": ["mine"]}), tmp_path / "data/month=2024-02/x.parquet")
    assert take(tmp_path, "data", None)[1].to_pydict() == {"month": ["mine"]}


def test_a_partition_may_be_the_time(tmp_path: Path) -> None:
    for day in ("2024-01-31", "2024-02-01", "2024-02-29", "2024-03-01"):
        toy.write(pa.table({"x": [day]}), tmp_path / f"data/day={day}/x.parquet")
    assert take(tmp_path, "data/", time="day")[1]["x"].to_pylist() == ["2024-02-01", "2024-02-29"]


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("ms", "Europe/Berlin"), pa.date32()], ids=str)
def test_row_groups_outside_the_window_are_not_read(tmp_path: Path, kind: pa.DataType) -> None:
    days = [datetime(2024, month, 10) for month in (1, 2, 3)]
    values = [at.date() for at in days] if pa.types.is_date(kind) else [at.replace(tzinfo=UTC) for at in days]
    values = values if kind == pa.date32() or kind.tz else days
    file = tmp_path / "all.parquet"
    pq.write_table(
        pa.table({"at": pa.array(values, kind), "x": ["one" * 50, "two" * 50, "six" * 50]}),
        file,
        row_group_size=1,
        compression="none",
        use_dictionary=False,
    )
    # A group that is read is looked at as a whole, and this one's page cannot be.
    data = file.read_bytes()
    at = data.index(b"oneone") - 30
    file.write_bytes(data[:at] + b"\xff" * 60 + data[at + 60 :])
    assert take(tmp_path, "all.parquet", time="at")[1]["x"].to_pylist() == ["two" * 50]
    with pytest.raises(DataError):
        take(tmp_path, "all.parquet", month="2024-01", time="at")


def test_equal_rows_have_an_equal_digest_in_whatever_pieces_they_come(tmp_path: Path) -> None:
    rows = pa.table({"x": list(range(200_000))})
    for name, size in (("a", 7_000), ("b", 200_000)):
        (tmp_path / name).mkdir()
        pq.write_table(rows, tmp_path / name / "all.parquet", row_group_size=size)
    first, second = (take(tmp_path / name, "all.parquet", None)[0] for name in ("a", "b"))
    assert first.digest == second.digest
    assert write_table(rows, Store(str(tmp_path / "store"))).digest == first.digest


@pytest.mark.parametrize("late", ["0.5", "true", "2024-01-01", "2024-01-01 10:00:00", "2024-01-01T10:00:00Z", "x", ""])
@pytest.mark.parametrize("early", ["1", "true", "2024-01-01", "10:00:00", "2024-01-01 10:00:00", "0.5", "x", ""])
def test_a_large_csv_has_the_types_that_all_of_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: str, late: str
) -> None:
    monkeypatch.setattr(files, "_CSV_BLOCK", 256)
    text = "n,v\n" + "".join(f"{number},{early}\n" for number in range(100)) + f"100,{late}\n"
    (tmp_path / "a.csv").write_text(text)
    whole = pacsv.read_csv(
        pa.BufferReader(text.encode()),
        convert_options=pacsv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False),
    )
    assert take(tmp_path, "a.csv", None)[0] == write_table(whole, Store(str(tmp_path / "store")))
