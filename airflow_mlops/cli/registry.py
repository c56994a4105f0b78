"""``airflow-mlops registry``: whether MLflow says what the ledger says, and a champion copied to another registry."""

from __future__ import annotations

import argparse
import getpass
import json
from typing import Any

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import RegistryRef
from airflow_mlops.cli.where import declared, known_models, registry_in, require_model, store_of
from airflow_mlops.registry.check import differences, repair
from airflow_mlops.registry.mirror import mirror_of
from airflow_mlops.registry.models import ModelRegistry


def check(options: argparse.Namespace) -> int:
    """Hold MLflow, and the mirror where there is one, against the ledger of one model, or of all.

    With ``--repair`` both are made to follow.

    Returns:
        0 when nothing differs, or everything that did was put right; else 1.
    """
    store, pipeline = store_of(options, options.model), declared(options, options.model)
    wanted = pipeline.name if pipeline else options.model
    if wanted:
        require_model(store, wanted)
    told: dict[str, dict[str, list[Any]]] = {}
    left = 0
    for model in [wanted] if wanted else known_models(store):
        with registry_in(options, model) as ref:
            registry = ModelRegistry(ref, store)
            mirror = mirror_of(registry, store)
            found = differences(registry, mirror)
            repaired = options.repair and any(each.repairable for each in found)
            if repaired:
                repair(registry, mirror)
            still = differences(registry, mirror) if repaired else found
        left += len(still)
        told[model] = {
            "differences": [each._asdict() for each in still],
            "repaired": [each.what for each in found if each not in still],
        }
    if options.json:
        print(json.dumps(told, indent=2))
        return 1 if left else 0
    for model, each in told.items():
        if not each["differences"] and not each["repaired"]:
            print(f"{model}: MLflow says what the ledger says")
        for what in each["repaired"]:
            print(f"{model}: put right: {what}")
        for difference in each["differences"]:
            print(f"{model}: {difference['what']}; try: {difference['fix']}")
    if not told:
        print(f"{store.root} has no ledger")
    return 1 if left else 0


def copy(options: argparse.Namespace) -> int:
    """Copy a model's champion into another registry, as a candidate for the gate there."""
    from airflow_mlops.call.dispatch import stage_module

    sides = []
    for store, uri in ((options.from_store, options.from_registry), (options.to_store, options.to_registry)):
        sides.append(ModelRegistry(RegistryRef(uri=uri, model=options.model, experiment=options.model), Store(store)))
    require_model(Store(options.from_store), options.model)
    version, entry = stage_module("copy_model").copy_champion(*sides, by=options.by or getpass.getuser())
    print(f"{options.model}: version {version.version} at {options.to_registry}\n  digest   {entry.model}")
    print(f"  ledger   entry {entry.number}: {entry.told}; {'; '.join(entry.reasons)}")
    return 0
