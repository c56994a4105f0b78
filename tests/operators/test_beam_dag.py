"""Preparation by Beam, through the provider's operator on the DirectRunner: the very artifacts of the stage itself."""

from __future__ import annotations

import pyarrow.parquet as pq

from tests import toy
from tests.airflow_fixtures import Airflow

DAG_FILE = '''"""One snapshot, prepared by the stage and by Beam (an Airflow DAG)."""

from airflow.sdk import DAG

from airflow_mlops.operators import ExtractDataOperator, PrepareDataOperator
from airflow_mlops.operators.beam import PrepareDataOnBeamOperator

SPLITS = {splits!r}

with DAG("both", schedule=None):
    rows = ExtractDataOperator(task_id="extract", source="data/{{window}}.parquet", window="2024-01", grain="month")
    for name, split in SPLITS.items():
        given = {{"data": rows.output, "target": "y", "store": {store!r}, **split}}
        PrepareDataOperator(task_id=name, pipeline=f"{{name}}-here", **given)
        PrepareDataOnBeamOperator(task_id=f"{{name}}_beam", pipeline=f"{{name}}-beam", **given)
'''


def write(airflow: Airflow, **splits: object) -> None:
    # Three row groups, the last of them short, with one instant on both sides of a border.
    table = toy.rows("2024-01", 140_000)
    (airflow.folder / "data").mkdir(exist_ok=True)
    pq.write_table(table, airflow.folder / "data" / "2024-01.parquet")
    airflow.write(DAG_FILE.format(splits=splits, store=airflow.world.store))


def test_beam_gives_what_the_stage_gives(airflow: Airflow) -> None:
    write(
        airflow,
        time={"time": "at", "split": {"by": "time", "test": 0.3}},
        random={"split": {"by": "random", "test": 0.2}, "seed": 3},
        group={"split": {"by": "group", "group": "region", "test": 0.4}},
    )
    run = airflow.test("both")
    assert set(run.states.values()) == {"success"}
    for name in ("time", "random", "group"):
        stage, beam = (run.xcom[task, "return_value"] for task in (name, f"{name}_beam"))
        assert beam["outputs"] == stage["outputs"]
        assert beam["metrics"] == stage["metrics"]
    # The pieces are gone.
    jobs = airflow.store.names("jobs")
    assert len(jobs) == 3
    assert all(airflow.store.names("jobs", job) == ["call.json"] for job in jobs)


def test_a_pipeline_that_breaks_down_says_so_and_leaves_no_outcome(airflow: Airflow) -> None:
    write(airflow, time={"time": "age", "split": {"by": "time", "test": 0.3}})
    run = airflow.test("both")
    assert run.states["time_beam"] == "failed"
    assert "the Beam pipeline failed" in str(run.error("time_beam"))
    assert not airflow.store.names("outcomes")[2:]
