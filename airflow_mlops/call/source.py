"""Where a source's windows lie, and what they hold by content: no row is read, so triggers and first tasks can look."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import unquote

import fsspec
from fsspec.core import url_to_fs

from airflow_mlops.call.store import age_of, reaching
from airflow_mlops.call.wire import digest_of
from airflow_mlops.errors import DataNotFoundError
from airflow_mlops.spec.window import Grain, Window, key_pattern, parse_key

_DATA_FILE = re.compile(r"\.(parquet|pq|csv|tsv)(\.gz)?$", re.IGNORECASE)
_BLOCK = 1 << 20


def files_of(source: str, window: Window | None) -> list[str]:
    """The files of a window that are there, as URIs, sorted.

    ``*`` in the source matches within a folder. Of a folder these are the Parquet and CSV files at any depth; what
    starts with ``_`` or ``.`` is left out, as every tool that reads partitioned data does.
    """
    uri = _in_window(source, window)
    with reaching(uri):
        fs, path = url_to_fs(uri)
        fs.invalidate_cache()
        found = sorted(fs.glob(path)) if "*" in path else [path] if fs.exists(path) else []
        files = [file for each in found for file in (_inside(fs, each) if fs.isdir(each) else [each])]
        return [fs.unstrip_protocol(file) for file in files]


def _in_window(source: str, window: Window | None) -> str:
    return source.replace("{window}", window.key) if window else source


def _inside(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    root = folder.rstrip("/") + "/"
    return [
        file
        for file in sorted(fs.find(folder))
        if _DATA_FILE.search(file) and not any(part[:1] in ("_", ".") for part in file.removeprefix(root).split("/"))
    ]


def partitions_of(source: str, file: str) -> dict[str, str]:
    """The columns that a file of a folder has by its place: ``{"month": "2013-01"}`` for ``month=2013-01/a.parquet``.

    Only a source that is a folder gives columns, and only by what lies below its fixed part.
    """
    if "*" in source or _DATA_FILE.search(source):
        return {}
    fixed, placeholder, _ = source.partition("{window}")
    with reaching(source):
        _, root = url_to_fs(fixed.rpartition("/")[0] if placeholder else source)
        _, path = url_to_fs(file)
    below = root.rstrip("/") + "/"
    if not path.startswith(below):
        return {}
    parts = (folder.partition("=") for folder in path.removeprefix(below).split("/")[:-1])
    return {name: unquote(value) for name, sign, value in parts if name and sign}


def windows_of(source: str, grain: Grain) -> list[Window]:
    """The windows of a source with ``{window}`` whose files are there, oldest first."""
    with reaching(source):
        fs, path = url_to_fs(source)
        fs.invalidate_cache()
        path = path.rstrip("/")
        pattern = _pattern(path, grain)
        found = (re.fullmatch(pattern, name.rstrip("/")) for name in fs.glob(path.replace("{window}", "*")))
        keys = {match["key"] for match in found if match}
    windows = []
    for key in keys:
        with suppress(DataNotFoundError):  # a name such as 2013-13, which only looks like a month
            windows.append(parse_key(grain, key))
    return sorted(windows)


def _pattern(path: str, grain: Grain) -> str:
    pattern = re.escape(path).replace(r"\{window\}", f"(?P<key>{key_pattern(grain)})", 1)
    return pattern.replace(r"\{window\}", "(?P=key)").replace(r"\*", "[^/]*")


def window_of_file(source: str, file: str, grain: Grain | None) -> Window | None:
    """The window that a file of a source belongs to, by names alone: nothing is looked for.

    Args:
        source: the source, as a whole URI.
        file: the file's URI.
        grain: what ``{window}`` steps by. None: the source has no windows, and so none is given.

    Raises:
        DataNotFoundError: when it is no file of the source.
    """
    path = source.rstrip("/")
    below = "" if _DATA_FILE.search(path) else "(?:/.*)?"
    found = re.fullmatch(f"{_pattern(path, grain or 'day')}(?P<below>{below})", file)
    if found is None or any(part[:1] in ("_", ".") for part in found["below"].split("/")):
        raise DataNotFoundError(f"{file} is no file of {source}")
    return parse_key(grain, found["key"]) if grain and "{window}" in path else None


def stamp_of(source: str, window: Window | None) -> str | None:
    """A word for the state of a window's files, by what their file system says of them; None where there are none.

    Nothing is read, so it is cheap, and a file that was written again has another one even with the same content.
    """
    files = files_of(source, window)
    if not files:
        return None
    told = []
    for file in files:
        with reaching(file):
            fs, path = url_to_fs(file)
            info = fs.info(path)
        tag = next((str(info[name]) for name in ("ETag", "etag", "md5Hash") if info.get(name)), None)
        told.append([file, info.get("size"), tag or age_of(info)])
    return digest_of(told)[7:23]


def written_at(file: str) -> float:
    """When a file was last written, in seconds since 1970, as its file system tells."""
    with reaching(file):
        fs, path = url_to_fs(file)
        fs.invalidate_cache()
        return age_of(fs.info(path))


def fingerprint(source: str, windows: Sequence[Window]) -> str:
    """The digest of what the files of these windows hold (of all files, where the source has no ``{window}``).

    Equal content gives an equal digest under any path, and a changed file another one.
    """
    each = windows if "{window}" in source else (None,)
    return files_fingerprint(source, [file for window in each for file in files_of(source, window)])


def files_fingerprint(source: str, files: Sequence[str]) -> str:
    """The digest of what these files of a source hold, in their order."""
    return digest_of([[content_of(file), partitions_of(source, file)] for file in files])


def content_of(uri: str) -> str:
    """A file's content in short: what the object store knows of it, or else its digest."""
    with reaching(uri):
        fs, path = url_to_fs(uri)
        info = fs.info(path)
        # A web server makes its ETag of a file's time and size, an object store of what it holds.
        for known in () if uri.startswith(("http://", "https://")) else ("md5Hash", "ETag", "etag"):
            if info.get(known):
                return f"{known}:{info[known]}"
        digest = hashlib.sha256()
        with fs.open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return "sha256:" + digest.hexdigest()
