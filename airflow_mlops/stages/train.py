"""Training: fit the raw-row pipeline, and log it with all that is needed to use, judge and watch it."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.models import ModelSignature, infer_signature
from mlflow.types.schema import ColSpec, Schema, TensorSpec
from sklearn.base import is_classifier, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline as SklearnPipeline
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from airflow_mlops.call.code import load, split_path, unpack
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome
from airflow_mlops.errors import CodeError, DataError, RegistryError, RegistryUnreachableError
from airflow_mlops.registry.files import FACTS
from airflow_mlops.registry.mlflow_api import pointed_at
from airflow_mlops.registry.models import NOTE_TAG, ModelRegistry
from airflow_mlops.spec.metrics import Task
from airflow_mlops.spec.stages import ModelParams, Train
from airflow_mlops.stages import skops_io
from airflow_mlops.stages.golden import GOLDEN, write_golden
from airflow_mlops.stages.model_io import (
    DECLARATION,
    INPUTS,
    ROWS,
    Facts,
    model_digest,
    trusted_types,
)
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.prepare import call_features
from airflow_mlops.stages.profiles import PROFILE, reference_of
from airflow_mlops.stages.rows import row_hashes
from airflow_mlops.stages.tables import read_table, require_columns, to_frame
from airflow_mlops.stages.team_code import predict, user_code

log = logging.getLogger(__name__)

_EXAMPLE_ROWS = 5
_MAX_CATEGORIES = 50
_TIMES = {"date", "datetime", "time", "timedelta"}


def run(call: Call, params: Train, store: Store) -> Outcome:
    """Train on the rows of ``train``; output ``model``, a reference to the logged model.

    What a tuning has found, the input ``tuned`` where there is one, goes over the declared params.
    """
    if "tuned" in call.inputs:
        found = store.fetch_json(call.input("tuned"))["params"]
        params = params.model_copy(update={"model_params": {**params.model_params, **found}})
    registry = ModelRegistry.of(call, store)
    _refuse_other_params(registry, registry.find_run(call), _loggable(params))
    table = read_table(call.input("train"), store)
    require_columns(table.column_names, {params.target: "the target"})
    columns = raw_columns(table.column_names, params)
    frame = to_frame(table)
    started = time.perf_counter()
    model, task, features = fit(frame[columns], frame[params.target], params)
    seconds = time.perf_counter() - started
    log.info("trained on %d rows with %d raw columns in %.1f s", len(frame), len(columns), seconds)

    hash_columns = (params.group,) if params.group else tuple(table.column_names)
    facts = Facts(
        task=task,
        target=params.target,
        columns={name: str(table[name].type) for name in columns},
        watched=tuple(name for name in columns if name not in params.exclude),
        classes=_classes(model) if task != "regression" else (),
        hash_columns=hash_columns,
        window=call.window.key if call.window else None,
        windows=params.windows,
    )
    run_id = registry.run_of(call)
    code = unpack(call.code, store) if call.code else None
    with tempfile.TemporaryDirectory() as folder, pointed_at(registry.ref.uri):
        facts = _log_model(model, facts, params, frame[columns].head(_EXAMPLE_ROWS), run_id, code, Path(folder))
        hashes = np.unique(row_hashes(frame[list(hash_columns)]))
        _write_bundle(Path(folder, "mlops"), facts, hashes, call, params, store)
        with user_code("the model"):
            write_golden(Path(folder, GOLDEN), model, frame[columns], facts)
        try:
            mlflow.MlflowClient().log_artifacts(run_id, str(Path(folder, "mlops")), "mlops")
        except (OSError, mlflow.exceptions.MlflowException) as error:
            raise RegistryUnreachableError(f"MLflow at {registry.ref.uri} takes no artifacts: {error}") from error
    registry.api.log(
        run_id,
        metrics={"train_rows": float(len(frame)), "features": float(features), "fit_seconds": seconds},
        params=_loggable(params),
        tags=_tags(call, facts),
    )
    registry.api.end_run(run_id, "FINISHED")
    return outcome_of(
        call,
        outputs={"model": ArtifactRef(uri=facts.model_uri, digest=facts.model_digest, kind="model")},
        metrics={"train_rows": float(len(frame)), "features": float(features)},
        info={"run_id": run_id, "task": task, "mlflow_url": registry.run_url(run_id)},
    )


def _refuse_other_params(registry: ModelRegistry, run_id: str | None, params: dict[str, str]) -> None:
    """A run of MLflow keeps the params that it has logged, so a run is trained with one set of them.

    Raises:
        RegistryError: when it has logged others: a task was cleared, or a run resumed, after its declaration changed.
    """
    logged = registry.api.logged(run_id).params if run_id else {}
    changed = [
        f"{name} was {logged[name]} and is {value}"
        for name, value in params.items()
        if logged.get(name, value) != value
    ]
    if changed:
        raise RegistryError(
            f"this run was trained with other params already: {', '.join(changed)}",
            fix="start a new run: what has not changed is not done again",
        )


def _classes(model: SklearnPipeline) -> tuple[Any, ...]:
    model = model.steps[-1][1]
    if not hasattr(model, "classes_"):
        raise CodeError(
            f"{type(model).__name__} has no classes_", allowed="a classifier that says what its classes are"
        )
    return tuple(np.asarray(model.classes_).tolist())


def raw_columns(names: list[str], params: ModelParams) -> list[str]:
    """The raw columns that the model takes: with a feature function all but the target, else no keys and times."""
    left_out = {params.target, *params.drop, *(() if params.features else params.exclude)}
    columns = [name for name in names if name not in left_out]
    if not columns:
        raise DataError("no column is left to train on", fix="declare fewer columns under data.key and data.drop")
    return columns


def fit(rows: pd.DataFrame, target: pd.Series[Any], params: Train) -> tuple[Any, Task, int]:
    """Fit the pipeline from raw rows to predictions.

    Returns:
        The fitted scikit-learn pipeline, the task, and the number of columns that the model itself saw.

    Raises:
        DataError: when the target has nulls or one class only.
        CodeError: when the user's code or estimator fails.
    """
    if target.isna().any():
        raise DataError(
            f"the target {params.target!r} has {int(target.isna().sum())} nulls",
            fix="leave these rows out at the source",
        )
    select = ColumnTransformer([("raw", "passthrough", list(rows.columns))], verbose_feature_names_out=False)
    steps: list[tuple[str, Any]] = [("columns", select.set_output(transform="pandas").fit(rows))]
    frame = make_features(rows, params)
    if params.features:
        steps.append(("features", FunctionTransformer(load(params.features))))
    preprocess, values = fit_preprocess(frame, target, params)
    if preprocess is not None:
        steps.append(("preprocess", preprocess))
    model = fit_model(values, target, params)
    steps.append(("model", model))
    return SklearnPipeline(steps), _task_of(model, target, params), int(values.shape[1])


def make_features(rows: pd.DataFrame, params: ModelParams) -> pd.DataFrame:
    """What the feature function makes of raw rows; the rows themselves where there is none."""
    return call_features(load(params.features), params.features, rows) if params.features else rows


def fit_preprocess(frame: pd.DataFrame, target: pd.Series[Any], params: ModelParams) -> tuple[Any, Any]:
    """The fitted preprocessing, or None where there is none, and what it makes of the features."""
    preprocess = _preprocess(params, frame)
    if preprocess is None:
        return None, frame
    with user_code(params.preprocess or "the default preprocessing"):
        return preprocess, preprocess.fit_transform(frame, target)


def fit_model(values: Any, target: pd.Series[Any], params: ModelParams) -> Any:
    """The model alone, fitted on what comes out of the preprocessing."""
    return _fit_estimator(params, values, target) if params.estimator else _fit_function(params, values, target)


def _preprocess(params: ModelParams, frame: pd.DataFrame) -> Any:
    if params.preprocess:
        make = load(params.preprocess)
        with user_code(params.preprocess):
            transformer = make()
        if not (hasattr(transformer, "fit") and hasattr(transformer, "transform")):
            raise CodeError(
                f"{params.preprocess} gives {type(transformer).__name__}", allowed="an unfitted transformer"
            )
        return transformer
    if params.function:
        return None
    return default_preprocess(frame, keep_numbers=params.features is not None)


def default_preprocess(frame: pd.DataFrame, *, keep_numbers: bool) -> Any:
    """Sensible column defaults, unfitted: one-hot for texts and booleans, median and scale for numbers.

    Args:
        frame: what it will be fitted on; its columns' types decide.
        keep_numbers: leave numbers as they are: the feature function has dealt with them.
    """
    numbers = list(frame.select_dtypes(include="number").columns)
    texts = [
        name
        for name in frame.select_dtypes(include=["object", "string", "category", "bool"]).columns
        if pd.api.types.infer_dtype(frame[name], skipna=True) not in _TIMES
    ]
    other = [name for name in frame.columns if name not in numbers and name not in texts]
    if other:
        log.warning("no features are made of %s: give prepare.features to use them", ", ".join(map(str, other)))
    if not numbers and not texts:
        raise DataError(f"none of the columns {', '.join(map(str, other))} is a number, a text or a boolean")
    impute = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    encode = OneHotEncoder(
        handle_unknown="infrequent_if_exist", max_categories=_MAX_CATEGORIES, sparse_output=False, dtype=np.float64
    )
    return ColumnTransformer(
        [("numbers", "passthrough" if keep_numbers else impute, numbers), ("texts", encode, texts)]
    )


def _fit_estimator(params: ModelParams, values: Any, target: pd.Series[Any]) -> Any:
    path = str(params.estimator)
    model = make_estimator(params)
    with user_code(path):
        if is_classifier(model) and target.nunique() < 2:
            raise _one_class(params, target)
        model.fit(values, target)
    return model


def make_estimator(params: ModelParams) -> Any:
    """The estimator, unfitted.

    Raises:
        CodeError: when it is none, or does not take the params.
    """
    path = str(params.estimator)
    kind = load(path)
    if not (isinstance(kind, type) and hasattr(kind, "fit") and hasattr(kind, "predict")):
        raise CodeError(f"{path} is no estimator class", allowed="a class with fit and predict")
    given = dict(params.model_params)
    known = list(inspect.signature(kind).parameters)
    unknown = sorted(set(given) - set(known)) if "kwargs" not in known else []
    if unknown:
        raise CodeError(f"{path} has no parameter {', '.join(map(repr, unknown))}", allowed=", ".join(known))
    if "random_state" in known:
        given.setdefault("random_state", params.seed)
    with user_code(path):
        return kind(**given)


def _one_class(params: ModelParams, target: pd.Series[Any]) -> DataError:
    return DataError(
        f"the target {params.target!r} has one class only, {target.tolist()[0]!r}, in all {len(target)} training rows",
        fix="read more windows (train.windows), or check how the target is made",
    )


def _fit_function(params: ModelParams, values: Any, target: pd.Series[Any]) -> Any:
    path = str(params.function)
    function = load(path)
    if params.ml_task in ("binary", "multiclass") and target.nunique() < 2:
        raise _one_class(params, target)
    with user_code(path):
        model = function(values, target, dict(params.model_params))
    if not hasattr(model, "predict"):
        raise CodeError(f"{path} gives {type(model).__name__}", allowed="a fitted model with predict")
    return model


def _task_of(model: Any, target: pd.Series[Any], params: ModelParams) -> Task:
    """The task, from what was declared, the estimator, and the target's classes."""
    try:
        regresses, classifies = is_regressor(model), is_classifier(model)
    except AttributeError as error:
        raise CodeError(
            f"{type(model).__name__} is no scikit-learn estimator",
            fix="let it inherit from sklearn.base.RegressorMixin or ClassifierMixin, and BaseEstimator",
        ) from error
    if regresses:
        found: Task = "regression"
    elif classifies:
        found = "binary" if target.nunique() == 2 else "multiclass"
    elif params.ml_task is not None:
        return params.ml_task
    else:
        raise CodeError(
            f"{type(model).__name__} does not say whether it classifies or regresses",
            fix="declare task: binary, multiclass or regression",
        )
    if params.ml_task is not None and params.ml_task != found:
        raise DataError(
            f"the task is declared {params.ml_task!r}, but model and target say {found!r}", fix=f"task: {found}"
        )
    return found


