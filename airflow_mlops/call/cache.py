"""Never twice: what a stage came to is found again by the content of all that it depends on.

A key is the digest of named components: the params that matter, the digests of inputs and of source files, the user's
code file by file, the versions of the libraries, and this package's own source. No path, no time and no run is part of
it. An entry keeps its components, so a miss is explained by the component that changed. Nothing heavy is loaded here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from airflow_mlops.call.key import ITSELF, components_of, key_of, outside_of, registry_of
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome, Wire
from airflow_mlops.errors import MlopsError, RegistryUnreachableError, StoreError, StoreUnreachableError
from airflow_mlops.spec.stages import StageParams, ValidateData

log = logging.getLogger(__name__)

FOLDER = "cache"
CACHED = frozenset({"extract", "validate_data", "prepare", "tune", "train", "evaluate"})
"""Stages whose outcome follows from their key. The others change something and are idempotent: they always run."""

INFO = "cache"
"""Where an Outcome's info says why it was or was not computed."""

_NEAREST = 20
_SHOWN = 3
_LONGEST = 60


class Entry(Wire):
    """What is kept of a stage that was done."""

    version: Literal[1] = 1
    """The version of this form."""
    key: str
    """The digest of the components."""
    pipeline: str
    """The pipeline it was done for."""
    run: str
    """The run that did it."""
    at: datetime
    """When, in UTC."""
    components: dict[str, str]
    """All that the outcome depends on, by name."""
    outcome: Outcome
    """What it came to."""


class Looked(NamedTuple):
    """What a look into the cache has found."""

    components: dict[str, str]
    """What the key is made of."""
    reason: str
    """``hit: ...`` or ``miss: ...``, in plain words."""
    outcome: Outcome | None = None
    """The earlier outcome, as that of the Call at hand."""
    damaged: tuple[ArtifactRef, ...] = ()
    """Artifacts that are there and are not what their digests say."""
    stamp: str = ""
    """How the outside stood when it was looked at."""


def look(call: Call, params: StageParams, store: Store) -> Looked | None:
    """Look for what an equal Call has come to; nothing is changed. None where the stage is not cached.

    Raises:
        MlopsError: when the store or the registry cannot be asked.
    """
    if not call.cache or call.stage not in CACHED:
        return None
    if isinstance(params, ValidateData) and params.needs_registry:
        # Rows that are held against the champion are held against the one of the moment.
        return None
    outside = outside_of(call, params, store)
    if outside is None:
        return None
    components = {**components_of(call, params, store), **outside.components}
    found = _read(store, call, f"{key_of(components)}.json")
    if found is None:
        return Looked(components, f"miss: {_why(call, components, outside.labels, store)}", stamp=outside.stamp)
    lost, damaged = _unusable(call, found.outcome, store)
    if lost:
        return Looked(components, f"miss: {lost}", None, damaged, outside.stamp)
    reason = f"hit: same code, params, inputs and libraries as run {found.run} of {found.at:%Y-%m-%d %H:%M}"
    outcome = found.outcome.model_copy(
        update={
            "identity": call.identity,
            "call_digest": call.digest,
            "run": call.run,
            "window": call.window,
            "outputs": {name: _here(ref, store) for name, ref in found.outcome.outputs.items()},
            "info": {**found.outcome.info, INFO: reason},
        }
    )
    return Looked(components, reason, outcome, stamp=outside.stamp)


def keep(looked: Looked, call: Call, params: StageParams, outcome: Outcome, store: Store) -> Outcome:
    """Keep what a stage came to after a miss; return it with the reason of the miss.

    Where what lies outside the Call has changed in the meantime, nothing is kept: nobody knows which state was read.
    """
    outcome = outcome.model_copy(update={"info": {**outcome.info, INFO: looked.reason}})
    outside = outside_of(call, params, store)
    if outside is None or outside.stamp != looked.stamp:
        log.warning("%s: not kept for later runs: what it has read changed meanwhile", call.where)
        return outcome
    _write(store, call, looked.components, outcome)
    if call.stage == "evaluate" and looked.components["champion"] != ITSELF:
        # Once the model is the champion it needs no comparison, so this evaluation serves whoever it was made against.
        _write(store, call, {**looked.components, "champion": ITSELF}, outcome)
    return outcome


def entries(store: Store, pipeline: str | None = None) -> Iterator[tuple[str, Entry]]:
    """Every entry that can be read, with its stage."""
    for name in [pipeline] if pipeline else store.names(FOLDER):
        for stage in store.names(FOLDER, name):
            for file in store.names(FOLDER, name, stage):
                entry = _parse(store, FOLDER, name, stage, file)
                if entry is not None:
                    yield stage, entry


