"""Registration: the logged model becomes a version of the registered model, once. Only the registry is spoken to."""

from __future__ import annotations

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.spec.stages import Register
from airflow_mlops.stages.outcome import outcome_of


def run(call: Call, params: Register, store: Store) -> Outcome:
    """Register the model; output ``version``, which a model of equal content may have had before."""
    model = call.input("model")
    registry = ModelRegistry.of(call, store)
    run_id = registry.run_of_model(model.uri)
    tags = {"mlops.pipeline": call.pipeline, "mlops.window": call.window.key if call.window else "all"}
    version = registry.register(model.uri, run_id, model.digest, tags)
    ref = ArtifactRef(uri=f"models:/{version.model}/{version.version}", digest=model.digest, kind="model_version")
    return outcome_of(
        call,
        outputs={"version": ref},
        info={"version": version.version, "run_id": run_id, "mlflow_url": registry.run_url(run_id)},
    )


def version_of(ref: ArtifactRef) -> str:
    """The version that a reference of kind ``model_version`` names."""
    return ref.uri.rpartition("/")[2]
