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

    def entries(self) -> list[dict[str, Any]]:
        """Every entry, oldest first."""
        found: list[dict[str, Any]] = []
        for name in self.store.names(*self.place):
            if name.endswith(".json"):
                entry = self.store.read_json(*self.place, name)
                if entry is None:
                    raise StoreError(f"{self.store.uri(*self.place, name)} was removed", fix="restore it from a backup")
                found.append(entry)
        return found

    def append(self, number: int, entry: dict[str, Any]) -> bool:
        """Create entry ``number`` unless somebody has; say whether it was created."""
        return self.store.create_json(entry, *self.place, f"{number:08d}.json")
