"""What Airflow sees of the package as a provider: valid info, a connection type with its form, importable names."""

from __future__ import annotations

import importlib
import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from airflow_mlops.provider_info import get_provider_info

INFO = get_provider_info()


def test_the_info_is_valid_by_airflow_s_own_schema() -> None:
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    # The wheel's entry point tells the version, and Airflow itself adds it.
    jsonschema.Draft7Validator(schema).validate(INFO)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate({**INFO, "hooks": "airflow_mlops.hooks.mlflow"})


@pytest.mark.parametrize("room", ["operators", "sensors", "triggers", "hooks"])
def test_every_module_it_names_is_there(room: str) -> None:
    modules = [module for entry in INFO[room] for module in entry["python-modules"]]
    for module in modules:
        assert importlib.import_module(module).__all__ if module.count(".") == 1 else importlib.import_module(module)


def test_every_extra_link_is_there() -> None:
    for path in INFO["extra-links"]:
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name).name


def test_airflow_finds_the_provider_and_its_connection_form(airflow_home: Path) -> None:
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    assert "airflow-mlops" in manager.providers
    hook = manager.hooks["mlflow"]
    assert hook is not None
    assert (hook.hook_name, hook.connection_id_attribute_name) == ("MLflow", "mlflow_conn_id")
    assert hook.connection_testable
    widgets = {name for name, widget in manager.connection_form_widgets.items() if name.startswith("extra__mlflow__")}
    assert widgets == {"extra__mlflow__ui_url", "extra__mlflow__timeout"}
    behaviour = manager.field_behaviours["mlflow"]
    assert behaviour["relabeling"]["host"] == "Tracking server"
    assert set(INFO["extra-links"]) <= set(manager.extra_links_class_names)


def test_the_setting_has_its_default(airflow_home: Path) -> None:
    from airflow.configuration import conf

    assert conf.get("airflow_mlops", "store") == "mlops"
