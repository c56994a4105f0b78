"""From declarations to DAGs: ids, schedules, wiring, documents, and every file's mistakes at once."""

from __future__ import annotations

import sys
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.sdk import AssetOrTimeSchedule, CronTriggerTimetable

from airflow_mlops.errors import DeclarationError
from airflow_mlops.factory import load_dags
from airflow_mlops.spec import load_pipeline
from tests import toy

FILE = "from airflow_mlops import load_dags\nload_dags({pattern!r}, globals())\n"


@pytest.fixture(autouse=True)
def _database(airflow_home: Path) -> None:
    """The DAG bag looks into the metadata database."""


def bag_of(folder: Path) -> Any:
    """A folder's DAG files as the DAG processor reads them."""
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(str(folder), safe_mode=True)


def dags_of(folder: Path, **sections: Any) -> dict[str, Any]:
    """The DAGs of the toy pipeline, by what they do."""
    toy.declare(folder, **sections)
    dags = load_dags("toy.yaml", {}, base=str(folder))
    return {dag_id.removeprefix("toy."): dag for dag_id, dag in dags.items()}


def test_airflow_finds_four_dags_in_a_file_of_two_lines(tmp_path: Path) -> None:
    toy.declare(tmp_path)
    (tmp_path / "dag_file.py").write_text(FILE.format(pattern="toy.yaml"))

    bag = bag_of(tmp_path)

    assert bag.import_errors == {}
    assert sorted(bag.dags) == ["toy.monitor", "toy.predict", "toy.rollback", "toy.train"]
    assert {dag.fileloc for dag in bag.dags.values()} == {str(tmp_path / "dag_file.py")}
    assert {dag.folder for dag in bag.dags.values()} == {str(tmp_path)}


def test_the_dag_processor_finds_the_file_too(tmp_path: Path) -> None:
    from airflow.utils.file import list_py_file_paths, might_contain_dag

    toy.declare(tmp_path)
    file = tmp_path / "dag_file.py"
    file.write_text(FILE.format(pattern="toy.yaml"))
    (tmp_path / "features.py").write_text("def build(frame):\n    return frame\n")

    assert list_py_file_paths(str(tmp_path), safe_mode=True) == [str(file)]
    assert might_contain_dag(str(file), safe_mode=True)


def test_several_pipelines_by_one_glob(tmp_path: Path) -> None:
    for team, name in (("a", "churn"), ("b", "fraud")):
        (tmp_path / team).mkdir()
        toy.declare(tmp_path / team, name)
    (tmp_path / "dag_file.py").write_text(FILE.format(pattern="**/*.yaml"))

    bag = bag_of(tmp_path)

    assert sorted({dag_id.split(".")[0] for dag_id in bag.dags}) == ["churn", "fraud"]
    assert bag.dags["fraud.train"].task_dict["extract"].folder == str(tmp_path / "b")


def test_several_pipelines_in_one_file(tmp_path: Path) -> None:
    body = yaml.safe_load((toy.declare(tmp_path) and tmp_path / "toy.yaml").read_text())
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump_all([{**body, "name": name} for name in ("one", "two")]))
    assert len(load_dags("toy.yaml", {}, base=str(tmp_path))) == 8


PYTHON = """
from airflow_mlops import Pipeline
pipeline = Pipeline(
    name="churn",
    data={"source": "data/{window}.parquet", "target": "y"},
    train={"estimator": "sklearn.linear_model.LogisticRegression"},
)
globals().update(pipeline.dags())
"""


def test_a_pipeline_in_python_makes_the_same_dags(tmp_path: Path) -> None:
    (tmp_path / "dag_file.py").write_text(PYTHON)

    bag = bag_of(tmp_path)

    assert bag.import_errors == {}
    assert sorted(bag.dags) == ["churn.monitor", "churn.predict", "churn.rollback", "churn.train"]
    extract = bag.dags["churn.train"].task_dict["extract"]
    assert extract.stage_params().source == str(tmp_path / "data" / "{window}.parquet")


