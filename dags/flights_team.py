"""A team's own DAGs, built of single operators and the sensor: what a data engineer writes who wants no declaration.

Every month the team trains a plain logistic regression beside the pipeline `flights`, under a name of its own, with a
check of its own between validation and training. The second DAG watches the model and asks for a retraining on drift.
"""

from datetime import timedelta

from airflow.sdk import DAG, Param, task

from airflow_mlops.operators import (
    EvaluateModelOperator,
    ExtractDataOperator,
    PrepareDataOperator,
    PromoteModelOperator,
    RegisterModelOperator,
    StartRunOperator,
    TrainModelOperator,
    ValidateDataOperator,
    ValidateModelOperator,
    retrain_asset,
)
from airflow_mlops.sensors import DataDriftSensor

NAME = "flights_team"
DATA = {"source": "flights/data/{window}.parquet", "time": "scheduled_at", "grain": "month"}
WINDOW = {"window": Param(None, type=["null", "string"], description="The month to train on, such as 2013-02.")}
DEFAULTS = {"pipeline": NAME, "retries": 1, "retry_delay": timedelta(minutes=1), "owner": "flights team"}

with DAG(
    NAME,
    description="A model of the team's own, built of single operators",
    doc_md=__doc__,
    schedule=[retrain_asset(NAME)],
    catchup=False,
    max_active_runs=1,
    params=WINDOW,
    default_args=DEFAULTS,
    tags={"mlops", "example"},
):
    # A run that an event has started takes the request that it answers, or is skipped where none is left.
    start = StartRunOperator(task_id="start", **DATA)
    rows = ExtractDataOperator(task_id="extract", start=start.output, **DATA)
    checked = ValidateDataOperator(
        task_id="validate", data=rows.output, data_schema="flights/schema.yaml", target="late", time="scheduled_at"
    )

    @task
    def enough(extracted: dict) -> None:
        """The team's own rule: a month of New York has at least ten thousand flights."""
        if extracted["outputs"]["data"]["rows"] < 10_000:
            raise ValueError("too few flights: has the airport been closed?")

    split = PrepareDataOperator(
        task_id="split", data=rows.output, target="late", features="flights.features:build", time="scheduled_at"
    )
    model = TrainModelOperator(
        task_id="train",
        train=split.output,
        target="late",
        features="flights.features:build",
        preprocess="flights.features:imputed",
        estimator="sklearn.linear_model.LogisticRegression",
        model_params={"max_iter": 200},
        drop=["flight"],
        exclude=["scheduled_at"],
    )
    version = RegisterModelOperator(task_id="register", model=model.output)
    scores = EvaluateModelOperator(
        task_id="evaluate", test=split.output, model=model.output, metrics=["roc_auc", "log_loss"], slices=["origin"]
    )
    gate = ValidateModelOperator(
        task_id="gate", evaluation=scores.output, version=version.output, min={"roc_auc": 0.55}
    )
    PromoteModelOperator(task_id="promote", version=version.output, decision=gate.output)
    [checked, enough(rows.output)] >> split

with DAG(
    f"{NAME}_drift",
    description="Watches the team's model for drift",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    max_active_runs=1,
    params=WINDOW,
    default_args=DEFAULTS,
    tags={"mlops", "example"},
):
    DataDriftSensor(
        task_id="drift",
        pipeline=NAME,
        data_drift={"min_effect": 1.0, "min_category_effect": 0.15},
        poke_interval=30,
        **DATA,
    )
