"""What stands in docker/ is sound as far as it can be told without a container engine."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from packaging.requirements import Requirement

import airflow_mlops
from benchmarks.native import DOCKER, read_compose

REPOSITORY = DOCKER.parent
COMPOSE = read_compose({})
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = DOCKER / "Dockerfile"
PINNED = re.compile(r"^[\w./-]+:\d+(\.\d+)+([\w.-]*)$")
ONCE = {"airflow-init"}
"""What ends by itself, and others wait for."""


def test_compose_keeps_to_the_specification() -> None:
    assert set(PyCompose.from_json(json.dumps(COMPOSE)).services) == set(SERVICES)
    wrong = {"services": {"one": {"image": "one:1.0", "healthchek": {"test": ["CMD", "true"]}}}}
    with pytest.raises(ValueError, match="healthchek"):
        PyCompose.from_json(json.dumps(wrong))


def test_compose_is_what_docker_reads() -> None:
    docker = shutil.which("docker")
    plugin = docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False)
    if not plugin or plugin.returncode:
        pytest.skip("there is no docker with its plugin compose on this machine")
    done = subprocess.run(
        [docker, "compose", "--file", str(DOCKER / "compose.yaml"), "--profile", "serving", "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_watched_limited_and_nobodys_root(name: str) -> None:
    service = SERVICES[name]
    assert PINNED.match(service["image"]), service["image"]
    user, _, _ = str(service["user"]).partition(":")
    assert user.isdigit() and int(user) > 0
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    if name in ONCE:
        assert service["restart"] == "no"
        waiting = [
            each["depends_on"][name]["condition"] for each in SERVICES.values() if name in each.get("depends_on", ())
        ]
        assert set(waiting) == {"service_completed_successfully"}
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:"), "what is published is for this machine only"


def test_everything_that_is_named_is_declared_and_everything_declared_is_used() -> None:
    def named(key: str) -> set[str]:
        return {each for service in SERVICES.values() for each in service.get(key, ())}

    mounts = {mount.split(":")[0] for mount in named("volumes")}
    assert {mount for mount in mounts if not mount.startswith((".", "/"))} == set(COMPOSE["volumes"])
    for source in mounts - set(COMPOSE["volumes"]):
        assert (DOCKER / source).exists()
    assert named("networks") == set(COMPOSE["networks"])
    assert named("secrets") == set(COMPOSE["secrets"])
    assert named("depends_on") <= set(SERVICES)
    assert COMPOSE["networks"]["backend"] == {"internal": True}
    assert "backend" not in SERVICES["model-server"]["networks"]


def test_secrets_come_by_file_and_a_service_has_those_that_it_reads(tmp_path: Path) -> None:
    made = subprocess.run([sys.executable, str(DOCKER / "make_secrets.py"), str(tmp_path / "s")], check=True)
    assert made.returncode == 0
    values = {file.name: file.read_text() for file in (tmp_path / "s").iterdir()}
    assert set(values) == set(COMPOSE["secrets"])
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
    assert all(len(value) >= 24 and value == value.strip() for value in values.values())
    # Once more changes none.
    subprocess.run([sys.executable, str(DOCKER / "make_secrets.py"), str(tmp_path / "s")], check=True)
    assert {file.name: file.read_text() for file in (tmp_path / "s").iterdir()} == values

    scripts = {"postgres": "postgres/databases.sh", "airflow-init": "init.sh"}
    for name, service in SERVICES.items():
        text = json.dumps([service.get("environment", {}), service.get("command", []), service.get("healthcheck", {})])
        if name in scripts:
            script = (DOCKER / scripts[name]).read_text()
            text += "".join(script.replace("${name}", role) for role in ("airflow", "celery", "mlflow"))
        read = set(re.findall(r"/run/secrets/(\w+)", text))
        assert read == set(service.get("secrets", ())), name
        for key, value in service.get("environment", {}).items():
            hidden = re.search(r"(PASSWORD|SECRET|KEY|TOKEN|CONN)$", key) and not key.startswith("AIRFLOW_CONN_")
            assert not hidden, f"{name}: {key}"
            assert not re.search(r"://[^/\s]*:[^%/\s]+@", str(value)), f"{name}: {key} holds a password"


def test_the_image_is_what_the_repository_pins() -> None:
    text = DOCKERFILE.read_text()
    images = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(set(images)) == 1
    assert PINNED.match(images[0])
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    python = re.search(r":(\d+\.\d+)\.", images[0])
    assert python and f"Programming Language :: Python :: {python[1]}" in project["classifiers"]
    uv = re.search(r"uv==(\S+)", text)
    assert uv and f"UV_VERSION := {uv[1]}\n" in (REPOSITORY / "Makefile").read_text()
    assert "--constraints requirements.lock" in text
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["50000:0"]
    own = {service["image"] for service in SERVICES.values() if "build" in service}
    assert own == {f"airflow-mlops:{airflow_mlops.__version__}"}
    # What the settings name is installed by one of the extras that the image is made with.
    extras = [Requirement(each).name for each in project["optional-dependencies"]["production"]]
    assert {"apache-airflow-providers-celery", "apache-airflow-providers-fab", "asyncpg", "psycopg2-binary"} <= set(
        extras
    )


def test_the_image_gets_every_file_that_it_is_made_of() -> None:
    """The context is closed but for what the file beside it lets in."""
    ignored = DOCKER / "Dockerfile.dockerignore"
    let_in = [line[1:] for line in ignored.read_text().splitlines() if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    wanted = {name for line in copied for name in line.split()}
    assert wanted == set(let_in)
    for name in wanted:
        assert (REPOSITORY / name).exists()


@pytest.mark.parametrize("file", sorted(DOCKER.glob("*Dockerfile")), ids=lambda file: file.name)
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([str(hadolint), str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_hadolint_looks(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python:latest\nRUN cd /tmp && pip install airflow\n")
    hadolint = Path(sys.executable).parent / "hadolint"
    assert subprocess.run([str(hadolint), str(wrong)], capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("file", ["init.sh", "postgres/databases.sh"])
def test_scripts_are_whole(file: str) -> None:
    subprocess.run(["bash", "-n", str(DOCKER / file)], check=True)


@pytest.fixture(scope="module")
def options() -> tuple[set[str], set[str]]:
    """Airflow's options as environment variables: all of them, and those that may be asked of a command."""
    from airflow.configuration import conf
    from airflow.providers_manager import ProvidersManager

    ProvidersManager().initialize_providers_configuration()
    known = {
        f"AIRFLOW__{section}__{option}".upper()
        for section, described in conf.configuration_description.items()
        for option in described["options"]
    }
    return known, {f"AIRFLOW__{section}__{option}".upper() for section, option in conf.sensitive_config_values}