def _log_model(
    model: Any, facts: Facts, params: Train, example: pd.DataFrame, run_id: str, code: Path | None, scratch: Path
) -> Facts:
    """Log the model and return the facts with where it is and what its digest is."""
    skops_format = params.serialization == "skops"
    trusted, file = None, scratch / "model.skops"
    if skops_format:
        try:
            skops_io.dump(model, file)
        except Exception as error:
            raise _not_for_skops(error) from error
        trusted = trusted_types(file, code)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = infer_signature(example, predict(model, example))
    # A null in the example says that a value may be missing, not that the column may.
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(column.type, column.name, required=True) for column in found.inputs.inputs
    ]
    signature = ModelSignature(inputs=Schema(inputs), outputs=found.outputs)
    try:
        # Fluent functions work on an active run; it is entered here and nowhere else.
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.sklearn.log_model(
                model,
                name="model",
                signature=signature,
                input_example=example,
                serialization_format=mlflow.sklearn.SERIALIZATION_FORMAT_SKOPS
                if skops_format
                else mlflow.sklearn.SERIALIZATION_FORMAT_CLOUDPICKLE,
                skops_trusted_types=trusted,
                code_paths=[str(entry) for entry in sorted(code.iterdir())] if code else None,
                pip_requirements=_requirements(params),
            )
    except (OSError, mlflow.exceptions.MlflowException) as error:
        if skops_format and "skops" in str(error):
            # It reads what it has written, which finds more than writing.
            raise _not_for_skops(error.__cause__ or error) from error
        raise RegistryUnreachableError(f"MLflow does not take the model: {error}") from error
    digest = model_digest(file, code) if skops_format else _logged_digest(logged.model_uri)
    return facts.model_copy(update={"model_uri": logged.model_uri, "model_digest": digest})


