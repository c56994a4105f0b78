"""Whether the registry is what the ledger says: the chain of its entries, the aliases, and the versions themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from airflow_mlops.errors import ModelNotFoundError
from airflow_mlops.registry.ledger import MOVES, Entry, titles
from airflow_mlops.registry.mirror import Mirror
from airflow_mlops.registry.models import MODEL_DIGEST_TAG, ModelRegistry


class Difference(NamedTuple):
    """One thing that is not as the ledger says."""

    what: str
    """What it is."""
    fix: str
    """What to do about it."""
    repairable: bool = False
    """Whether `repair` puts it right."""


def differences(registry: ModelRegistry, mirror: Mirror | None = None) -> list[Difference]:
    """What differs; empty where the ledger's chain is whole, and MLflow and the mirror follow it."""
    entries = registry.ledger.entries()
    mirrored = [Difference(*each) for each in mirror.differences()] if mirror else []
    return [*_chain(entries), *_aliases(registry), *_versions(registry, entries), *mirrored]


def repair(registry: ModelRegistry, mirror: Mirror | None = None) -> None:
    """Put right what can be."""
    registry.project()
    if mirror is not None:
        mirror.project()


def _chain(entries: Sequence[Entry]) -> Iterator[Difference]:
    """Every entry starts from the champion that the one before it has left."""
    champion = None
    for place, entry in enumerate(entries, start=1):
        after = entry.version if entry.kind in MOVES else champion
        if (entry.number, entry.champion_before, entry.champion_after) != (place, champion, after):
            yield Difference(
                f"entry {place} of the ledger says champion {entry.champion_before or 'none'} -> "
                f"{entry.champion_after or 'none'}, and what came before it gives {champion or 'none'} -> "
                f"{after or 'none'}",
                "put back the ledger's files from a backup: nothing here ever changes one",
            )
        champion = entry.champion_after


def _aliases(registry: ModelRegistry) -> Iterator[Difference]:
    model = registry.ref.model
    there, wanted = registry.api.aliases(model), registry.ledger.aliases()
    for alias, version in wanted.items():
        if there.get(alias) != version:
            yield Difference(
                f"the alias {alias!r} names {there.get(alias) or 'no version'}, and the ledger {version or 'none'}",
                f"airflow-mlops registry check {model} --repair",
                repairable=True,
            )
    if wanted["champion"] is not None and there.get("challenger") == wanted["champion"]:
        yield Difference(
            f"the alias 'challenger' names version {wanted['champion']}, which is the champion",
            f"airflow-mlops registry check {model} --repair",
            repairable=True,
        )


def _versions(registry: ModelRegistry, entries: Sequence[Entry]) -> Iterator[Difference]:
    """The versions that serve or that a rollback may put back are there, and are the models that were promoted."""
    model, held = registry.ref.model, titles(entries)
    digests = {entry.version: entry.model for entry in entries if entry.kind in MOVES}
    for version in dict.fromkeys(reversed(held)):
        champion = version == held[-1]
        fix = f"airflow-mlops rollback {model} --reason TEXT" if champion else "roll back past it with --to VERSION"
        try:
            there = registry.api.version(model, version).tags.get(MODEL_DIGEST_TAG)
        except ModelNotFoundError:
            yield Difference(f"version {version} was promoted and is gone from MLflow", fix)
            continue
        if digests[version] is not None and there != digests[version]:
            yield Difference(
                f"version {version} is model {there or 'unknown'} in MLflow, and the ledger has {digests[version]}",
                fix,
            )