def test_paths_start_from_the_calling_file_and_the_declaration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "pipelines").mkdir()
    elsewhere.mkdir()
    toy.declare(tmp_path / "pipelines")
    (tmp_path / "dag_file.py").write_text(FILE.format(pattern="pipelines/toy.yaml"))
    monkeypatch.chdir(elsewhere)

    extract = bag_of(tmp_path).dags["toy.train"].task_dict["extract"]

    assert extract.stage_params().source == str(tmp_path / "pipelines" / "data" / "{window}.parquet")


def test_the_wiring_of_training(tmp_path: Path) -> None:
    train = dags_of(tmp_path)["train"]

    assert {task.task_id: task.upstream_task_ids for task in train.tasks} == {
        "start": set(),
        "extract": {"start"},
        "validate_data": {"extract"},
        "prepare": {"validate_data"},
        "train": {"validate_data", "prepare"},
        "register": {"train"},
        "evaluate": {"validate_data", "prepare", "train"},
        "validate_model": {"register", "evaluate"},
        "promote": {"register", "validate_model"},
    }
    assert [task.outlets and task.outlets[0].uri for task in train.tasks if task.outlets] == ["x-mlops://toy/model"]


def test_the_wiring_of_the_other_two(tmp_path: Path) -> None:
    dags = dags_of(tmp_path)

    (sensor,) = dags["monitor"].tasks
    assert sensor.task_id == "data_drift"
    assert [outlet.name for outlet in sensor.outlets] == ["toy.retrain.requests"]
    assert [inlet.uri for inlet in sensor.inlets] == ["x-mlops://toy/retrain"]
    assert {task.task_id: task.upstream_task_ids for task in dags["predict"].tasks} == {
        "start": set(),
        "extract": {"start"},
        "batch_predict": {"extract"},
    }
    assert dags["predict"].task_dict["batch_predict"].outlets[0].uri == "x-mlops://toy/predictions"
    assert not dags["predict"].task_dict["start"].answers_requests


def test_schedules(tmp_path: Path) -> None:
    dags = dags_of(
        tmp_path,
        retrain={"triggers": ["drift", {"model": "prices"}]},
        monitor={"schedule": "@daily"},
        predict={"schedule": "0 6 * * *"},
    )

    timetable = dags["train"].timetable
    assert isinstance(timetable, AssetOrTimeSchedule)
    assert {asset.uri for asset in timetable.asset_condition.objects} == {
        "x-mlops://toy/retrain",
        "x-mlops://prices/model",
    }
    assert isinstance(timetable.timetable, CronTriggerTimetable)
    assert timetable.timetable.run_immediately is False
    assert dags["train"].task_dict["start"].upstream_models == ["prices"]
    assert dags["monitor"].timetable.expression == "0 0 * * *"
    assert dags["predict"].timetable.expression == "0 6 * * *"
    for dag in dags.values():
        assert (dag.catchup, dag.max_active_runs) == (False, 1)


def test_schedules_that_are_left_out(tmp_path: Path) -> None:
    dags = dags_of(tmp_path, schedule=None, retrain={"triggers": []}, data={"window": "month"})
    assert [type(dag.timetable).__name__ for dag in dags.values()] == ["NullTimetable"] * 4

    by_asset = dags_of(tmp_path, schedule=None, data={"window": "month"})["train"].timetable
    assert by_asset.asset_condition.uri == "x-mlops://toy/retrain"


def test_monitoring_that_goes_on_and_on(tmp_path: Path) -> None:
    monitor = dags_of(tmp_path, monitor={"schedule": "@continuous", "poll": "5m", "timeout": "2d"})["monitor"]
    sensor = monitor.task_dict["data_drift"]
    assert type(monitor.timetable).__name__ == "ContinuousTimetable"
    assert monitor.start_date is not None
    assert (sensor.poke_interval, sensor.timeout) == (300.0, 172800.0)
    assert sensor.poll_interval == 300.0


