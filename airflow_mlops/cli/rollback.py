"""``airflow-mlops rollback``: the same stage as in the DAG ``NAME.rollback``, for whoever is at a terminal."""

from __future__ import annotations

import argparse
import getpass
import uuid
from datetime import UTC, datetime

from airflow_mlops.call.dispatch import run
from airflow_mlops.call.wire import Call
from airflow_mlops.cli.where import registry_in, require_model, store_of
from airflow_mlops.spec.stages import Rollback


def roll_back(options: argparse.Namespace) -> int:
    """Put an earlier champion back, and say what follows from it.

    Raises:
        RegistryError: when there is nothing to go back to, or it cannot be.
    """
    store = store_of(options, options.model)
    require_model(store, options.model)
    params = Rollback(version=options.to, reason=options.reason, by=getpass.getuser())
    with registry_in(options, options.model) as registry:
        outcome = run(
            Call(
                pipeline=options.model,
                stage=Rollback.stage,
                run=f"cli/rollback-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
                params=params.model_dump(mode="json"),
                store=store.root,
                registry=registry,
            )
        )
    for reason in outcome.verdict.reasons:
        print(f"{options.model}: {reason}")
    return 0
