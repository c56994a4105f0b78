"""What a key of the cache is made of: all that an outcome depends on, as named texts, by content."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fsspec.core import url_to_fs

from airflow_mlops.call.code import split_path
from airflow_mlops.call.source import content_of, files_of, partitions_of
from airflow_mlops.call.store import Store, reaching
from airflow_mlops.call.wire import ArtifactRef, Call, digest_of
from airflow_mlops.spec.data_schema import DataSchema
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.stages import Extract, StageParams, ValidateData
from airflow_mlops.spec.window import Window, last_windows

_LIBRARIES = ("numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "mlflow", "skops", "optuna", "pandera")
_OWN = ("spec", "call", "drift", "registry", "stages")
_MODULES = {"sklearn": "scikit-learn", "yaml": "PyYAML", "PIL": "pillow", "dateutil": "python-dateutil"}
ITSELF = "the model itself"
"""The champion, for an evaluation that has nothing to compare with: it is the very model."""


def key_of(components: Mapping[str, str]) -> str:
    """The key that components make."""
    return digest_of(dict(components))[7:39]


def components_of(call: Call, params: StageParams, store: Store) -> dict[str, str]:
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


class Outside(NamedTuple):
    """What a stage depends on that is not in its Call."""

    components: Mapping[str, str] = MappingProxyType({})
    labels: Mapping[str, str] = MappingProxyType({})
    stamp: str = ""


def outside_of(call: Call, params: StageParams, store: Store) -> Outside | None:
    """What a stage reads besides its inputs; None where that cannot be told by its content."""
    if isinstance(params, Extract):
        return _source(params, call.window)
    if call.stage == "evaluate" and call.registry:
        champion = registry_of(call, store).champion()
        if champion is None:
            said = "none"
        elif champion.tags.get("mlops.model_digest") == call.input("model").digest:
            said = ITSELF
        else:
            said = f"version {champion.version}"
        return Outside({"champion": said}, {}, said)
    if isinstance(params, ValidateData) and isinstance(params.data_schema, DataSchema) and params.data_schema.freshness:
        return Outside({"window's end": call.window.end.isoformat() if call.window else "none"})
    return Outside()


def _source(params: Extract, window: Window | None) -> Outside | None:
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
    return Outside(components, labels, " ".join(stamps)) if components else None


def _form(file: str, declared: str | None) -> str:
    """How a file is read: its format, and for texts what the name says of delimiter and packing."""
    name = file.lower()
    csv = declared == "csv" if declared else name.removesuffix(".gz").endswith((".csv", ".tsv"))
    return f"csv{' tabs' if '.tsv' in name else ''} {name.rpartition('.')[2]}" if csv else "parquet"


def registry_of(call: Call, store: Store) -> Any:
    """The registry that a Call names, as a `ModelRegistry`."""
    # The registry stands above this layer; only a Call that names one gets here.
    return import_module("airflow_mlops.registry.models").ModelRegistry.of(call, store)
