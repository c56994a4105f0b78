"""Toy data and toy runs: monthly Parquet files, a declaration beside them, and its plans run over Calls."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from airflow_mlops.call import ArtifactRef, Call, Outcome, RegistryRef, Store
from airflow_mlops.call.code import snapshot
from airflow_mlops.call.dispatch import run
from airflow_mlops.call.store import digest_of_file
from airflow_mlops.errors import ModelNotFoundError
from airflow_mlops.registry import ModelRegistry
from airflow_mlops.spec import Declaration, Node, Window, load_declarations, monitor_node, predict_plan, train_plan
from airflow_mlops.spec.pipeline import Pipeline
from airflow_mlops.spec.plan import callables_of
from airflow_mlops.spec.window import parse_key

MONTHS = ("2024-01", "2024-02", "2024-03")
ESTIMATOR = "sklearn.linear_model.LogisticRegression"


class World(NamedTuple):
    """Where a test's runs happen."""

    folder: Path
    store: str
    registry: RegistryRef


class Trained(NamedTuple):
    """A training up to its evaluation. Worlds may share it: each registers and promotes the model as its own."""

    world: World
    window: str
    outcomes: dict[str, Outcome]


def rows(month: str, count: int = 400, *, seed: int | None = None, shift: float = 0.0) -> pa.Table:
    """Rows of one month: ``id``, ``at``, ``amount``, ``age`` (some nulls), ``region`` (some nulls), ``member``, ``y``.

    ``y`` follows ``amount`` and ``region``, so a model has something to learn; ``shift`` moves ``amount`` alone.
    """
    start = pd.Timestamp(f"{month}-01")
    random = np.random.default_rng(int(start.timestamp()) // 86_400 if seed is None else seed)
    amount = random.normal(size=count)
    region = random.choice(["east", "north", "west"], count, p=[0.5, 0.3, 0.2])
    logit = 2.0 * amount + 1.5 * (region == "north")
    frame = pd.DataFrame(
        {
            "id": [f"{month}/{index:05d}" for index in range(count)],
            "at": start + pd.to_timedelta(np.sort(random.integers(0, 28 * 86_400, count)), unit="s"),
            "amount": amount + shift,
            "age": np.where(random.random(count) < 0.1, np.nan, random.integers(18, 80, count)),
            "region": np.where(random.random(count) < 0.05, None, region),
            "member": random.random(count) < 0.5,
            "y": (random.random(count) < 1 / (1 + np.exp(-logit))).astype("int64"),
        }
    )
    kinds = [pa.string(), pa.timestamp("us"), pa.float64(), pa.float64(), pa.string(), pa.bool_(), pa.int64()]
    schema = pa.schema(list(zip(frame.columns, kinds, strict=True)))
    return pa.Table.from_pandas(frame, schema, preserve_index=False).replace_schema_metadata(None)


def write(table: pa.Table, file: Path) -> Path:
    """Write a table as Parquet; a sensor that looks meanwhile sees all of it, or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f".{file.name}.half")
    pq.write_table(table, half)
    return half.replace(file)


def months(folder: Path, keys: Iterable[str] = MONTHS, count: int = 400, **options: Any) -> None:
    """Write a file ``data/MONTH.parquet`` for each month."""
    for key in keys:
        write(rows(key, count, **options), folder / "data" / f"{key}.parquet")


def package(folder: Path, name: str, source: str) -> None:
    """Write a user's package with its code in ``features.py``."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "__init__.py").touch()
    (folder / name / "features.py").write_text(source)


def declare(folder: Path, name: str = "toy", **sections: Any) -> Declaration:
    """Write a small declaration into the folder and load it; ``sections`` are merged into its own."""
    body: dict[str, Any] = {
        "name": name,
        "schedule": "@monthly",
        "data": {"source": "data/{window}.parquet", "target": "y", "time": "at", "key": "id"},
        "train": {"estimator": ESTIMATOR},
        "evaluate": {"plots": False},
        # Months pass in seconds here.
        "retrain": {"cooldown": "0s", "max_per_week": None},
    }
    for section, value in sections.items():
        merged = isinstance(value, dict) and isinstance(body.get(section), dict)
        body[section] = {**body[section], **value} if merged else value
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(body, sort_keys=False))
    return load_declarations(file)[0]


