"""Validation in a real DAG: quarantine between stages, its page, and the request that moved values make."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from airflow_mlops.operators.links import VALIDATION_URL
from tests import toy
from tests.airflow_fixtures import Airflow

SCHEMA = """
columns:
  amount: {type: number, min: -1.0e6}
extra_columns: allow
"""
ALONE = """
from airflow.sdk import DAG
from airflow_mlops.operators import ExtractDataOperator, ValidateDataOperator

with DAG("alone", schedule=None) as dag:
    rows = ExtractDataOperator(task_id="extract", source="data/{{window}}.parquet", grain="month", window="2024-03")
    ValidateDataOperator(
        task_id="validate", data=rows.output, data_schema="schemas/toy.yaml", target="y", pipeline="{name}",
        retrain={{"cooldown": "0s"}},
    )
"""


def schema_file(airflow: Airflow) -> Path:
    """Where the schema lies: not among the declarations."""
    folder = airflow.folder / "schemas"
    folder.mkdir(exist_ok=True)
    return folder / "toy.yaml"


def test_a_train_run_goes_on_without_the_bad_rows_and_stops_above_the_limit(airflow: Airflow) -> None:
    table = toy.rows("2024-01")
    amount = table["amount"].to_pylist()
    toy.write(table.set_column(2, "amount", pa.array([-1e7, *amount[1:]])), airflow.folder / "data/2024-01.parquet")
    schema = schema_file(airflow)
    schema.write_text(SCHEMA + "quarantine: {max_share: 0.01}\nskew: {on_skew: retrain}\n")
    airflow.declare(data={"schema": "schemas/toy.yaml"})

    run = airflow.test("train", "2024-01")

    assert run.state == "success"
    outcome = run.xcom["validate_data", "return_value"]
    assert outcome["verdict"]["status"] == "warn"
    assert (outcome["outputs"]["quarantine"]["rows"], outcome["outputs"]["data"]["rows"]) == (1, 399)
    counts = run.xcom["prepare", "return_value"]["metrics"]
    assert counts["train_rows"] + counts["test_rows"] == 399
    page = run.xcom["validate_data", VALIDATION_URL]
    assert page.endswith(f"/mlops/dags/{airflow.name}.train/validations/{outcome['identity']}")

    schema.write_text(SCHEMA + "quarantine: {max_share: 0.002}\n")
    stopped = airflow.test("train", "2024-01")

    assert stopped.states["validate_data"] == "failed" and stopped.states["prepare"] == "upstream_failed"
    assert "would be set aside" in str(stopped.error("validate_data"))
    identity = stopped.xcom["validate_data", VALIDATION_URL].rsplit("/", 1)[1]
    assert airflow.store.read_json("validations", f"{identity}.json")["run"].startswith(f"{airflow.name}.train/")


def test_moved_values_ask_for_a_retraining_once(champion: Airflow) -> None:
    toy.write(toy.rows("2024-03", shift=1.5), champion.folder / "data/2024-03.parquet")
    schema_file(champion).write_text(SCHEMA + "skew: {on_skew: retrain}\n")
    champion.write(ALONE.format(name=champion.name), "alone_dag.py")

    run = champion.test("alone")

    assert run.state == "success"
    (recorded,) = champion.requests()
    request = recorded.request
    assert (request.trigger, request.champion, recorded.state) == ("skew", "1", "started")
    assert "amount moved by" in request.reason and request.window.key == "2024-03"
    assert [(event["asset"], event["extra"]["request"]) for event in run.events] == [
        (f"x-mlops://{champion.name}/retrain", request.id)
    ]
    champion.test("alone")
    assert len(champion.requests()) == 1


def test_a_train_run_answers_the_skew_that_it_finds(champion: Airflow) -> None:
    toy.write(toy.rows("2024-03", shift=1.5), champion.folder / "data/2024-03.parquet")
    schema_file(champion).write_text(SCHEMA + "skew: {on_skew: retrain}\n")
    champion.declare(data={"schema": "schemas/toy.yaml"})

    run = champion.test("train", "2024-03")

    assert run.state == "success"
    (recorded,) = champion.requests()
    assert (recorded.request.trigger, recorded.state) == ("skew", "done")
    assert not [event for event in run.events if event["asset"].endswith("/retrain")]
    champion.declare(retries=2, retry_delay="0s")
