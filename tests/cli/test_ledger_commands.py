"""``airflow-mlops history``, ``rollback`` and ``registry check``: the ledger at a terminal."""

from __future__ import annotations

import getpass
import json
import re
from typing import Any

import pytest

from airflow_mlops.call.dispatch import run
from airflow_mlops.cli.main import main
from airflow_mlops.registry import ModelRegistry
from tests import toy
from tests.toy import World


@pytest.fixture
def three(world: World) -> World:
    """Three promotions."""
    champion = None
    for name in "abc":
        version = toy.make_version(world, f"sha256:{name}", name)
        run(toy.make_promotion(world, version, champion, f"train/{name}"))
        champion = version.uri.rpartition("/")[2]
    return world


def ask(world: World, command: str, *arguments: str) -> int:
    registry = () if command == "history" else ("--registry", world.registry.uri)
    words = command.split()
    return main([*words, world.registry.model, *arguments, "--store", world.store, *registry])


def aliases(world: World) -> dict[str, str]:
    return toy.registry_of(world.store, world.registry).api.aliases(world.registry.model)


def test_history_tells_every_entry_with_why_and_by_whom(three: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(three, "rollback", "--reason", "wrong prices") == 0
    capsys.readouterr()
    assert ask(three, "history") == 0
    told = capsys.readouterr().out
    entries = toy.registry_of(three.store, three.registry).ledger.entries()
    assert [line.split()[0] for line in told.splitlines() if line.startswith("#")] == ["#1", "#2", "#3", "#4"]
    for part in (
        "promotion  version 1: champion none -> 1\n  it is better\n  by train/a\n",
        f"  verdict {entries[0].decision}\n",
        f"rollback  version 2: champion 3 -> 2\n  wrong prices\n  by {getpass.getuser()} in cli/rollback-",
    ):
        assert part in told, (part, told)


def test_history_as_json_is_the_ledger_itself(three: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(three, "history", "--json") == 0
    told: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    entries = toy.registry_of(three.store, three.registry).ledger.entries()
    assert [type(entries[0]).model_validate(each) for each in told] == entries


def test_two_rollbacks_go_back_two_steps(three: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(three, "rollback", "--reason", "wrong prices") == 0
    assert "version 2 is the champion again, after 3: wrong prices" in capsys.readouterr().out
    assert aliases(three) == {"champion": "2", "previous": "1"}
    assert ask(three, "rollback", "--reason", "wrong still") == 0
    assert aliases(three) == {"champion": "1"}
    assert ask(three, "rollback", "--reason", "once more") == 1
    assert "has no champion before 1 to go back to" in capsys.readouterr().err


def test_a_rollback_to_a_version(three: World) -> None:
    assert ask(three, "rollback", "--to", "1", "--reason", "wrong prices") == 0
    assert aliases(three) == {"champion": "1"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--reason", " "), "a rollback needs a reason"),
        (("--reason", "r", "--to", "9"), "version 9 of .* never was the champion; allowed: 1, 2, 3"),
        (("--reason", "r", "--to", "3"), "is the champion already"),
    ],
)
def test_a_rollback_that_cannot_be_says_why_and_changes_nothing(
    three: World, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    before = toy.state_of(three)
    assert ask(three, "rollback", *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line)
    assert toy.state_of(three) == before


def test_a_model_without_a_ledger_is_told_with_those_that_have_one(
    three: World, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["history"], ["rollback", "--reason", "r"], ["registry", "check"]):
        assert main([*command, "nobody", "--store", three.store]) == 1
        assert (
            f"has no ledger of 'nobody'; allowed: {three.registry.model}; try: --store URI" in capsys.readouterr().err
        )


def test_check_tells_what_differs_and_repairs_it(three: World, capsys: pytest.CaptureFixture[str]) -> None:
    registry: ModelRegistry = toy.registry_of(three.store, three.registry)
    model = three.registry.model
    assert ask(three, "registry check") == 0
    assert capsys.readouterr().out == f"{model}: MLflow says what the ledger says\n"
    registry.api.set_alias(model, "champion", "1")
    assert ask(three, "registry check") == 1
    assert "the alias 'champion' names 1, and the ledger 3; try: airflow-mlops registry" in capsys.readouterr().out
    assert aliases(three)["champion"] == "1"
    assert ask(three, "registry check", "--repair") == 0
    assert capsys.readouterr().out == f"{model}: put right: the alias 'champion' names 1, and the ledger 3\n"
    assert aliases(three) == {"champion": "3", "previous": "2"}


def test_check_cannot_repair_a_model_that_is_another(three: World, capsys: pytest.CaptureFixture[str]) -> None:
    registry = toy.registry_of(three.store, three.registry)
    registry.api.tag_version(three.registry.model, "3", {"mlops.model_digest": "sha256:forged"})
    assert ask(three, "registry check", "--repair", "--json") == 1
    (found,) = json.loads(capsys.readouterr().out)[three.registry.model]["differences"]
    assert "sha256:forged" in found["what"] and found["repairable"] is False


def test_without_options_airflow_is_asked_where_store_and_mlflow_are(
    three: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("AIRFLOW__AIRFLOW_MLOPS__STORE", three.store)
    connection = {"conn_type": "mlflow", "host": three.registry.uri, "login": "ann", "password": "s3cret-of-ann"}
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps(connection))
    assert main(["rollback", three.registry.model, "--reason", "wrong prices"]) == 0
    assert main(["registry", "check"]) == 0
    assert main(["history", three.registry.model]) == 0
    told = capsys.readouterr()
    assert aliases(three)["champion"] == "2"
    assert "s3cret-of-ann" not in told.out + told.err


@pytest.mark.parametrize("command", ["rollback", "registry check", "serve", "run"])
def test_a_registry_with_a_password_in_its_address_is_refused_and_not_repeated(
    three: World, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would stand in Calls, in the store, and on the server's page."""
    secret = "pa55word"
    where = three.registry.uri.replace("://", f"://ann:{secret}@")
    toy.declare(three.folder, three.registry.model)
    words = [*command.split(), three.registry.model, "--store", three.store]
    if command == "run":
        words = ["run", str(three.folder / f"{three.registry.model}.yaml"), "--store", three.store]
    words += ["--reason", "r"] if command == "rollback" else []
    before = toy.state_of(three)
    assert main([*words, "--registry", where]) == 1
    said = capsys.readouterr()
    assert "--registry holds a password; try: MLFLOW_TRACKING_USERNAME" in said.err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", where)
    assert main(words) == 1
    said = capsys.readouterr()
    assert "MLFLOW_TRACKING_URI holds a password" in said.err and secret not in said.out + said.err
    assert toy.state_of(three) == before