def test_only_a_policy_that_suggests_has_a_dag_that_asks(tmp_path: Path) -> None:
    triggers = ["drift", {"model": "prices"}]
    retrain = {"mode": "suggest", "triggers": triggers, "approval": {"users": ["7", "9"], "timeout": "2d"}}

    dags = dags_of(tmp_path, schedule=None, retrain=retrain, train={"windows": {"last": 3}}, data={"window": "month"})

    assert set(dags) == {"train", "monitor", "predict", "rollback", "retrain"}
    # What another pipeline has promoted is asked about too, and starts no training by itself.
    assert dags["train"].timetable.asset_condition.uri == "x-mlops://toy/retrain"
    asked = {asset.uri for asset in dags["retrain"].timetable.asset_condition.objects}
    assert asked == {"x-mlops://toy/suggestion", "x-mlops://prices/model"}
    assert (dags["retrain"].max_active_runs, dict(dags["retrain"].params)) == (1, {})
    (approve,) = dags["retrain"].tasks
    assert (approve.response_timeout, approve.defaults) == (timedelta(days=2), ["Reject"])
    assert [user["id"] for user in approve.assigned_users] == ["7", "9"]
    assert (approve.windows, approve.grain) == (3, "month")


def test_what_a_person_sees(tmp_path: Path) -> None:
    dags = dags_of(tmp_path, description="Who **leaves**?", owner="growth", tags=["crm"], retries=5, retry_delay="3m")

    for what, dag in dags.items():
        assert dag.tags == {"mlops", what, "toy", "crm"}
        assert dag.doc_md.count("Who **leaves**?") == 1
        assert "source: data/{window}.parquet" in dag.doc_md
        if what == "rollback":
            assert set(dag.params) == {"version", "reason"}
        else:
            assert dag.params["window"] is None
            assert "2013-03" in dag.params.get_param("window").description
        for task in dag.tasks:
            assert (task.owner, task.retries, task.retry_delay) == ("growth", 5, timedelta(minutes=3))
    declared = dags["train"].doc_md.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "again.yaml").write_text(f"{declared}description: Who **leaves**?\n")
    assert load_pipeline(tmp_path / "again.yaml") == load_pipeline(tmp_path / "toy.yaml")


def test_a_declared_store_is_a_tag_of_every_dag(tmp_path: Path) -> None:
    google = {"project": "my-project", "region": "europe-west1", "bucket": "my-bucket"}
    dags = dags_of(tmp_path, google=google)
    assert all("store:gs://my-bucket/mlops" in dag.tags for dag in dags.values())


def test_the_declaration_s_values_reach_the_operators(tmp_path: Path) -> None:
    train = dags_of(
        tmp_path,
        train={"windows": {"last": 3}, "params": {"C": 0.5}, "seed": 7},
        evaluate={"metrics": ["roc_auc"], "slices": "region"},
        validate_model={"min": {"roc_auc": 0.6}, "versus_champion": {"confidence": 0.9}},
        data={"drop": "member"},
        registry="mlflow_prod",
    )["train"].task_dict

    assert (train["extract"].last, train["extract"].grain, train["extract"].time) == (3, "month", "at")
    assert train["train"].model_params == {"C": 0.5}
    assert (train["train"].exclude, train["train"].drop, train["train"].seed) == (["id", "at"], ["member"], 7)
    assert (train["evaluate"].metrics, train["evaluate"].slices) == (["roc_auc"], ["region"])
    assert train["validate_model"].min == {"roc_auc": 0.6}
    assert train["validate_model"].stage_params().versus_champion.confidence == 0.9
    assert {train[name].registry_conn_id for name in ("train", "promote")} == {"mlflow_prod"}