def _not_for_skops(error: BaseException) -> CodeError:
    return CodeError(
        f"the model cannot be written with skops: {type(error).__name__}: {error}",
        fix="define its classes and functions at the top of a module, or set train.serialization: cloudpickle, which "
        "runs code when the model is loaded",
    )


def _logged_digest(uri: str) -> str:
    """The digest of a pickled model: of the very bytes that were logged."""
    with tempfile.TemporaryDirectory() as target:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=target))
        return model_digest(next(each for each in folder.iterdir() if each.suffix == ".pkl"), folder / "code")


def _requirements(params: Train) -> list[str]:
    """Pins of what the model needs where it is loaded; given, MLflow need not find them out in a child process."""
    names = ["mlflow", "scikit-learn", "skops" if params.serialization == "skops" else "cloudpickle", "pandas", "numpy"]
    if params.estimator:
        top = split_path(params.estimator)[0].split(".")[0]
        if top != "sklearn":
            names += importlib.metadata.packages_distributions().get(top, [])
    return [f"{name}=={importlib.metadata.version(name)}" for name in dict.fromkeys(names)]


def _write_bundle(folder: Path, facts: Facts, hashes: Any, call: Call, params: Train, store: Store) -> None:
    """Write what is logged beside the model: facts, training rows, reference, declaration, data digests."""
    folder.mkdir()
    data = read_table(call.inputs.get("data", call.input("train")), store)
    Path(folder, Path(FACTS).name).write_text(facts.model_dump_json(indent=1))
    pq.write_table(pa.table({"hash": pa.array(hashes, pa.uint64())}), folder / Path(ROWS).name, compression="zstd")
    reference = reference_of(data, facts.watched, params.time)
    Path(folder, Path(PROFILE).name).write_bytes(reference.to_bytes())
    if params.declaration:
        Path(folder, Path(DECLARATION).name).write_text(params.declaration)
    inputs = {name: ref.model_dump() for name, ref in call.inputs.items()}
    code = call.code.model_dump() if call.code else None
    Path(folder, Path(INPUTS).name).write_text(
        json.dumps({"inputs": inputs, "code": code, "declared": bool(params.declaration)}, indent=1)
    )


def _loggable(params: Train) -> dict[str, str]:
    """The declared params, flat, as MLflow shows them."""
    flat: dict[str, str] = {}
    for name, value in params.model_dump(mode="json", exclude={"declaration"}).items():
        if name == "model_params":
            flat |= {f"model.{key}": str(each)[:500] for key, each in value.items()}
        elif value not in (None, [], (), ""):
            flat[name] = str(value)[:500]
    return flat


def _tags(call: Call, facts: Facts) -> dict[str, str]:
    return {
        "mlops.pipeline": call.pipeline,
        "mlops.airflow_run": call.run,
        "mlops.window": call.window.key if call.window else "all",
        "mlops.model_digest": facts.model_digest,
        "mlops.task": facts.task,
        "mlops.code_digest": call.code.digest if call.code else "installed libraries",
        **{f"mlops.data.{name}": ref.digest for name, ref in call.inputs.items()},
        NOTE_TAG: f"Trained by `{call.run}`. The gate has not spoken yet.",
        "mlflow.source.name": os.environ.get("AIRFLOW_CTX_DAG_ID", call.pipeline),
    }
