"""Where a source's windows lie, told from file names alone."""

from __future__ import annotations

import hashlib
import threading
import uuid
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, get_args

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_mlops.call.source import files_of, fingerprint, partitions_of, windows_of
from airflow_mlops.errors import StoreUnreachableError
from airflow_mlops.spec import Window
from airflow_mlops.spec.window import Grain, parse_key, window_at
from tests.conftest import free_port


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def put(root: str, *names: str) -> None:
    for name in names:
        with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as file:
            file.write(b"x")


def month(key: str) -> Window:
    return parse_key("month", key)


def names(root: str, files: list[str]) -> list[str]:
    """Files without their root, which fsspec writes in more than one way."""
    return [file.partition(root.removeprefix("memory://").strip("/") + "/")[2] for file in files]


def test_the_file_of_a_window(root: str) -> None:
    put(root, "2013-01.parquet", "2013-02.parquet")
    (file,) = files_of(root + "/{window}.parquet", month("2013-02"))
    assert names(root, [file]) == ["2013-02.parquet"]
    with fsspec.open(file, "rb") as opened:
        assert opened.read() == b"x"
    assert files_of(root + "/{window}.parquet", month("2013-03")) == []


def test_a_star_matches_within_a_folder(root: str) -> None:
    put(root, "2013-01/b.csv", "2013-01/a.csv", "2013-01/a.txt", "2013-01/deep/c.csv", "2013-02/d.csv")
    assert names(root, files_of(root + "/{window}/*.csv", month("2013-01"))) == ["2013-01/a.csv", "2013-01/b.csv"]
    assert files_of(root + "/{window}/*.csv", month("2013-03")) == []


def test_a_source_without_windows_has_the_same_files_for_each(root: str) -> None:
    put(root, "all.csv")
    assert files_of(root + "/all.csv", None) == files_of(root + "/all.csv", month("2013-01")) != []


def test_a_file_that_arrives_later_is_seen(root: str) -> None:
    source = root + "/{window}.csv"
    put(root, "2013-01.csv")
    assert [window.key for window in windows_of(source, "month")] == ["2013-01"]
    put(root, "2013-02.csv")
    assert len(files_of(source, month("2013-02"))) == 1
    assert [window.key for window in windows_of(source, "month")] == ["2013-01", "2013-02"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(get_args(Grain)), st.sets(st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)), max_size=5))
def test_the_windows_that_are_there_come_oldest_first(tmp_path: Path, grain: Grain, at: set[datetime]) -> None:
    root = tmp_path / uuid.uuid4().hex
    windows = sorted({window_at(grain, each.replace(tzinfo=UTC)) for each in at})
    put(str(root), "readme.parquet", *(f"{window.key}.parquet" for window in windows))
    assert windows_of(f"{root}/{{window}}.parquet", grain) == windows


def test_names_that_only_look_like_windows_are_passed_over(root: str) -> None:
    put(
        root,
        "2013-01.csv",
        "2013-13.csv",
        "2013.csv",
        "2013-01-05.csv",
        "2013-02.csv.part",
        "x2013-03.csv",
        "notes.csv",
    )
    assert [window.key for window in windows_of(root + "/{window}.csv", "month")] == ["2013-01"]


@pytest.mark.parametrize(
    "source", ["/{window}/rows.csv", "/{window}/*.csv", "/{window}/rows-{window}.csv", "/*/rows-{window}.csv"]
)
def test_windows_stand_anywhere_in_a_path(root: str, source: str) -> None:
    for key in ("2013-02", "2013-01"):
        put(root, f"{key}/rows.csv", f"{key}/rows-{key}.csv")
    put(root, "2013-04/rows-2013-05.txt", "2013-06.csv")
    assert [window.key for window in windows_of(root + source, "month")] == ["2013-01", "2013-02"]


def test_a_window_that_stands_twice_is_the_same_twice(root: str) -> None:
    put(root, "2013-01/2013-02.csv")
    assert windows_of(root + "/{window}/{window}.csv", "month") == []


def test_a_folder_that_is_not_there_has_no_windows(root: str) -> None:
    assert windows_of(root + "/nowhere/{window}.csv", "month") == []


def test_a_folder_may_have_any_name(root: str) -> None:
    put(root, "a+b (1).c/2013-01.csv")
    source = root + "/a+b (1).c/{window}.csv"
    assert windows_of(source, "month") == [month("2013-01")]
    assert len(files_of(source, month("2013-01"))) == 1


def test_a_server_that_does_not_answer_is_worth_a_retry() -> None:
    source = f"ftp://127.0.0.1:{free_port()}/{{window}}.csv"
    with pytest.raises(StoreUnreachableError):
        windows_of(source, "month")
    with pytest.raises(StoreUnreachableError):
        files_of(source, month("2013-01"))


