"""Two pipelines with two versions of scikit-learn in one Airflow, of which it has one."""

from __future__ import annotations

import sklearn
import yaml

from airflow_mlops.registry import ModelRegistry
from tests import toy
from tests.airflow_fixtures import NAMES, Airflow


def requirements_of(airflow: Airflow, name: str) -> str:
    """The requirements that were logged with the champion of a pipeline."""
    import mlflow

    mlflow.set_tracking_uri(airflow.world.registry.uri)
    registry = ModelRegistry(toy.registry_ref(airflow.world.registry.uri, name), airflow.store)
    version = registry.api.aliases(name)["champion"]
    return open(mlflow.pyfunc.get_model_dependencies(f"models:/{name}/{version}")).read()


def test_two_pipelines_have_each_their_own_scikit_learn(airflow: Airflow, old_sklearn: str) -> None:
    toy.months(airflow.folder, ("2024-01", "2024-02"), 600)
    old = f"{airflow.name}-old"
    toy.declare(airflow.folder, airflow.name)
    toy.declare(airflow.folder, old, runtime={"requirements": old_sklearn, "memory": "4GiB"})
    airflow.write(NAMES)

    runs = {
        name: airflow.look(airflow.dag(f"{name}.train").test(run_conf={"window": "2024-01"}))
        for name in (airflow.name, old)
    }

    assert {name: run.state for name, run in runs.items()} == {airflow.name: "success", old: "success"}
    here, there = requirements_of(airflow, airflow.name), requirements_of(airflow, old)
    assert f"scikit-learn=={sklearn.__version__}" in here
    assert "scikit-learn==1.6." in there and sklearn.__version__ not in there
    predicted = airflow.look(airflow.dag(f"{old}.predict").test(run_conf={"window": "2024-02"}))
    assert predicted.state == "success", yaml.safe_dump(predicted.states)
    assert predicted.xcom["batch_predict", "return_value"]["metrics"]["rows"] == 600