def registry_ref(uri: str, name: str) -> RegistryRef:
    """The registry of one model, at a tracking URI."""
    return RegistryRef(uri=uri, model=name, experiment=name)


def registry_of(store: str, registry: RegistryRef) -> ModelRegistry:
    """The registry with its ledger, to look at."""
    return ModelRegistry(registry, Store(store))


def month(key: str | Window) -> Window:
    """The window of a month, or the window itself."""
    return parse_key("month", key) if isinstance(key, str) else key


def call_of(
    declaration: Declaration,
    node: Node,
    outcomes: dict[str, Outcome],
    window: str | Window,
    run_id: str,
    store: str,
    registry: RegistryRef,
    code: ArtifactRef | None = None,
) -> Call:
    """The Call of one node of a plan, with its inputs taken from what came before."""
    params = node.params.resolved(declaration.base)
    return Call(
        pipeline=declaration.pipeline.name,
        stage=node.stage,
        run=run_id,
        window=month(window),
        inputs={name: outcomes[stage].outputs[output] for name, (stage, output) in node.inputs.items()},
        params=params.model_dump(mode="json", by_alias=True),
        code=code if params.callables() else None,
        store=store,
        registry=registry,
    )


def _run(
    nodes: Iterable[Node],
    declaration: Declaration,
    window: str | Window,
    run_id: str,
    store: str,
    registry: RegistryRef,
    until: str | None = None,
) -> dict[str, Outcome]:
    nodes = tuple(nodes)
    code = snapshot(callables_of(nodes, declaration.base), declaration.base, Store(store))
    outcomes: dict[str, Outcome] = {}
    for node in nodes:
        outcomes[node.stage] = run(call_of(declaration, node, outcomes, window, run_id, store, registry, code))
        if node.stage == until or (node.stage == "validate_model" and not outcomes[node.stage].verdict.passed):
            break
    return outcomes


def next_call(
    declaration: Declaration,
    stage: str,
    outcomes: dict[str, Outcome],
    window: str | Window,
    run: str,
    store: str,
    registry: RegistryRef,
) -> Call:
    """The Call of one stage of the train plan, after the stages before it."""
    nodes = train_plan(declaration.pipeline)
    code = snapshot(callables_of(nodes, declaration.base), declaration.base, Store(store))
    node = next(node for node in nodes if node.stage == stage)
    return call_of(declaration, node, outcomes, window, run, store, registry, code)


def run_plan(
    declaration: Declaration,
    window: str | Window,
    run: str,
    store: str,
    registry: RegistryRef,
    *,
    until: str | None = None,
) -> dict[str, Outcome]:
    """Train: run the stages up to promotion, to ``until``, or to a gate that says no; the Outcomes by stage."""
    plan = train_plan(declaration.pipeline)
    return _run(plan, declaration, window, run, store, registry, until)


def train(world: World, window: str, **sections: Any) -> Trained:
    """Train a toy and evaluate it, against no champion."""
    declaration = declare(world.folder, world.registry.model, **sections)
    outcomes = run_plan(declaration, window, f"{window}-trained", world.store, world.registry, until="evaluate")
    return Trained(world, window, outcomes)


def adopt(world: World, trained: Trained, declaration: Declaration, *, until: str = "promote") -> dict[str, Outcome]:
    """Register, judge and promote another world's training as this world's own, by what is declared here."""
    if not Path(world.store).exists():
        shutil.copytree(trained.world.store, world.store)
    outcomes = dict(trained.outcomes)
    for stage in ("register", "validate_model", "promote"):
        call = next_call(declaration, stage, outcomes, trained.window, trained.window, world.store, world.registry)
        outcomes[stage] = run(call)
        if stage == until:
            break
    return outcomes


def run_predict(
    declaration: Declaration, window: str | Window, run: str, store: str, registry: RegistryRef
) -> dict[str, Outcome]:
    """Run the stages from raw rows to predictions."""
    plan = predict_plan(declaration.pipeline)
    return _run(plan, declaration, window, run, store, registry)


