"""The ledger: which version is the champion, since when, by what decision, and what was before.

MLflow's aliases have no history and no compare-and-set. So the truth is here, and aliases are a projection of it that
can be made again at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from airflow_mlops.call.store import Store
from airflow_mlops.errors import ModelNotFoundError, PromotionConflictError
from airflow_mlops.registry.log import AppendLog

Kind = Literal["promotion", "rejection", "approval", "trial", "withdrawal", "deployment", "rollback", "arrival"]
"""What an entry tells.

``promotion`` and ``rollback`` move the champion. ``approval`` is a person's yes, and ``rejection`` the gate's or a
person's no. ``trial`` gives a candidate traffic beside the champion, until a ``withdrawal`` or the next move ends it.
``deployment`` says that what serves was seen to follow. ``arrival`` says that a version was copied here from another
registry, and from which: it is no more than a candidate for the gate here.
"""
MOVES = frozenset({"promotion", "rollback"})
"""What moves the champion."""
_AGAINST = MOVES | {"trial"}
"""What was decided against a champion, and is void when that is no longer the champion."""
_DECISIONS = MOVES | {"rejection"}


class Entry(BaseModel):
    """One line of the ledger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """Its place, from 1."""
    kind: Kind
    """What it tells."""
    version: str
    """The version that it is about."""
    model: str | None = None
    """The digest of that version's model. Nothing is served whose digest is not here."""
    champion_before: str | None = None
    """The champion that the decision was made against."""
    champion_after: str | None = None
    """The champion from here on."""
    decision: str | None = None
    """The digest of the verdict that it follows: the gate's, a trial's; None where a person decided."""
    reasons: tuple[str, ...]
    """The decision in plain words."""
    requests: tuple[str, ...] = ()
    """The retrain requests that led here."""
    run: str
    """The run that wrote it."""
    by: str | None = None
    """The person who decided; None where no person did."""
    share: int | None = None
    """Of a trial: how many of a hundred requests the candidate answers; 0 where its answers are only compared."""
    target: str | None = None
    """Of a trial and of a deployment: where it is served."""
    until: datetime | None = None
    """Of a trial: when it ends by itself, should the run that watches it be lost."""
    window: str | None = None
    """The window that the version's training ended with."""
    card: str | None = None
    """Where the version's model card is."""
    at: datetime
    """When, in UTC."""

    @property
    def told(self) -> str:
        """What it did, in words."""
        if self.kind in MOVES:
            return f"version {self.version}: champion {self.champion_before or 'none'} -> {self.champion_after}"
        stays = f"champion {self.champion_after} stays" if self.champion_after else "there is no champion still"
        said = {
            "rejection": f"version {self.version} was turned away: {stays}",
            "approval": f"version {self.version} was approved of: {stays}",
            "trial": f"version {self.version} answers {self.share}% of the requests beside champion "
            f"{self.champion_after}"
            if self.share
            else f"version {self.version} is compared with champion {self.champion_after} in its shadow",
            "withdrawal": f"version {self.version} is on trial no more: {stays}",
            "deployment": f"version {self.version} is served by {self.target}",
            "arrival": f"version {self.version} was copied here: {stays}",
        }
        return said[self.kind]


class Traffic(NamedTuple):
    """Who answers."""

    entry: int
    """The number of the entry that it follows from; 0 before there is one."""
    champion: str | None
    """The version that answers."""
    candidate: str | None = None
    """The version on trial."""
    share: int = 0
    """How many of a hundred requests the candidate answers; 0: it is asked too, and its answers are only compared."""