def test_settings_are_options_that_airflow_has(options: tuple[set[str], set[str]]) -> None:
    """A misspelt setting is one that Airflow never reads, and never complains of."""
    known, secret = options
    for name, service in SERVICES.items():
        for key in service.get("environment", {}):
            if key.startswith("AIRFLOW__"):
                assert key.removesuffix("_CMD") in (secret if key.endswith("_CMD") else known), f"{name}: {key}"


def kubernetes() -> list[list[Any]]:
    """The YAML of the page about Kubernetes, block by block."""
    text = (REPOSITORY / "docs" / "howto" / "kubernetes.md").read_text()
    return [
        list(yaml.safe_load_all(block)) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


def test_the_charts_values_say_what_compose_says(options: tuple[set[str], set[str]]) -> None:
    (values,) = kubernetes()[0]
    assert {f"AIRFLOW__{s}__{o}".upper() for s, each in values["config"].items() for o in each} <= options[0]
    settings = SERVICES["airflow-worker"]["environment"]
    assert values["executor"] == settings["AIRFLOW__CORE__EXECUTOR"]
    assert values["config"]["core"]["auth_manager"] == settings["AIRFLOW__CORE__AUTH_MANAGER"]
    warm = json.loads(settings["AIRFLOW__CELERY__EXTRA_CELERY_CONFIG"])
    assert json.loads(values["config"]["celery"]["extra_celery_config"]) == warm
    slots = values["workers"]["replicas"] * values["config"]["celery"]["worker_concurrency"]
    assert values["config"]["core"]["parallelism"] == slots
    assert values["images"]["airflow"]["tag"] == airflow_mlops.__version__
    (mount,), (volume,) = values["volumeMounts"], values["volumes"]
    assert mount["name"] == volume["name"]
    assert mount["mountPath"] == values["config"]["airflow_mlops"]["store"]


def test_the_model_server_of_kubernetes_is_one_that_starts() -> None:
    from airflow_mlops.cli.main import parser_of_commands

    deployment, service = kubernetes()[1]
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    program, *arguments = container["args"]
    assert program == "airflow-mlops"
    said = parser_of_commands().parse_args(arguments)
    assert (said.port, said.host) == (container["ports"][0]["containerPort"], "0.0.0.0")
    assert service["spec"]["ports"][0]["targetPort"] == said.port
    assert service["spec"]["selector"] == pod["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["spec"]["volumes"]}
    assert any(said.api_key_file.startswith(each["mountPath"]) for each in container["volumeMounts"])


def test_workers_have_slots_for_what_runs_at_once() -> None:
    worker = SERVICES["airflow-worker"]
    slots = worker["deploy"]["replicas"] * int(worker["environment"]["AIRFLOW__CELERY__WORKER_CONCURRENCY"])
    assert int(worker["environment"]["AIRFLOW__CORE__PARALLELISM"]) == slots


def test_what_workers_import_beforehand_is_there() -> None:
    import importlib.util

    asked = json.loads(SERVICES["airflow-worker"]["environment"]["AIRFLOW__CELERY__EXTRA_CELERY_CONFIG"])
    for module in asked["imports"]:
        assert importlib.util.find_spec(module), module