def run_monitor(
    declaration: Declaration,
    window: str | Window,
    run: str,
    store: str,
    registry: RegistryRef,
    node_of: Callable[[Pipeline], Node | None] = monitor_node,
) -> Outcome:
    """Judge one window, by one of the sensors' stages."""
    node = node_of(declaration.pipeline)
    assert node is not None
    return _run([node], declaration, window, run, store, registry)[node.stage]


def state_of(world: World) -> dict[str, Any]:
    """All that a run may change for others: versions, aliases, the ledger, predictions, and the source's files."""
    registry = registry_of(world.store, world.registry)
    entries = registry.ledger.entries()
    aliases = registry.api.aliases(world.registry.model)
    versions = []
    while True:
        try:
            versions.append(registry.api.version(world.registry.model, str(len(versions) + 1)))
        except ModelNotFoundError:
            break
    kept = [*(world.folder / "data").rglob("*"), *Path(world.store, "predictions").rglob("*")]
    files = {str(file): digest_of_file(file) for file in sorted(kept) if file.is_file()}
    return {"ledger": entries, "aliases": aliases, "versions": versions, "files": files}


def make_version(world: World, digest: str, run_id: str = "by-hand") -> ArtifactRef:
    """Register a version without training anything: a logged model with nothing in it."""
    from mlflow import MlflowClient

    registry = registry_of(world.store, world.registry)
    call = Call(pipeline="toy", stage="register", run=run_id, store=world.store, registry=world.registry)
    mlflow_run = registry.run_of(call)
    client = MlflowClient(world.registry.uri, world.registry.uri)
    logged = client.create_logged_model(
        registry.api.experiment_id(world.registry.experiment), name="model", source_run_id=mlflow_run
    )
    client.finalize_logged_model(logged.model_id, "READY")
    version = registry.register(logged.model_uri, mlflow_run, digest, {})
    return ArtifactRef(uri=f"models:/{version.model}/{version.version}", digest=digest, kind="model_version")


def make_promotion(
    world: World, version: ArtifactRef, champion: str | None, run_id: str = "by-hand", **decision: Any
) -> Call:
    """The Call that promotes a version which its gate judged against a champion, by no limit at all."""
    store = Store(world.store)
    evidence = {"model": version.digest, "champion": champion, "primary": "roc_auc", "metrics": {"roc_auc": 0.8}}
    body = {
        "status": "ok",
        "reasons": ["it is better"],
        "model": version.digest,
        "champion": champion,
        "metrics": {"roc_auc": 0.8},
        "evaluation": store.put_json(evidence, "evaluation").digest,
        "params": {"versus_champion": None},
        **decision,
    }
    gate = store.put_json(body, "decision")
    return Call(
        pipeline="toy",
        stage="promote",
        run=run_id,
        inputs={"version": version, "decision": gate},
        store=world.store,
        registry=world.registry,
    )


def start(code: str, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """Run code in a Python process of its own; its standard output is read by `finish`."""
    root = str(Path(__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd or root,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 120) -> Any:
    """What a process printed as JSON in its last line."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def race(code: str, store: Path, contestants: list[tuple[str, ...]]) -> list[Any]:
    """Run code in a process for each contestant, all let go at once; what each of them printed.

    The code is given the store and the contestant's own arguments, and calls ``ready(NAME)`` before what it races for.
    """
    store.mkdir(exist_ok=True)
    (store / "go").unlink(missing_ok=True)
    processes = [start(_STARTING_LINE + code, str(store), *arguments) for arguments in contestants]
    while not all((store / f"ready-{arguments[0]}").exists() for arguments in contestants):
        time.sleep(0.01)
        for process in processes:
            if process.poll() is not None:
                finish(process)
    (store / "go").touch()
    return [finish(process) for process in processes]


_STARTING_LINE = """
import sys, time
from pathlib import Path
def ready(name):
    Path(sys.argv[1], f"ready-{name}").touch()
    while not Path(sys.argv[1], "go").exists():
        time.sleep(0.001)
"""
