"""An append-only log in the store: entry N is created only if absent, so every writer sees every earlier entry."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from airflow_mlops.call.store import Store
from airflow_mlops.errors import StoreError

_AT_ONCE = 16
_NAME = re.compile(r"\d{8}\.json")


class AppendLog:
    """The entries of one folder, numbered from 1 without a gap.

    Whoever appends names the number it expects to write. Two writers that read the same state name the same number, and
    exactly one of them succeeds; the other reads again and decides anew. That is the whole compare-and-set.
    """

    def __init__(self, store: Store, *place: str) -> None:
        self.store, self.place = store, place
        self._read: list[dict[str, Any]] = []

    def entries(self) -> list[dict[str, Any]]:
        """Every entry, oldest first. An entry never changes, so each is read once.

        Raises:
            StoreError: when one was removed.
        """
        newest = max((int(name[:-5]) for name in self.store.names(*self.place) if _NAME.fullmatch(name)), default=0)
        # A folder that is listed while others write may lack a name that comes before one that it has.
        unread = [_name(number) for number in range(len(self._read) + 1, newest + 1)]
        found: Iterable[Any] = map(self._entry, unread)
        if unread and not self.store.local:
            # An object store takes its time for each file: it is asked for many at once.
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                found = list(pool.map(self._entry, unread))
        for name, entry in zip(unread, found, strict=True):
            if entry is None:
                raise StoreError(f"{self.store.uri(*self.place, name)} was removed", fix="restore it from a backup")
            self._read.append(entry)
        return list(self._read)

    def _entry(self, name: str) -> Any:
        try:
            return self.store.read_json(*self.place, name)
        except StoreError as error:
            if error.retryable:
                raise
            # Removed it would be missed as well.
            raise StoreError(error.what, where=error.where, fix="restore it from a backup") from error

    def append(self, number: int, entry: dict[str, Any]) -> bool:
        """Create entry ``number`` unless somebody has; say whether it was created."""
        return self.store.create_json(entry, *self.place, _name(number))


def _name(number: int) -> str:
    return f"{number:08d}.json"