class Ledger:
    """The ledger of one model, for whoever wants to read it: ``Ledger(Store(URI), MODEL).entries()``.

    The store is that of ``[airflow_mlops] store``, or of ``airflow-mlops run``. Nothing else is needed: the ledger asks
    neither Airflow nor MLflow.

    Args:
        store: the artifact store.
        model: the model's name, which is its pipeline's.
    """

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
        return next((e for e in reversed(entries) if e.kind in MOVES and e.champion_after == champion), None)

    def previous(self) -> str | None:
        """The version that a rollback puts back, or None."""
        return _previous(self.entries())

    def taken_away(self, model: str) -> Entry | None:
        """The rollback that took the title from a model, if that is the last that happened to it; else None.

        Args:
            model: the digest of the model.
        """
        versions: set[str] = set()
        before: list[str] = []
        found: Entry | None = None
        for entry, held in _titles(self.entries()):
            if entry.model == model and entry.kind in _AGAINST:
                versions.add(entry.version)
            if entry.champion_after in versions:
                found = None
            elif entry.kind == "rollback" and versions & (set(before) - set(held)):
                found = entry
            before = held
        return found

    def decided(self) -> Entry | None:
        """The last decision about a model: a promotion, a rejection or a rollback."""
        return next((each for each in reversed(self.entries()) if each.kind in _DECISIONS), None)

    def aliases(self) -> dict[str, str | None]:
        """What MLflow's aliases should say: ``champion`` and ``previous``, of one and the same moment."""
        entries = self.entries()
        return {"champion": _champion(entries), "previous": _previous(entries)}

    def traffic(self) -> Traffic:
        """Who answers from now on."""
        entries = self.entries()
        champion = _champion(entries)
        for entry in reversed(entries):
            if entry.kind == "trial" and (entry.until is None or datetime.now(UTC) < entry.until):
                return Traffic(len(entries), champion, entry.version, entry.share or 0)
            if entry.kind in MOVES or entry.kind in ("trial", "withdrawal"):
                break
        return Traffic(len(entries), champion)

    def digest(self, version: str) -> str:
        """The digest of the model that a version was when it was decided about.

        Raises:
            ModelNotFoundError: when the ledger knows no such version, so that nobody may serve it.
        """
        for entry in reversed(self.entries()):
            if entry.version == version and entry.model and entry.kind in _AGAINST:
                return entry.model
        raise ModelNotFoundError(
            f"the ledger of {self.model!r} does not know version {version}",
            allowed="versions that were promoted or put on trial",
            fix=f"airflow-mlops history {self.model}, to see which they are",
        )

    def record(
        self,
        kind: Kind,
        *,
        version: str,
        champion_before: str | None,
        reasons: tuple[str, ...],
        run: str,
        decision: str | None = None,
        model: str | None = None,
        requests: tuple[str, ...] = (),
        by: str | None = None,
        share: int | None = None,
        target: str | None = None,
        until: datetime | None = None,
        window: str | None = None,
        card: str | None = None,
    ) -> Entry:
        """Append a decision, once.

        The same decision on the same version by the same run is found and returned, so a retry adds nothing.

        Raises:
            PromotionConflictError: when a promotion, a trial or a rollback names a champion that is no longer it.
        """
        while True:
            entries = self.entries()
            for entry in entries:
                if (entry.kind, entry.version, entry.decision, entry.run) == (kind, version, decision, run):
                    return entry
            champion = _champion(entries)
            if kind in _AGAINST and champion != champion_before:
                raise _conflict(self.model, kind, version, champion_before, champion)
            entry = Entry(
                number=len(entries) + 1,
                kind=kind,
                version=version,
                model=model,
                champion_before=champion,
                champion_after=version if kind in MOVES else champion,
                decision=decision,
                reasons=reasons,
                requests=requests,
                run=run,
                by=by,
                share=share,
                target=target,
                until=until,
                window=window,
                card=card,
                at=datetime.now(UTC),
            )
            if self._log.append(entry.number, entry.model_dump(mode="json", exclude_none=True)):
                return entry


def titles(entries: Sequence[Entry]) -> list[str]:
    """The champions that rollbacks step back through, the present one last.

    A promotion adds one. A rollback takes away what came after the version that it puts back, so that two in a row go
    back two steps. One that goes forward again, to a version that was promoted after the champion, adds it; any other
    takes the place of the champion.
    """
    return [[], *(held for _, held in _titles(entries))][-1]


def _titles(entries: Iterable[Entry]) -> Iterator[tuple[Entry, list[str]]]:
    """Each entry, with the titles after it."""
    held: list[str] = []
    promoted: dict[str, int] = {}
    for entry in entries:
        if entry.kind == "promotion":
            held = [*held, entry.version]
            promoted[entry.version] = entry.number
        elif entry.kind == "rollback":
            earlier = [at for at, version in enumerate(held[:-1]) if version == entry.version]
            if earlier:
                held = held[: earlier[-1] + 1]
            else:
                forward = promoted.get(entry.version, 0) > promoted.get(held[-1], 0)
                held = [*(held if forward else held[:-1]), entry.version]
        yield entry, held


def _conflict(model: str, kind: Kind, version: str, before: str | None, now: str | None) -> PromotionConflictError:
    if kind == "rollback":
        return PromotionConflictError(
            f"champion {before or 'none'} of {model!r} was to give way to version {version}, "
            f"but the champion is now {now or 'none'}",
            fix=f"see what has happened: airflow-mlops history {model}",
        )
    return PromotionConflictError(
        f"version {version} of {model!r} was judged against champion {before or 'none'}, "
        f"but the champion is now {now or 'none'}",
        fix="clear the evaluation, so that the gate judges against the champion of today",
    )


def _champion(entries: Sequence[Entry]) -> str | None:
    return entries[-1].champion_after if entries else None


def _previous(entries: Sequence[Entry]) -> str | None:
    # Promoted once more, a champion is not its own predecessor.
    champion = _champion(entries)
    return next((version for version in reversed(titles(entries)) if version != champion), None)
