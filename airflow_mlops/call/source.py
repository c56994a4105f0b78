"""Where a source's windows lie: file names only, so that a trigger or a first task can look without reading data."""

from __future__ import annotations

import re
from contextlib import suppress

from fsspec.core import url_to_fs

from airflow_mlops.call.store import reaching
from airflow_mlops.errors import DataNotFoundError
from airflow_mlops.spec.window import Grain, Window, key_pattern, parse_key


def files_of(source: str, window: Window | None) -> list[str]:
    """The files of a window that are there, as URIs, sorted; ``*`` in the source matches within a folder."""
    uri = source.replace("{window}", window.key) if window else source
    with reaching(uri):
        fs, path = url_to_fs(uri)
        fs.invalidate_cache()
        if "*" in path:
            return [fs.unstrip_protocol(found) for found in sorted(fs.glob(path))]
        return [fs.unstrip_protocol(path)] if fs.exists(path) else []


def windows_of(source: str, grain: Grain) -> list[Window]:
    """The windows of a source with ``{window}`` whose files are there, oldest first."""
    with reaching(source):
        fs, path = url_to_fs(source)
        fs.invalidate_cache()
        pattern = re.escape(path).replace(r"\{window\}", f"(?P<key>{key_pattern(grain)})", 1)
        pattern = pattern.replace(r"\{window\}", "(?P=key)").replace(r"\*", "[^/]*")
        found = (re.fullmatch(pattern, name) for name in fs.glob(path.replace("{window}", "*")))
        keys = {match["key"] for match in found if match}
    windows = []
    for key in keys:
        with suppress(DataNotFoundError):  # a name such as 2013-13, which only looks like a month
            windows.append(parse_key(grain, key))
    return sorted(windows)