def _place(call: Call) -> tuple[str, str, str]:
    return FOLDER, call.pipeline, call.stage


def _read(store: Store, call: Call, name: str) -> Entry | None:
    return _parse(store, *_place(call), name)


def _parse(store: Store, *place: str) -> Entry | None:
    """An entry, or None where there is none or it cannot be read."""
    try:
        value = store.read_json(*place)
        entry = None if value is None else Entry.model_validate(value)
    except StoreUnreachableError:
        raise
    except (StoreError, ValidationError, UnicodeDecodeError) as error:
        log.warning("the cache entry %s cannot be read and counts as missing: %s", store.uri(*place), error)
        return None
    if entry is not None and f"{key_of(entry.components)}.json" != place[-1]:
        log.warning("the cache entry %s is not the one that its name says; it counts as missing", store.uri(*place))
        return None
    return entry


def _write(store: Store, call: Call, components: dict[str, str], outcome: Outcome) -> None:
    entry = Entry(
        key=key_of(components),
        pipeline=call.pipeline,
        run=call.run,
        at=datetime.now(UTC).replace(microsecond=0),
        components=components,
        outcome=outcome,
    )
    # Of two workers with one key both have computed the same: the later entry replaces the earlier, whole.
    with store.scratch(".json") as file:
        file.write_text(entry.model_dump_json(indent=1), encoding="utf-8")
        store.replace_file(file, *_place(call), f"{entry.key}.json")


def _here(ref: ArtifactRef, store: Store) -> ArtifactRef:
    """The reference in this store, wherever the store lay when it was made."""
    place = store.ref(ref.kind, ref.digest, Path(ref.uri).suffix).uri
    inside = "/".join(place.split("/")[-4:])
    return ref.model_copy(update={"uri": place}) if ref.uri.endswith(f"/{inside}") else ref


def _unusable(call: Call, outcome: Outcome, store: Store) -> tuple[str, tuple[ArtifactRef, ...]]:
    """Why an earlier outcome cannot be used, or an empty text; and the artifacts to be made anew."""
    for name, kept in outcome.outputs.items():
        ref = _here(kept, store)
        if ref.uri.startswith("models:/"):
            try:
                registry_of(call, store).run_of_model(ref.uri)
            except RegistryUnreachableError:
                raise
            except MlopsError as error:
                return f"its {name} is lost: {error}", ()
            continue
        try:
            if store.local:
                store.fetch(ref)
            elif not store.has(ref):
                return f"its {name} is lost: {ref.uri} is not there", ()
        except StoreUnreachableError:
            raise
        except StoreError as error:
            there = store.has(ref)
            return f"its {name} is {'damaged' if there else 'lost'}: {error}", (ref,) if there else ()
    return "", ()


def _why(call: Call, components: dict[str, str], labels: Mapping[str, str], store: Store) -> str:
    """What is different from the nearest of the pipeline's newest entries of the stage."""
    names = store.newest(_NEAREST, *_place(call))
    earlier = [entry for name in names if (entry := _read(store, call, name)) is not None]
    # An evaluation that is kept for two champions as well tells most by the one it was made against.
    earlier = [entry for entry in earlier if entry.components.get("champion") != ITSELF] or earlier
    if not earlier:
        return f"{call.pipeline!r} has nothing kept of this stage yet"
    nearest = min(earlier, key=lambda entry: len(_different(entry.components, components)))
    changes = [
        _change(name, nearest.components.get(name), components.get(name), labels)
        for name in _different(nearest.components, components)
    ]
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return f"{'; '.join(changes[:_SHOWN])}{more} (since run {nearest.run} of {nearest.at:%Y-%m-%d %H:%M})"


def _different(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _change(name: str, before: str | None, now: str | None, labels: Mapping[str, str]) -> str:
    kind, _, what = name.partition(" ")
    if kind == "code":
        return f"code {'is new' if before is None else 'is gone' if now is None else 'changed'}: {what}"
    if name == "airflow_mlops":
        return "airflow_mlops itself changed"
    if kind == "source" and before and now and json.loads(before)[1] == json.loads(now)[1]:
        return f"{labels.get(name, name)} is read for other times or in another form"
    if kind in ("source", "input"):
        what = labels.get(name, name)
        return f"{what} {'is new' if before is None else 'is gone' if now is None else 'has other content'}"
    if before is None or now is None:
        return f"{name} is {'new: ' + _short(now) if before is None else 'gone; it was ' + _short(before)}"
    return f"{name} changed from {_short(before)} to {_short(now)}"


def _short(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