def test_a_folder_has_the_data_files_in_it(root: str) -> None:
    put(root, "f/month=2013-01/a.parquet", "f/month=2013-01/deep/b.csv.gz", "f/month=2013-02/a.parquet")
    put(root, "f/_delta_log/x.parquet", "f/month=2013-01/.hidden.parquet", "f/month=2013-01/_SUCCESS", "f/README.md")
    january = ["month=2013-01/a.parquet", "month=2013-01/deep/b.csv.gz"]
    for source in (root + "/f", root + "/f/"):
        assert names(root + "/f", files_of(source, None)) == [*january, "month=2013-02/a.parquet"]
    assert names(root + "/f", files_of(root + "/f/month={window}/", month("2013-01"))) == january
    assert files_of(root + "/f/month={window}/", month("2013-03")) == []
    assert [each.key for each in windows_of(root + "/f/month={window}/", "month")] == ["2013-01", "2013-02"]


def test_a_folder_gives_columns_by_its_place(root: str) -> None:
    put(root, "k=0/f/month=2013-01/shop=a%20b/x.parquet", "k=0/f/none/x.parquet", "k=0/f/month=2013-01/rows.txt")
    folder = f"{root}/k=0/f"
    first, second = files_of(folder, None)
    for source in (folder, folder + "/", folder + "/month={window}", folder + "/month={window}/"):
        assert partitions_of(source, first) == {"month": "2013-01", "shop": "a b"}
    assert partitions_of(folder, second) == {}
    # A file that is named itself, or matched, stays as it is.
    for source in ("/month={window}/shop=a%20b/x.parquet", "/month={window}/*/*", "/month=2013-01/rows.txt"):
        assert all(partitions_of(folder + source, file) == {} for file in files_of(folder + source, month("2013-01")))


def test_a_fingerprint_is_of_content_and_not_of_places(root: str) -> None:
    january, february = month("2013-01"), month("2013-02")
    for name, data in (("a/2013-01.csv", b"1"), ("a/2013-02.csv", b"2"), ("b/2013-02.csv", b"1")):
        with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as file:
            file.write(data)
    source = root + "/a/{window}.csv"
    one = fingerprint(source, [january])
    assert one == fingerprint(root + "/b/{window}.csv", [february]) == fingerprint(root + "/a/2013-01.csv", [])
    assert len({one, fingerprint(source, [february]), fingerprint(source, [january, february])}) == 3
    # The time and the size stay what they were.
    with fsspec.open(root + "/a/2013-01.csv", "wb") as file:
        file.write(b"3")
    assert fingerprint(source, [january]) != one


def test_a_fingerprint_knows_partitions(root: str) -> None:
    put(root, "f/month=2013-01/x.parquet", "g/month=2013-02/x.parquet", "h/month=2013-01/y.parquet")
    assert fingerprint(root + "/f", []) == fingerprint(root + "/h", []) != fingerprint(root + "/g", [])


class Tagged(MemoryFileSystem):
    """An object store that knows what its objects hold, and of which nothing need be read to tell."""

    protocol = "tagged"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    key = "ETag"

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().info(path, **options)
        if found["type"] == "file":
            found[self.key] = hashlib.md5(self.cat_file(path), usedforsecurity=False).hexdigest()
        return found

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        assert "w" in mode, "a fingerprint reads no object"
        return super().open(path, mode, **options)

    def cat_file(self, path: str, *_: Any, **__: Any) -> bytes:
        return bytes(self.store[self._strip_protocol(path)].getvalue())


@pytest.mark.parametrize("key", ["md5Hash", "ETag", "etag"])
def test_an_object_store_s_own_word_for_content_is_taken(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    fsspec.register_implementation("tagged", Tagged, clobber=True)
    monkeypatch.setattr(Tagged, "key", key)
    root = f"tagged://{uuid.uuid4().hex}"
    put(root, "a/2013-01.csv", "b/2013-01.csv")
    january = [month("2013-01")]
    one = fingerprint(root + "/a/{window}.csv", january)
    assert one == fingerprint(root + "/b/{window}.csv", january)
    with fsspec.open(f"{root}/a/2013-01.csv", "wb") as file:
        file.write(b"y")
    assert fingerprint(root + "/a/{window}.csv", january) != one


def test_a_web_server_s_etag_is_not_taken_for_content(tmp_path: Path) -> None:
    class Server(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            self.send_header("ETag", '"the same time and size"')
            super().end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        source = f"http://127.0.0.1:{server.server_port}/rows.csv"
        (tmp_path / "rows.csv").write_text("1")
        one = fingerprint(source, [])
        (tmp_path / "rows.csv").write_text("2")
        assert fingerprint(source, []) != one
    finally:
        server.shutdown()
        server.server_close()
