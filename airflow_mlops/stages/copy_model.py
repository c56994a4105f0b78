"""A champion goes from one registry to another: its model, all that was logged with it, and where it came from."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mlflow
from mlflow.models import Model as LoggedModel

from airflow_mlops.errors import RegistryError, RegistryUnreachableError
from airflow_mlops.registry.files import FACTS
from airflow_mlops.registry.ledger import Entry
from airflow_mlops.registry.mlflow_api import Version, pointed_at
from airflow_mlops.registry.models import MODEL_DIGEST_TAG, NOTE_TAG, RUN_TAG, ModelRegistry
from airflow_mlops.stages.model_io import fetch_model, read_facts

COPIED_TAG = "mlops.copied_from"


def copy_champion(source: ModelRegistry, target: ModelRegistry, *, by: str) -> tuple[Version, Entry]:
    """Register the champion of one registry in another, where it is a candidate for the gate and no more.

    The digest is checked before and after. A model that is there already, copied or trained there, is not copied again.

    Args:
        source: where the champion is taken from.
        target: where it goes.
        by: who copies it.

    Returns:
        The version there, and the ledger's entry there that says where it came from.

    Raises:
        ModelNotFoundError: when there is no champion, or its model is gone.
        StoreError: when a file is not what its digest says, here or there.
        RegistryError: when the champion is not the model that was promoted.
    """
    champion, promotion = source.need_champion(), source.ledger.promotion()
    digest = champion.tags.get(MODEL_DIGEST_TAG)
    if digest is None or (promotion and promotion.model not in (None, digest)):
        raise RegistryError(
            f"version {champion.version} of {champion.model!r} is not the model that was promoted",
            fix=f"airflow-mlops registry check {champion.model} tells what differs",
        )
    origin = f"{source.ref.uri}: {champion.model} version {champion.version}"
    found = target.api.versions_tagged(target.ref.model, MODEL_DIGEST_TAG, digest)
    version = found[0] if found else _copied(source, target, champion, digest, origin)
    with tempfile.TemporaryDirectory() as folder:
        facts = read_facts(target.api, version.run_id)
        fetch_model(facts.model_copy(update={"model_digest": digest}), Path(folder), target.api)
    if version.version != target.ledger.champion():
        target.set_challenger(version.version)
    entry = target.ledger.record(
        "arrival",
        version=version.version,
        champion_before=target.ledger.champion(),
        reasons=(f"the champion of {origin}, with the same digest",),
        run=f"copy/{digest.removeprefix('sha256:')[:16]}",
        by=by,
        model=digest,
        window=promotion.window if promotion else None,
    )
    return version, entry


def _copied(source: ModelRegistry, target: ModelRegistry, champion: Version, digest: str, origin: str) -> Version:
    """Log a copy of a version's run and model, and register it."""
    logged = source.api.logged(champion.run_id)
    with tempfile.TemporaryDirectory() as folder:
        facts = read_facts(source.api, champion.run_id)
        if facts.model_digest != digest:
            raise RegistryError(f"{origin} is tagged {digest}, and its run logged {facts.model_digest}")
        model, _ = fetch_model(facts, _made(folder, "model"), source.api)
        with pointed_at(source.ref.uri):
            where = {"run_id": champion.run_id, "artifact_path": str(Path(FACTS).parent)}
            beside = Path(mlflow.artifacts.download_artifacts(**where, dst_path=str(_made(folder, "beside"))))
        experiment = target.api.experiment_id(target.ref.experiment)
        identity = f"copy/{digest}"
        run_id = target.api.find_run(experiment, RUN_TAG, identity)
        run_id = run_id or target.api.create_run(experiment, f"copy of {origin}", {RUN_TAG: identity})
        try:
            with pointed_at(target.ref.uri):
                client = mlflow.MlflowClient()
                made = client.create_logged_model(experiment, name="model", source_run_id=run_id)
                about = LoggedModel.load(str(model))
                about.run_id, about.model_id = run_id, made.model_id
                about.save(str(model / "MLmodel"))
                client.log_model_artifacts(made.model_id, str(model))
                client.finalize_logged_model(made.model_id, "READY")
                there = facts.model_copy(update={"model_uri": f"models:/{made.model_id}"})
                (beside / Path(FACTS).name).write_text(there.model_dump_json(indent=1))
                client.log_artifacts(run_id, str(beside), str(Path(FACTS).parent))
        except (OSError, mlflow.exceptions.MlflowException) as error:
            raise RegistryUnreachableError(f"MLflow at {target.ref.uri} does not take the copy: {error}") from error
    own = {name: value for name, value in logged.tags.items() if name.startswith("mlops.") and name != RUN_TAG}
    note = f"Copied from `{origin}`. The gate here has not spoken yet."
    tags = {**own, COPIED_TAG: origin, NOTE_TAG: note}
    target.api.log(run_id, metrics=logged.metrics, params=logged.params, tags=tags)
    target.api.end_run(run_id, "FINISHED")
    kept = {name: value for name, value in champion.tags.items() if name in ("mlops.pipeline", "mlops.window")}
    return target.register(there.model_uri, run_id, digest, {**kept, COPIED_TAG: origin})


def _made(folder: str, name: str) -> Path:
    made = Path(folder, name)
    made.mkdir()
    return made
