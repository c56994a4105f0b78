"""What a registry answers: one contract, held by the server over REST and by MLflow's own client on a database."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

import mlflow
import pytest

from airflow_mlops.errors import ModelNotFoundError, RegistryError, RegistryUnreachableError
from airflow_mlops.registry.mlflow_api import MlflowApi, Version, mlflow_api, pointed_at
from tests.conftest import free_port
from tests.loopback.rest import Asked, RestService, route


@pytest.fixture(scope="module", params=["rest", "sqlite"])
def uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "rest":
        server: str = request.getfixturevalue("mlflow_server")
        return server
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


@pytest.fixture
def api(uri: str) -> MlflowApi:
    return mlflow_api(uri)


@pytest.fixture
def run(api: MlflowApi, fresh_name: str) -> str:
    return api.create_run(api.experiment_id(fresh_name), "a run", {"mlops.run": "one"})


def logged_model(uri: str, experiment: str, run: str) -> str:
    client = mlflow.MlflowClient(uri, uri)
    logged = client.create_logged_model(experiment, name="model", source_run_id=run)
    client.finalize_logged_model(logged.model_id, "READY")
    source: str = logged.model_uri
    return source


@pytest.fixture
def version(uri: str, api: MlflowApi, fresh_name: str, run: str) -> Version:
    api.create_model(fresh_name)
    source = logged_model(uri, api.experiment_id(fresh_name), run)
    return api.create_version(fresh_name, source, run, {"digest": "x"})


def test_an_experiment_is_made_once(uri: str, api: MlflowApi, fresh_name: str) -> None:
    made = api.experiment_id(fresh_name)
    assert isinstance(made, str) and api.experiment_id(fresh_name) == made
    assert mlflow.MlflowClient(uri).get_experiment(made).tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_deleted_experiment_says_how_to_restore_it(uri: str, api: MlflowApi, fresh_name: str) -> None:
    experiment = api.experiment_id(fresh_name)
    mlflow.MlflowClient(uri, uri).delete_experiment(experiment)
    with pytest.raises(RegistryError, match=f"mlflow experiments restore --experiment-id {experiment}"):
        api.experiment_id(fresh_name)


@pytest.mark.parametrize("value", ["plain", "it's a run", 'a "quoted" one', "manual__2024-01-01T00:00:00+00:00", "é%"])
def test_a_run_is_found_by_its_tag(api: MlflowApi, fresh_name: str, value: str) -> None:
    experiment = api.experiment_id(fresh_name)
    assert api.find_run(experiment, "mlops.run", value) is None
    made = api.create_run(experiment, "a run", {"mlops.run": value})
    assert api.find_run(experiment, "mlops.run", value) == made
    assert api.find_run(experiment, "mlops.run", "another") is None


def test_of_two_runs_with_a_tag_the_older_is_found(api: MlflowApi, fresh_name: str) -> None:
    experiment = api.experiment_id(fresh_name)
    first = api.create_run(experiment, "a run", {"mlops.run": "same"})
    time.sleep(0.01)
    api.create_run(experiment, "a run", {"mlops.run": "same"})
    assert api.find_run(experiment, "mlops.run", "same") == first


def test_what_was_logged_is_read_back(api: MlflowApi, run: str) -> None:
    api.log(run, metrics={"auc": 0.5}, params={"depth": "3"}, tags={"note": "a"})
    api.log(run, metrics={"auc": 0.75})
    found = api.logged(run)
    assert (found.params, found.metrics, found.tags["note"]) == ({"depth": "3"}, {"auc": 0.75}, "a")


@pytest.mark.parametrize("name", ["card.html", "a folder/ü + ä & 'b' [c] (d)=e;f@g,h~i!$.md"])
def test_a_text_is_an_artifact_and_takes_the_place_of_the_one_before(
    uri: str, api: MlflowApi, run: str, name: str, tmp_path: Path
) -> None:
    for text in ("first, and longer", "<b>é</b>"):
        api.log_text(run, name, text)
        client = mlflow.MlflowClient(uri, uri)
        assert Path(client.download_artifacts(run, name, str(tmp_path))).read_text(encoding="utf-8") == text


def test_a_file_comes_back_as_it_was_logged(api: MlflowApi, run: str, tmp_path: Path) -> None:
    sent = tmp_path / "sent.bin"
    for content in (os.urandom(3_000_000), b""):
        sent.write_bytes(content)
        api.log_file(run, "of a model/ü & 'b' [c] (d)=e;f.bin", sent)
        found = api.fetch(run, "of a model/ü & 'b' [c] (d)=e;f.bin", tmp_path / "here")
        assert found == tmp_path / "here" / "ü & 'b' [c] (d)=e;f.bin"
        assert found.read_bytes() == content


def test_an_artifact_that_is_not_there_is_not_found(api: MlflowApi, run: str, tmp_path: Path) -> None:
    for of in (run, "0" * 32):
        with pytest.raises(ModelNotFoundError, match=r"not there|not found") as caught:
            api.fetch(of, "mlops/model.json", tmp_path)
        assert not caught.value.retryable
    assert list(tmp_path.iterdir()) == []


def test_a_logged_model_comes_with_its_folders(
    uri: str, api: MlflowApi, fresh_name: str, run: str, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    (made / "code" / "team").mkdir(parents=True)
    for name in ("MLmodel", "code/team/ä b.py", "code/x.py"):
        (made / name).write_text(name)
    client = mlflow.MlflowClient(uri, uri)
    logged = client.create_logged_model(api.experiment_id(fresh_name), name="model", source_run_id=run)
    with pointed_at(uri):
        client.log_model_artifacts(logged.model_id, str(made))
    client.finalize_logged_model(logged.model_id, "READY")

    here = api.fetch_model(logged.model_uri, tmp_path / "here")

    found = {str(file.relative_to(here)): file.read_text() for file in here.rglob("*") if file.is_file()}
    # MLflow's client puts a file of its own beside them.
    assert found.items() >= {name: name for name in ("MLmodel", "code/team/ä b.py", "code/x.py")}.items()
    with pytest.raises(ModelNotFoundError, match="the model models:/m-0 is not there"):
        api.fetch_model("models:/m-0", tmp_path / "none")


@pytest.mark.parametrize(
    "name",
    ["a%2Fb.md", "100%.md", "a#b.md", "why?.md", "a\\b.md", "../a.md", "a/../b.md", "/a.md", "a//b.md", "", "a\n"],
)
def test_a_name_that_mlflow_would_refuse_or_change_is_refused_at_once(api: MlflowApi, run: str, name: str) -> None:
    with pytest.raises(RegistryError, match="an artifact cannot be named .*; allowed: FOLDER/FILE") as caught:
        api.log_text(run, name, "text")
    assert not caught.value.retryable


def test_what_is_logged_is_there(uri: str, api: MlflowApi, run: str) -> None:
    api.log(run, metrics={"auc": 0.75}, params={"depth": "3"}, tags={"note": "a\nb"})
    api.end_run(run, "FINISHED")
    found = mlflow.MlflowClient(uri, uri).get_run(run)
    assert found.data.metrics == {"auc": 0.75}
    assert found.data.params == {"depth": "3"}
    assert found.data.tags["note"] == "a\nb"
    assert found.info.status == "FINISHED"


def test_more_than_mlflow_takes_at_once_is_logged_whole(uri: str, api: MlflowApi, run: str) -> None:
    metrics = {f"m{index}": float(index) for index in range(1234)}
    texts = {f"p{index}": "x" for index in range(150)}
    api.log(run, metrics=metrics, params=texts, tags=texts)
    found = mlflow.MlflowClient(uri, uri).get_run(run).data
    assert (found.metrics, found.params) == (metrics, texts)
    assert texts.items() <= found.tags.items()


def test_a_model_may_be_made_twice(api: MlflowApi, fresh_name: str) -> None:
    api.create_model(fresh_name)
    api.create_model(fresh_name)
    assert api.aliases(fresh_name) == {}


def test_versions_are_strings_and_count_up(uri: str, api: MlflowApi, fresh_name: str, run: str) -> None:
    api.create_model(fresh_name)
    experiment = api.experiment_id(fresh_name)
    for number in range(1, 12):
        made = api.create_version(
            fresh_name, logged_model(uri, experiment, run), run, {"digest": f"{number}", "kind": "toy"}
        )
        assert made.version == str(number)
    found = api.versions_tagged(fresh_name, "kind", "toy")
    assert [version.version for version in found] == [str(number) for number in range(1, 12)]
    assert [version.tags["digest"] for version in found] == [str(number) for number in range(1, 12)]
    assert [version.version for version in api.versions_tagged(fresh_name, "digest", "7")] == ["7"]
    assert api.versions_tagged(fresh_name, "digest", "12") == []


def test_a_version_is_read_and_described(api: MlflowApi, fresh_name: str, run: str, version: Version) -> None:
    api.tag_version(fresh_name, "1", {"mlops.verdict": "ok", "more": "é"})
    api.describe_version(fresh_name, "1", "It is better.")
    found = api.version(fresh_name, "1")
    assert (found.model, found.version, found.run_id) == (fresh_name, "1", run)
    assert found.source.startswith("models:/m-")
    assert found.tags == {"digest": "x", "mlops.verdict": "ok", "more": "é"}


def test_aliases_are_set_moved_and_removed(api: MlflowApi, fresh_name: str, version: Version) -> None:
    api.set_alias(fresh_name, "champion", "1")
    api.set_alias(fresh_name, "challenger", "1")
    assert api.aliases(fresh_name) == {"champion": "1", "challenger": "1"}
    api.set_alias(fresh_name, "challenger", None)
    api.set_alias(fresh_name, "challenger", None)
    assert api.aliases(fresh_name) == {"champion": "1"}


def test_what_is_not_there_is_not_found(api: MlflowApi, fresh_name: str, version: Version) -> None:
    assert api.aliases(f"no-{fresh_name}") == {}
    for model, number in ((fresh_name, "7"), (f"no-{fresh_name}", "1")):
        with pytest.raises(ModelNotFoundError):
            api.version(model, number)
        with pytest.raises(ModelNotFoundError):
            api.tag_version(model, number, {"a": "b"})
        with pytest.raises(ModelNotFoundError):
            api.set_alias(model, "champion", number)


def test_what_the_registry_refuses_is_no_matter_for_a_retry(api: MlflowApi, run: str) -> None:
    with pytest.raises(RegistryError) as caught:
        api.log(run, tags={"": "an empty name"})
    assert not caught.value.retryable


def test_a_server_that_is_down_is_said_quickly_and_may_be_tried_again() -> None:
    started = time.monotonic()
    with pytest.raises(RegistryUnreachableError, match="does not answer") as caught:
        mlflow_api(f"http://127.0.0.1:{free_port()}").experiment_id("e")
    assert caught.value.retryable and time.monotonic() - started < 5


def test_a_number_that_is_none_is_not_taken_for_a_server_that_is_down(mlflow_server: str, fresh_name: str) -> None:
    api = mlflow_api(mlflow_server)
    run = api.create_run(api.experiment_id(fresh_name), "a run", {})
    with pytest.raises(RegistryError, match="log-batch") as caught:
        api.log(run, metrics={"effect": float("nan")})
    assert not caught.value.retryable


def test_a_tracking_uri_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="cannot be used"):
        mlflow_api(f"nonsense-{uuid.uuid4().hex}://{tmp_path}").experiment_id("e")


class Hostile(RestService):
    """An MLflow server that names a folder of a model ``..``, with a file in it."""

    @route("GET", "api/2.0/mlflow/logged-models/{model}")
    def model(self, asked: Asked, model: str) -> Any:
        return {"model": {"info": {"artifact_uri": "mlflow-artifacts:/m"}}}

    @route("GET", "api/2.0/mlflow-artifacts/artifacts")
    def listing(self, asked: Asked) -> Any:
        above = asked.query["path"].endswith("/..")
        return {"files": [{"path": "m/../beside"} if above else {"path": "m/..", "is_dir": True}]}

    @route("GET", "api/2.0/mlflow-artifacts/artifacts/{path=**}")
    def content(self, asked: Asked, path: str) -> Any:
        return {"written": "where nobody asked for it"}


def test_nothing_is_written_beside_the_folder_whatever_a_server_calls_its_files(tmp_path: Path) -> None:
    with Hostile() as server, pytest.raises(RegistryError, match=r"names a file of it 'm/\.\.'"):
        mlflow_api(server.url).fetch_model("models:/m-1", tmp_path / "model")
    assert list(tmp_path.rglob("beside")) == []