def test_all_mistakes_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("name: first\ndata: {sorce: x, target: y}\ntrain: {}\n")
    (tmp_path / "second.yaml").write_text("name: [second\n")
    toy_like = "name: third\ndata: {source: a.csv, target: y}\ntrain: {estimator: a.B}\nevaluate: {metrics: auc}\n"
    (tmp_path / "third.yaml").write_text(toy_like)
    (tmp_path / "dag_file.py").write_text(FILE.format(pattern="*.yaml"))

    bag = bag_of(tmp_path)

    assert not bag.dags
    (text,) = bag.import_errors.values()
    for part in (
        "first.yaml:2: pipeline 'first', stage 'data': unknown key 'sorce'; allowed: source, target",
        "try: source",
        "first.yaml:3: pipeline 'first', stage 'train': give exactly one of 'estimator' and 'function'",
        "second.yaml:",
        "not valid YAML",
        "third.yaml:4: pipeline 'third', stage 'evaluate': there is no metric 'auc'",
        "try: roc_auc",
    ):
        assert part in text
    namespace: dict[str, Any] = {}
    with pytest.raises(DeclarationError) as caught:
        load_dags("*.yaml", namespace, base=str(tmp_path))
    assert len(caught.value.problems) >= 5
    assert namespace == {}


def test_a_file_with_mistakes_takes_no_other_file_s_dags_with_it(tmp_path: Path) -> None:
    toy.declare(tmp_path, "fine")
    (tmp_path / "first.yaml").write_text("name: first\ndata: {sorce: x, target: y}\ntrain: {}\n")
    (tmp_path / "dag_file.py").write_text(FILE.format(pattern="*.yaml"))

    bag = bag_of(tmp_path)

    assert not bag.import_errors
    assert set(bag.dags) == {"fine.train", "fine.monitor", "fine.predict", "fine.rollback", "first.broken"}
    broken = bag.dags["first.broken"]
    assert "first.yaml:2: pipeline 'first', stage 'data': unknown key 'sorce'" in broken.doc_md
    assert (broken.tags, broken.timetable.can_be_scheduled) == ({"mlops", "broken"}, False)
    with pytest.raises(DeclarationError, match="unknown key 'sorce'"):
        broken.task_dict["declaration"].execute({})


def test_a_name_taken_twice_and_a_pattern_that_finds_nothing(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        toy.declare(tmp_path / folder)
    dags = load_dags("**/*.yaml", {}, base=str(tmp_path))
    assert set(dags) == {"toy.train", "toy.monitor", "toy.predict", "toy.rollback", "toy.broken"}
    assert dags["toy.train"].task_dict["start"].base == str(tmp_path / "a")
    assert "the name is taken in " in dags["toy.broken"].doc_md and "/a/toy.yaml:1" in dags["toy.broken"].doc_md
    with pytest.raises(DeclarationError, match="no such file; try: a path relative to the DAG file"):
        load_dags("*.yml", {}, base=str(tmp_path))


def test_every_dag_goes_through_airflow_s_serialization(tmp_path: Path) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    for dag in dags_of(tmp_path, monitor={"schedule": "@continuous"}, retrain={"mode": "suggest"}).values():
        again = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
        assert again.dag_id == dag.dag_id
        assert {task.task_id: task.downstream_task_ids for task in again.tasks} == {
            task.task_id: task.downstream_task_ids for task in dag.tasks
        }


def test_a_hundred_pipelines_are_made_in_moments(tmp_path: Path) -> None:
    body = textwrap.dedent("""
        name: p{0}
        data: {{source: "data/{{window}}.parquet", target: y}}
        train: {{estimator: sklearn.linear_model.Ridge}}
        ---
    """)
    (tmp_path / "many.yaml").write_text("".join(body.format(index) for index in range(100)))
    before = set(sys.modules)
    assert len(load_dags("many.yaml", {}, base=str(tmp_path))) == 400
    assert not {"sklearn.linear_model"} & (set(sys.modules) - before)
