"""The ledger: which version is the champion, since when, by what decision, and what was before.

MLflow's aliases have no history and no compare-and-set. So the truth is here, and aliases are a projection of it that
can be made again at any time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from airflow_mlops.call.store import Store
from airflow_mlops.errors import PromotionConflictError
from airflow_mlops.registry.log import AppendLog

Kind = Literal["promotion", "rejection"]
_MOVES = frozenset({"promotion"})


class Entry(BaseModel):
    """One line of the ledger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """Its place, from 1."""
    kind: Kind
    """``promotion`` moves the champion; ``rejection`` does not."""
    version: str
    """The version that the decision is about."""
    champion_before: str | None
    """The champion that the decision was made against."""
    champion_after: str | None
    """The champion from here on."""
    decision: str
    """The digest of the gate's decision."""
    reasons: tuple[str, ...]
    """The decision in plain words."""
    requests: tuple[str, ...] = ()
    """The retrain requests that led here."""
    run: str
    """The run that wrote it."""
    window: str | None = None
    """The window that the version's training ended with."""
    card: str | None = None
    """Where the version's model card is."""
    at: datetime
    """When, in UTC."""


class Ledger:
    """The ledger of one model."""

    def __init__(self, store: Store, model: str) -> None:
        self.model = model
        self._log = AppendLog(store, "ledger", model)

    def entries(self) -> list[Entry]:
        """Every entry, oldest first."""
        return [Entry.model_validate(entry) for entry in self._log.entries()]

    def champion(self) -> str | None:
        """The version that is the champion, or None before the first promotion."""
        return _champion(self.entries())

    def promotion(self) -> Entry | None:
        """The entry that made the champion what it is, or None."""
        entries = self.entries()
        champion = _champion(entries)
        return next((e for e in reversed(entries) if e.kind in _MOVES and e.champion_after == champion), None)

    def previous(self) -> str | None:
        """The champion before this one, or None."""
        return _previous(self.entries())

    def aliases(self) -> dict[str, str | None]:
        """What MLflow's aliases should say: ``champion`` and ``previous``, of one and the same moment."""
        entries = self.entries()
        return {"champion": _champion(entries), "previous": _previous(entries)}

    def record(
        self,
        kind: Kind,
        *,
        version: str,
        champion_before: str | None,
        decision: str,
        reasons: tuple[str, ...],
        run: str,
        requests: tuple[str, ...] = (),
        window: str | None = None,
        card: str | None = None,
    ) -> Entry:
        """Append a decision, once.

        The same decision on the same version by the same run is found and returned, so a retry adds nothing.

        Raises:
            PromotionConflictError: when a promotion names a champion that is no longer the champion.
        """
        while True:
            entries = self.entries()
            for entry in entries:
                if (entry.kind, entry.version, entry.decision, entry.run) == (kind, version, decision, run):
                    return entry
            champion = _champion(entries)
            if kind in _MOVES and champion != champion_before:
                raise PromotionConflictError(
                    f"version {version} of {self.model!r} was judged against champion {champion_before or 'none'}, "
                    f"but the champion is now {champion or 'none'}",
                    fix="clear the evaluation, so that the gate judges against the champion of today",
                )
            entry = Entry(
                number=len(entries) + 1,
                kind=kind,
                version=version,
                champion_before=champion,
                champion_after=version if kind in _MOVES else champion,
                decision=decision,
                reasons=reasons,
                requests=requests,
                run=run,
                window=window,
                card=card,
                at=datetime.now(UTC),
            )
            if self._log.append(entry.number, entry.model_dump(mode="json")):
                return entry


def _champion(entries: list[Entry]) -> str | None:
    return entries[-1].champion_after if entries else None


def _previous(entries: list[Entry]) -> str | None:
    champion = _champion(entries)
    for entry in reversed(entries):
        if entry.champion_after == champion and entry.champion_before not in (None, champion):
            return entry.champion_before
    return None
