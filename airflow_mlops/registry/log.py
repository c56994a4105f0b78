"""An append-only log in the store: entry N is created only if absent, so every writer sees every earlier entry."""

from __future__ import annotations

from typing import Any

from airflow_mlops.call.store import Store
from airflow_mlops.errors import StoreError


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
        names = [name for name in self.store.names(*self.place) if name.endswith(".json")]
        for number, name in enumerate(names, 1):
            if name != _name(number):
                raise StoreError(f"{self.store.uri(*self.place, _name(number))} was removed", fix=_FIX)
            if number > len(self._read):
                entry = self.store.read_json(*self.place, name)
                if entry is None:
                    raise StoreError(f"{self.store.uri(*self.place, name)} was removed", fix=_FIX)
                self._read.append(entry)
        return list(self._read)

    def append(self, number: int, entry: dict[str, Any]) -> bool:
        """Create entry ``number`` unless somebody has; say whether it was created."""
        return self.store.create_json(entry, *self.place, _name(number))


_FIX = "restore it from a backup"


def _name(number: int) -> str:
    return f"{number:08d}.json"
