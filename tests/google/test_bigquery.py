"""Extraction from BigQuery: types, windows, limits, retries, and what goes wrong."""

from __future__ import annotations

import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pytest

from airflow_mlops.call import ArtifactRef, Call, Store
from airflow_mlops.errors import CloudAccessError, DataError, DataNotFoundError, SchemaError, SourceUnreachableError
from airflow_mlops.spec.stages import Extract
from airflow_mlops.stages import bigquery_errors
from airflow_mlops.stages import extract as stage
from airflow_mlops.stages.extract import extract
from airflow_mlops.stages.tables import read_table
from tests import toy

pytestmark = pytest.mark.filterwarnings("error:::airflow_mlops")


def call(folder: Path, params: Extract, month: str | None, run: str) -> Call:
    return Call(
        pipeline="toy",
        stage="extract",
        run=run,
        window=toy.month(month) if month else None,
        params=params.model_dump(mode="json"),
        store=str(folder / "store"),
    )


def take(
    folder: Path, month: str | None = "2024-02", run: str = "r", *, source: Any = "shop.t", **options: Any
) -> pa.Table:
    store = Store(str(folder / "store"))
    given = {"table": source} if isinstance(source, str) else source
    params = Extract.model_validate({"source": {"connection": "lake", **given}, "grain": "month", **options})
    ref = extract(params, toy.month(month) if month else None, store, call(folder, params, month, run))
    return read_table(ref, store)


def year(count: int = 10) -> pa.Table:
    return pa.concat_tables([toy.rows(f"2024-{number:02}", count) for number in (1, 2, 3)])


def months_of(rows: pa.Table) -> set[str]:
    return {at.strftime("%Y-%m") for at in rows["at"].to_pylist()}


def test_every_type_that_a_model_can_use(bigquery: Any, tmp_path: Path) -> None:
    bigquery.load(
        "shop.t",
        pa.table(
            {
                "i": [1, None],
                "f": [0.5, float("nan")],
                "n": pa.array([Decimal("1.25"), None], pa.decimal128(38, 9)),
                "b": [True, None],
                "s": ["é`\\x", None],
                "y": [b"\x00", None],
                "d": [date(2024, 2, 1), None],
                "t": pa.array([1, None], pa.time64("us")),
                "dt": pa.array([datetime(2024, 2, 1, 12), None], pa.timestamp("us")),
                "ts": pa.array([datetime(2024, 2, 1, 12), None], pa.timestamp("us", "UTC")),
            }
        ),
    )
    rows = take(tmp_path, None)
    kinds = {name: str(rows.schema.field(name).type) for name in rows.column_names}
    assert kinds == {
        "i": "int64",
        "f": "double",
        "n": "double",
        "b": "bool",
        "s": "string",
        "y": "binary",
        "d": "date32[day]",
        "t": "time64[us]",
        "dt": "timestamp[us]",
        "ts": "timestamp[us, tz=UTC]",
    }
    assert rows["n"].to_pylist() == [1.25, None]
    assert rows["s"].to_pylist() == ["é`\\x", None]


@pytest.mark.parametrize(
    ("kind", "cast"),
    [("JSON", "TO_JSON_STRING"), ("GEOGRAPHY", "ST_ASTEXT"), ("STRUCT", "TO_JSON"), ("ARRAY", "TO_JSON")],
)
def test_other_types_are_refused_before_anything_is_paid(bigquery: Any, tmp_path: Path, kind: str, cast: str) -> None:
    value: Any = {"STRUCT": {"a": 1}, "ARRAY": [1]}.get(kind, "x")
    bigquery.load("shop.t", pa.table({"odd": [value]}), odd=kind)
    with pytest.raises(SchemaError, match=rf"'odd' of shop.t .* type {kind}.*{cast}"):
        take(tmp_path, None)
    assert not bigquery.statements


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.date32()])
def test_the_window_is_applied_there(bigquery: Any, tmp_path: Path, kind: pa.DataType) -> None:
    ats = [datetime(2024, 1, 31, 23, 59, 59), datetime(2024, 2, 1), datetime(2024, 2, 29, 23), datetime(2024, 3, 1)]
    bigquery.load(
        "shop.t", pa.table({"at": pa.array(ats, pa.timestamp("us")).cast(kind, safe=False), "i": [1, 2, 3, 4]})
    )
    assert sorted(take(tmp_path, time="at")["i"].to_pylist()) == [2, 3]
    (rows,) = (each for name, each in bigquery.results.items() if name.startswith("_anon"))
    assert rows.num_rows == 2


def test_all_windows_of_a_run_are_one_query_at_one_instant(bigquery: Any, tmp_path: Path) -> None:
    bigquery.load("shop.t", year())
    rows = take(tmp_path, "2024-03", time="at", last=3)
    assert rows.num_rows == 30
    assert len(bigquery.statements) == 1
    bigquery.load("shop.t", toy.rows("2024-03", 3))
    # Each window is a snapshot of its own, so nothing is asked anew.
    assert months_of(take(tmp_path, "2024-02", "another", time="at", last=2)) == {"2024-01", "2024-02"}
    assert len(bigquery.statements) == 1
    assert take(tmp_path, "2024-03", "newer", time="at", snapshots="refresh").num_rows == 3


