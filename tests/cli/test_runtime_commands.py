"""``airflow-mlops runtime``, and ``run`` with an interpreter of its own, as a person uses them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests import toy
from tests.forked import command
from tests.toy import World


def test_build_ls_and_prune(tmp_path: Path, old_sklearn: str) -> None:
    toy.declare(tmp_path, "old", runtime={"requirements": old_sklearn})
    toy.declare(tmp_path, "given", runtime={"python": sys.executable})
    toy.declare(tmp_path, "plain")

    built = command("runtime", "build", "old.yaml", "given.yaml", "plain.yaml", cwd=tmp_path)
    listed = command("runtime", "ls", cwd=tmp_path)
    kept = command("runtime", "prune", cwd=tmp_path)
    nothing = command("runtime", "ls", cwd=tmp_path, AIRFLOW_MLOPS_RUNTIMES=str(tmp_path / "empty"))
    wrong = command("runtime", "prune", "--unused", "long", cwd=tmp_path)

    assert built.returncode == 0, built.stderr
    old, given, plain = built.stdout.splitlines()
    folder = old.removeprefix("old: ").removesuffix("/bin/python")
    assert given == f"given: {sys.executable}" and plain == "plain: the worker's own interpreter"
    assert folder in listed.stdout and "scikit-learn==1.6" in listed.stdout
    assert kept.stdout.startswith("removed 0 environments") and Path(folder).is_dir()
    assert nothing.stdout == f"no environment was built in {tmp_path}/empty/environments yet\n"
    assert wrong.returncode == 1 and "--unused: 'long' is not a duration" in wrong.stderr


def test_run_tunes_in_an_interpreter_of_its_own(world: World) -> None:
    toy.months(world.folder, ("2024-01",))
    name = world.registry.model
    space = {"C": {"low": 0.01, "high": 10.0, "log": True}}
    toy.declare(world.folder, name, tune={"space": space, "trials": 3}, runtime={"python": sys.executable})
    places = ("--registry", world.registry.uri, "--store", world.store)

    done = command("run", f"{name}.yaml", *places, "--json", cwd=world.folder)
    again = command("run", f"{name}.yaml", *places, cwd=world.folder)

    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout)["stages"]
    assert stages["tune"]["metrics"]["trials"] == 3
    found = json.loads(Path(stages["tune"]["outputs"]["tuned"]["uri"]).read_text())["params"]
    logged = toy.registry_of(world.store, world.registry).api.logged(stages["train"]["info"]["run_id"])
    assert logged.params["model.C"] == str(found["C"])
    assert "tune            cached" in again.stdout and "train           cached" in again.stdout
