"""Never twice: what a stage came to is found again by the content of all that it depends on.

A key is the digest of named components: the params that matter, the digests of inputs and of source files, the user's
code file by file, the versions of the libraries, and this package's own source. No path, no time and no run is part of
it. An entry keeps its components, so a miss is explained by the component that changed. Nothing heavy is loaded here.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import sys
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from fsspec.core import url_to_fs
from pydantic import ValidationError

from airflow_mlops.call.code import split_path
from airflow_mlops.call.source import content_of, files_of, partitions_of
from airflow_mlops.call.store import Store, reaching
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome, Wire, digest_of
from airflow_mlops.errors import MlopsError, RegistryUnreachableError, StoreError, StoreUnreachableError
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.stages import Extract, StageParams
from airflow_mlops.spec.window import Window, last_windows

log = logging.getLogger(__name__)

FOLDER = "cache"
CACHED = frozenset({"extract", "validate_data", "prepare", "tune", "train", "evaluate"})
"""Stages whose outcome follows from their key. The others change something and are idempotent: they always run."""

INFO = "cache"
"""Where an Outcome's info says why it was or was not computed."""

_LIBRARIES = ("numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "mlflow", "skops", "optuna", "pandera")
_OWN = ("spec", "call", "drift", "registry", "stages")
_MODULES = {"sklearn": "scikit-learn", "yaml": "PyYAML", "PIL": "pillow", "dateutil": "python-dateutil"}
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
    outside = _outside(call, params, store)
    if outside is None:
        return None
    components = {**_components(call, params, store), **outside.components}
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
    outside = _outside(call, params, store)
    if outside is None or outside.stamp != looked.stamp:
        log.warning("%s: not kept for later runs: what it has read changed meanwhile", call.where)
        return outcome
    _write(store, call, looked.components, outcome)
    if call.stage == "evaluate" and looked.components["champion"] != _ITSELF:
        # Once the model is the champion it needs no comparison, so this evaluation serves whoever it was made against.
        _write(store, call, {**looked.components, "champion": _ITSELF}, outcome)
    return outcome


def key_of(components: Mapping[str, str]) -> str:
    """The key that components make."""
    return digest_of(dict(components))[7:39]


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


def _components(call: Call, params: StageParams, store: Store) -> dict[str, str]:
    """What the Call itself says, and what runs it."""
    said = params.model_dump(mode="json", by_alias=True, exclude=set(params.uncached))
    files = code_files(call.code, store) if call.code else {}
    found = {
        "airflow_mlops": _own_source(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        **{f"input {name}": ref.digest for name, ref in call.inputs.items()},
        **{f"code {name}": hashlib.sha256(source).hexdigest() for name, source in files.items()},
        **{f"library {name}": version for name, version in _versions(params, files).items()},
    }
    found |= {f"params.{name}": text for name, text in _flat(said)}
    if call.window and not isinstance(params, Extract):
        found["window"] = call.window.key
    if call.registry and call.stage in ("tune", "train", "evaluate"):
        found["registry"] = f"{call.registry.uri} {call.registry.model} {call.registry.experiment}"
    if "model" in call.inputs:
        # An equal model of another run has another MLflow run, where the evaluation is logged.
        found["logged model"] = call.inputs["model"].uri
    return found


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, each in value.items():
        if isinstance(each, Mapping) and each:
            yield from _flat(each, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(each, sort_keys=True, ensure_ascii=False)


def code_files(code: ArtifactRef, store: Store) -> dict[str, bytes]:
    """The files of a code snapshot."""
    with zipfile.ZipFile(store.fetch(code)) as archive:
        return {name: archive.read(name) for name in sorted(archive.namelist())}


@cache
def _own_source() -> str:
    """The digest of this package's source, as far as stages are made of it."""
    root = Path(__file__).parents[1]
    files = sorted(file for room in _OWN for file in (root / room).rglob("*.py"))
    return digest_of([(file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")) for file in files])


@cache
def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _versions(params: StageParams, files: Mapping[str, bytes]) -> dict[str, str]:
    """The versions of the libraries that stages use, and of those that the user's code imports; none is imported."""
    own = {name.split("/")[0].removesuffix(".py") for name in files}
    modules = {split_path(path)[0].split(".")[0] for path in params.callables()}
    for name, source in files.items():
        if name.endswith(".py"):
            modules |= _imported(source)
    modules -= {*own, *sys.stdlib_module_names, "airflow_mlops"}
    found = {name: _version(name) for name in _LIBRARIES}
    for module in sorted(modules):
        name = _MODULES.get(module, module)
        if _version(name) is None:
            # Reading who brings which module takes time, and most go by their own names.
            name = (_distributions().get(module) or [name])[0]
        found[name] = _version(name)
    return {name: version for name, version in found.items() if version is not None}


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _imported(source: bytes) -> set[str]:
    """The top-level modules that a source file imports."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return set()  # the stage itself says what is wrong with it
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


class _Outside(NamedTuple):
    """What a stage depends on that is not in its Call."""

    components: Mapping[str, str] = MappingProxyType({})
    labels: Mapping[str, str] = MappingProxyType({})
    stamp: str = ""


_ITSELF = "the model itself"


def _outside(call: Call, params: StageParams, store: Store) -> _Outside | None:
    """What a stage reads besides its inputs; None where that cannot be told by its content."""
    if isinstance(params, Extract):
        return _source(params, call.window)
    if call.stage == "evaluate" and call.registry:
        champion = _registry(call, store).champion()
        if champion is None:
            said = "none"
        elif champion.tags.get("mlops.model_digest") == call.input("model").digest:
            said = _ITSELF
        else:
            said = f"version {champion.version}"
        return _Outside({"champion": said}, {}, said)
    return _Outside()


def _source(params: Extract, window: Window | None) -> _Outside | None:
    """The files that an extraction reads, by content, in their order; None where one is missing: it will say so."""
    source = params.source
    if isinstance(source, SqlSource):
        # A database is not asked what it holds: extraction has snapshots of its own, and what follows goes by content.
        return None
    windows = last_windows(params.grain, window, params.last) if window else ()
    components: dict[str, str] = {}
    labels: dict[str, str] = {}
    stamps: list[str] = []
    for part in [(each,) for each in windows] if "{window}" in source else [windows]:
        files = files_of(source, part[-1] if part else None)
        if not files:
            return None
        for file in files:
            name = f"source {len(labels) + 1}"
            labels[name] = file
            said = [_form(file, params.format), content_of(file), *sorted(partitions_of(source, file).items())]
            if params.time and part:
                said.append(f"{part[0].start.isoformat()} to {part[-1].end.isoformat()}")
            components[name] = json.dumps(said)
            with reaching(file):
                fs, path = url_to_fs(file)
                stamps.append(fs.ukey(path))
    return _Outside(components, labels, " ".join(stamps)) if components else None


def _form(file: str, declared: str | None) -> str:
    """How a file is read: its format, and for texts what the name says of delimiter and packing."""
    name = file.lower()
    csv = declared == "csv" if declared else name.removesuffix(".gz").endswith((".csv", ".tsv"))
    return f"csv{' tabs' if '.tsv' in name else ''} {name.rpartition('.')[2]}" if csv else "parquet"


def _registry(call: Call, store: Store) -> Any:
    # The registry stands above this layer; only a Call that names one gets here.
    return import_module("airflow_mlops.registry.models").ModelRegistry.of(call, store)


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
                _registry(call, store).run_of_model(ref.uri)
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
    if kind in ("source", "input"):
        what = labels.get(name, name)
        return f"{what} {'is new' if before is None else 'is gone' if now is None else 'has other content'}"
    if before is None or now is None:
        return f"{name} is {'new: ' + _short(now) if before is None else 'gone; it was ' + _short(before)}"
    return f"{name} changed from {_short(before)} to {_short(now)}"


def _short(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