def test_a_query_names_its_window_itself(bigquery: Any, tmp_path: Path) -> None:
    bigquery.load("shop.t", year())
    query = (
        "SELECT *, ':start' AS `a:end` FROM `shop.t` -- :end\nWHERE `at` >= DATETIME(:start) AND `at` < DATETIME(:end);"
    )
    rows = take(tmp_path, "2024-02", source={"query": query})
    assert months_of(rows) == {"2024-02"}
    assert rows["a:end"][0].as_py() == ":start"
    assert take(tmp_path, "2024-03", "two", source={"query": query}, last=2).num_rows == 20
    with pytest.raises(DataNotFoundError, match="names a window, and the run has none"):
        take(tmp_path, None, source={"query": query})
    with pytest.raises(DataError, match="write :start and :end"):
        take(tmp_path, source={"query": "SELECT * FROM `shop.t` WHERE `at` >= DATETIME(@start)"})


def test_too_many_bytes_are_refused_before_anything_is_paid(
    bigquery: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bigquery.load("shop.t", year(1000))
    source = {"table": "shop.t", "max_bytes": "100KB"}
    with pytest.raises(
        DataError, match=r"would process 1\d\d.*KiB, at most \$0.00 .*allows 97.66KiB; try: .*max_bytes"
    ):
        take(tmp_path, time="at", source=source)
    assert not bigquery.statements
    with caplog.at_level("INFO"):
        take(tmp_path, time="at")
    assert "KiB, at most $0.00 at the list price" in caplog.text
    (asked,) = (
        each.body for each in bigquery.asked if each.method == "POST" and not each.body["configuration"].get("dryRun")
    )
    assert asked["configuration"]["query"]["maximumBytesBilled"] == str(2**40)


def test_a_retry_finds_its_query_again(bigquery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bigquery.load("shop.t", year())
    bigquery.fail("CreateReadSession", (grpc.StatusCode.INTERNAL, "broken"), times=1)
    with pytest.raises(SourceUnreachableError, match="'lake'.*broken"):
        take(tmp_path, time="at")
    bigquery.load("shop.t", toy.rows("2024-02", 99))
    assert take(tmp_path, time="at").num_rows == 10
    assert len(bigquery.statements) == 1


def test_a_query_that_failed_is_asked_again(bigquery: Any, tmp_path: Path) -> None:
    from tests.loopback.bigquery import BigQueryError

    bigquery.load("shop.t", year())
    bigquery.fail("the query", BigQueryError("backendError", 503, "try again"))
    with pytest.raises(SourceUnreachableError, match="try again"):
        take(tmp_path, time="at")
    assert take(tmp_path, time="at").num_rows == 10


def test_a_lost_answer_starts_no_second_query(bigquery: Any, tmp_path: Path) -> None:
    from tests.loopback.bigquery import BigQueryError

    bigquery.load("shop.t", year())
    # The dry runs come first: two of them.
    bigquery.fail("POST", BigQueryError("backendError", 503, "lost"), times=3, after=1)
    assert take(tmp_path, time="at").num_rows == 10
    assert len(bigquery.statements) == 1


def test_a_stream_that_breaks_is_taken_up_where_it_broke(bigquery: Any, tmp_path: Path) -> None:
    bigquery.load("shop.t", toy.rows("2024-02", 9_500))
    bigquery.fail("ReadRows", (grpc.StatusCode.UNAVAILABLE, "moved"), times=6, after=1)
    rows = take(tmp_path, time="at")
    assert sorted(rows["id"].to_pylist()) == sorted(toy.rows("2024-02", 9_500)["id"].to_pylist())


def test_what_does_not_come_back_is_worth_a_retry(
    bigquery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.loopback.bigquery import BigQueryError

    monkeypatch.setattr(bigquery_errors, "PATIENCE", 0.5)
    bigquery.load("shop.t", year())
    bigquery.fail("POST", BigQueryError("backendError", 503, "overloaded"), times=100)
    with pytest.raises(SourceUnreachableError, match="overloaded"):
        take(tmp_path, time="at")
    bigquery.forget()
    bigquery.load("shop.t", year())
    bigquery.fail("ReadRows", (grpc.StatusCode.RESOURCE_EXHAUSTED, "quota of bytes"), times=4)
    with pytest.raises(SourceUnreachableError, match="quota of bytes"):
        take(tmp_path, time="at")
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "http://127.0.0.1:9")
    with pytest.raises(SourceUnreachableError, match="'lake'"):
        take(tmp_path, time="at", run="nobody")


def refusals() -> list[Any]:
    denied = "Access Denied: Table loopback:shop.t: User does not have permission to query table loopback:shop.t"
    jobs = "Access Denied: Project loopback: User does not have bigquery.jobs.create permission in project loopback."
    return [
        ("accessDenied", 403, denied, CloudAccessError, "roles/bigquery.dataViewer"),
        ("accessDenied", 403, jobs, CloudAccessError, "'lake' the role roles/bigquery.jobUser"),
        ("quotaExceeded", 403, "Custom quota exceeded", DataError, "wait until the quota"),
        ("responseTooLarge", 403, "Response too large to return", DataError, "export: true"),
        ("bytesBilledLimitExceeded", 400, "Query exceeded limit", DataError, "max_bytes"),
    ]


@pytest.mark.parametrize(("reason", "code", "words", "kind", "fix"), refusals())
def test_a_refusal_says_what_to_do(
    bigquery: Any, tmp_path: Path, reason: str, code: int, words: str, kind: type[Exception], fix: str
) -> None:
    from tests.loopback.bigquery import BigQueryError

    bigquery.load("shop.t", year())
    bigquery.fail("the query", BigQueryError(reason, code, words))
    with pytest.raises(kind, match=fix) as caught:
        take(tmp_path, time="at")
    assert not caught.value.retryable  # type: ignore[attr-defined]


def test_reading_needs_a_role_of_its_own(bigquery: Any, tmp_path: Path) -> None:
    words = "request failed: the user does not have 'bigquery.readsessions.create' permission for 'projects/loopback'"
    bigquery.load("shop.t", year())
    bigquery.fail("CreateReadSession", (grpc.StatusCode.PERMISSION_DENIED, words))
    with pytest.raises(CloudAccessError, match="roles/bigquery.readSessionUser"):
        take(tmp_path, time="at")


def test_what_is_not_there(bigquery: Any, tmp_path: Path) -> None:
    bigquery.load("shop.t", year())
    with pytest.raises(DataNotFoundError, match=r"Table loopback:shop.gone was not found in location EU.*location"):
        take(tmp_path, source="shop.gone")
    with pytest.raises(DataNotFoundError, match=r"in location US; try: .*data.source.location"):
        take(tmp_path, source={"table": "shop.t", "location": "US"})
    with pytest.raises(SchemaError, match="'nowhere' of shop.t .* is not there; allowed: TIMESTAMP"):
        take(tmp_path, time="nowhere")
    with pytest.raises(SchemaError, match="'amount' of shop.t .* is of BigQuery's type FLOAT"):
        take(tmp_path, time="amount")
    with pytest.raises(DataNotFoundError, match="has no rows in the window 2025-01"):
        take(tmp_path, "2025-01", time="at")
    with pytest.raises(DataError, match=r"refuses the query .*Unrecognized name: nothing.*correct data.source"):
        take(tmp_path, source={"query": "SELECT nothing FROM `shop.t`"})


def test_the_project_is_the_declared_one(bigquery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bigquery.load("shop.t", year())
    take(tmp_path, time="at", source={"table": "shop.t", "project": "who-pays"})
    assert {each.path.split("/")[3] for each in bigquery.asked} == {"who-pays"}
    monkeypatch.setenv(
        "AIRFLOW_CONN_LAKE", json.dumps({"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True}})
    )
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    with pytest.raises(DataError, match="which project"):
        take(tmp_path, time="at", run="another", snapshots="refresh")


def test_large_results_go_through_the_bucket(bigquery: Any, gcs: str, tmp_path: Path) -> None:
    bigquery.load("shop.t", year())
    params = Extract.model_validate(
        {
            "source": {"connection": "lake", "table": "shop.t", "export": True},
            "grain": "month",
            "time": "at",
            "last": 2,
        }
    )
    store = Store(f"{gcs}/mlops")
    ref = extract(params, toy.month("2024-03"), store, call(tmp_path, params, "2024-03", "r"))
    rows = read_table(ref, store)
    assert (rows.num_rows, months_of(rows)) == (20, {"2024-02", "2024-03"})
    assert [each for each in bigquery.statements if "EXPORT DATA" in each and "FOR SYSTEM_TIME AS OF" in each]
    assert not bigquery.sent or bigquery.sent < 1000
    assert store.names("exports") == []
    with pytest.raises(DataError, match="declare google.bucket"):
        take(tmp_path, time="at", source={"table": "shop.t", "export": True})


def test_memory_is_bounded(bigquery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_mlops.stages import bigquery_rows

    bigquery.load("shop.t", toy.rows("2024-02", 60_000))
    held: list[int] = []
    plain = bigquery_rows.queue.Queue

    class Counted(plain):  # type: ignore[misc,valid-type]
        def get(self, *args: Any, **options: Any) -> Any:
            held.append(self.qsize())
            return super().get(*args, **options)

    monkeypatch.setattr(bigquery_rows.queue, "Queue", Counted)
    assert take(tmp_path, time="at").num_rows == 60_000
    assert max(held) <= 8


def test_a_consumer_that_stops_ends_the_readers(bigquery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    bigquery.load("shop.t", toy.rows("2024-02", 60_000))

    def broken(*_: Any, **__: Any) -> ArtifactRef:
        next(iter(_[0]))
        raise OSError(28, "full")

    before = threading.active_count()
    monkeypatch.setattr(stage, "write_tables", broken)
    with pytest.raises(OSError, match="full"):
        take(tmp_path, time="at")
    assert threading.active_count() <= before + 16
