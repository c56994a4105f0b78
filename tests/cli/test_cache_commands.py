"""``airflow-mlops cache`` and reruns by ``airflow-mlops run``, as a person uses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import toy
from tests.forked import command
from tests.toy import World

FEATURES = "def build(rows):\n    return rows[['amount', 'member']]\n"


@pytest.fixture
def trained(world: World) -> tuple[World, str, list[str]]:
    """A world where the pipeline ran once, its file, and the options that name store and registry."""
    toy.months(world.folder, ("2024-01",))
    toy.package(world.folder, "team", FEATURES)
    toy.declare(world.folder, world.registry.model, prepare={"features": "team.features:build"})
    file, places = f"{world.registry.model}.yaml", ["--store", world.store, "--registry", world.registry.uri]
    assert command("run", file, *places, cwd=world.folder).returncode == 0
    return world, file, places


def summary(*words: str, cwd: Path) -> dict[str, Any]:
    done = command(*words, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def test_a_rerun_says_what_was_cached_and_no_cache_does_it_again(trained: tuple[World, str, list[str]]) -> None:
    world, file, places = trained
    again = command("run", file, *places, cwd=world.folder)
    lines = [line.split()[:2] for line in again.stdout.splitlines()]
    for stage in ("extract", "validate_data", "prepare", "train", "evaluate"):
        assert [stage, "cached"] in lines, again.stdout
    assert "hit: same code, params, inputs and libraries as run cli/" in again.stdout
    assert "version 1 is the champion already" in again.stdout
    assert len(toy.state_of(world)["ledger"]) == 1
    anew = summary("run", file, *places, "--no-cache", cwd=world.folder)
    assert not any("cache" in stage["info"] for stage in anew["stages"].values())
    assert (
        anew["stages"]["train"]["info"]["run_id"]
        != json.loads(next(Path(world.store, "cache", world.registry.model, "train").iterdir()).read_text())["outcome"][
            "info"
        ]["run_id"]
    )


def test_ls_explain_and_prune(trained: tuple[World, str, list[str]]) -> None:
    world, file, places = trained
    store = places[:2]
    listed = command("cache", "ls", *store, cwd=world.folder)
    rows = [line.split() for line in listed.stdout.splitlines()]
    assert rows[0][:3] == ["PIPELINE", "STAGE", "KEY"]
    # An evaluation is kept for two champions.
    assert sorted(row[1] for row in rows[1:]) == [
        "evaluate",
        "evaluate",
        "extract",
        "prepare",
        "train",
        "validate_data",
    ]
    assert command("cache", "ls", *store, "--pipeline", "other", cwd=world.folder).stdout.count("\n") == 1

    kept = sorted(Path(world.store).rglob("*"))
    explained = command("cache", "explain", file, *places, cwd=world.folder)
    assert explained.returncode == 0, explained.stderr
    said = dict(line.split(maxsplit=1) for line in explained.stdout.splitlines()[1:])
    assert all(said[stage].startswith("hit") for stage in ("extract", "validate_data", "prepare", "train", "evaluate"))
    assert said["register"] == "always runs: it does nothing twice by itself"
    assert sorted(Path(world.store).rglob("*")) == kept

    toy.package(world.folder, "team", FEATURES + "# mended\n")
    said = dict(
        line.split(maxsplit=1)
        for line in command("cache", "explain", file, *places, cwd=world.folder).stdout.splitlines()[1:]
    )
    assert said["validate_data"].startswith("hit")
    assert said["prepare"].startswith("miss: code changed: team/features.py (since run cli/")
    assert said["train"] == "runs, or hits if prepare gives what it gave before"

    dry = command("cache", "prune", *store, "--older-than", "0s", "--dry-run", cwd=world.folder)
    assert dry.stdout.startswith("would remove 6 entries, 0 records of runs and 0 artifacts"), dry.stderr
    done = command("cache", "prune", *store, "--older-than", "0s", cwd=world.folder)
    assert done.stdout.startswith("removed 6 entries")
    assert command("cache", "ls", *store, cwd=world.folder).stdout.count("\n") == 1
    rerun = command("run", file, *places, cwd=world.folder)
    assert rerun.returncode == 0 and "cached" not in rerun.stdout, "all of it still works, and is done anew"


def test_mistakes_are_told(tmp_path: Path) -> None:
    wrong = command("cache", "prune", "--older-than", "soon", cwd=tmp_path)
    assert wrong.returncode == 1 and "--older-than: 'soon' is not a duration" in wrong.stderr
    assert command("cache", cwd=tmp_path).returncode == 2
    assert command("cache", "ls", cwd=tmp_path).stdout.startswith("PIPELINE")
