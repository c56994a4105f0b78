"""The commands as a person or a CI job runs them: what they print where, how they exit, what they leave behind."""

from __future__ import annotations

import getpass
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_mlops.spec import load_schema
from tests import toy
from tests.forked import command, printed
from tests.toy import World

COLUMNS = """\
columns:
  id: {type: string}
  at: {type: timestamp}
  amount: {type: number}
  age: {type: number}
  region: {type: string}
  member: {type: boolean}
  y: {type: integer}
"""
BROKEN = """
def build(rows):
    raise RuntimeError("the team is still at it")
"""
MENDED = """
def build(rows):
    return rows[["amount", "member"]]
"""


def declared(world: World, **sections: Any) -> str:
    """Write the toy pipeline into the world's folder; the name of its file."""
    toy.months(world.folder)
    toy.declare(world.folder, world.registry.model, **sections)
    return f"{world.registry.model}.yaml"


def test_run_tells_each_stage_and_promotes_in_a_real_registry(world: World) -> None:
    done = command("run", declared(world), "--registry", world.registry.uri, "--store", world.store, cwd=world.folder)

    assert done.returncode == 0, done.stderr
    told = [line.split()[:2] for line in done.stdout.splitlines() if line.startswith("  ")]
    stages = ("extract", "validate_data", "prepare", "train", "register", "evaluate", "validate_model", "promote")
    assert [stage for stage, *_ in told if stage in stages] == list(stages)
    assert "window 2024-03" in done.stdout and "version 1" in done.stdout
    assert toy.registry_of(world.store, world.registry).ledger.champion() == "1"


def test_run_waits_for_an_approval_and_goes_on_with_it(world: World) -> None:
    where = ("--registry", world.registry.uri, "--store", world.store)
    done = command("run", declared(world, approval={}), *where, cwd=world.folder)
    assert done.returncode == 0, done.stderr
    assert "the champion stays: version 1 waits for a person's approval" in done.stdout
    (again,) = (line.strip() for line in done.stdout.splitlines() if line.endswith(" --approve"))
    ledger = toy.registry_of(world.store, world.registry).ledger
    assert ledger.entries() == []

    done = command(*shlex.split(again)[1:], cwd=world.folder)

    assert done.returncode == 0, done.stderr
    approval, promotion = ledger.entries()
    assert (approval.kind, approval.by, promotion.kind) == ("approval", getpass.getuser(), "promotion")


def test_run_with_json_prints_one_object_and_nothing_else(world: World) -> None:
    file = declared(world, validate_model={"min": {"roc_auc": 1.0}})

    done = command("run", file, "--json", "--window", "2024-01", "--registry", world.registry.uri, cwd=world.folder)

    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["status"], summary["window"], summary["error"]) == ("rejected", "2024-01", None)
    assert list(summary["stages"])[-1] == "validate_model"
    assert "roc_auc" in summary["stages"]["validate_model"]["verdict"]["reasons"][0]
    assert (world.folder / ".airflow-mlops" / "store").is_dir()


def test_run_without_a_server_keeps_everything_in_one_folder(tmp_path: Path) -> None:
    toy.months(tmp_path, ("2024-01",))
    toy.declare(tmp_path)

    done = command("run", "toy.yaml", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".airflow-mlops" / "mlflow.db").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "toy.yaml", ".airflow-mlops"}


def test_a_failed_run_ends_with_the_command_that_goes_on(world: World) -> None:
    toy.package(world.folder, "team", BROKEN)
    file = declared(world, prepare={"features": "team.features:build"})

    failed = command("run", file, "--registry", world.registry.uri, "--store", world.store, cwd=world.folder)

    assert failed.returncode == 1
    assert "the team is still at it" in failed.stderr and "Traceback" not in failed.stderr
    *_, resume = failed.stderr.strip().splitlines()
    assert toy.registry_of(world.store, world.registry).ledger.entries() == []

    toy.package(world.folder, "team", MENDED)
    resumed = command(*shlex.split(resume)[1:], cwd=world.folder)

    assert resumed.returncode == 0, resumed.stderr
    status = dict(line.split()[:2] for line in resumed.stdout.splitlines() if line.startswith("  "))
    assert (status["extract"], status["validate_data"], status["prepare"]) == ("reused", "reused", "ok")
    assert toy.registry_of(world.store, world.registry).ledger.champion() == "1"


def test_a_run_goes_on_with_its_own_window_and_an_unknown_one_with_nothing(world: World) -> None:
    toy.package(world.folder, "team", BROKEN)
    file = declared(world, prepare={"features": "team.features:build"})
    places = ("--registry", world.registry.uri, "--store", world.store)
    failed = command("run", file, *places, "--window", "2024-02", cwd=world.folder)
    run = failed.stderr.split()[-1]

    unknown = command("run", file, *places, "--resume", "soon", cwd=world.folder)
    other = command("run", file, *places, "--resume", run, "--window", "2024-03", cwd=world.folder)
    toy.package(world.folder, "team", MENDED)
    resumed = command("run", file, *places, "--resume", run, cwd=world.folder)

    assert unknown.returncode == other.returncode == 1
    assert f"no run 'soon' in {world.store}; allowed: {run} (window 2024-02); try: leave" in unknown.stderr
    assert f"run {run} (window 2024-02) is not of '2024-03'" in other.stderr
    assert resumed.returncode == 0, resumed.stderr
    assert f"run {run}, window 2024-02" in resumed.stdout and "extract         reused" in resumed.stdout


def test_a_run_that_was_trained_is_not_trained_with_other_params(world: World) -> None:
    file = declared(world, train={"params": {"C": 1.0}})
    places = ("--registry", world.registry.uri, "--store", world.store)
    done = command("run", file, *places, cwd=world.folder)
    run = done.stdout.split("run ")[1].split(",")[0]
    declared(world, train={"params": {"C": 2.0}})

    resumed = command("run", file, *places, "--resume", run, cwd=world.folder)
    anew = command("run", file, *places, cwd=world.folder)

    assert resumed.returncode == 1
    assert "this run was trained with other params already: model.C was 1.0 and is 2.0; try: start a new run" in (
        resumed.stderr
    )
    assert anew.returncode == 0, anew.stderr


def test_a_run_that_did_nothing_is_run_again_and_not_resumed(tmp_path: Path) -> None:
    toy.months(tmp_path, ("2024-01",))
    toy.declare(tmp_path)
    (tmp_path / "data" / "2024-01.parquet").write_text("no parquet")

    done = command("run", "toy.yaml", cwd=tmp_path)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == ["run it again with:", "  airflow-mlops run toy.yaml --window 2024-01"]


def test_run_says_in_json_what_failed_and_how_to_go_on(tmp_path: Path) -> None:
    toy.months(tmp_path, ("2024-01",))
    toy.declare(tmp_path)

    done = command("run", "toy.yaml", "--json", "--registry", "http://127.0.0.1:9", cwd=tmp_path)

    assert done.returncode == 1
    summary = json.loads(done.stdout)
    assert summary["status"] == "failed"
    assert summary["error"]["type"] == "RegistryUnreachableError"
    assert summary["error"]["resume"].endswith("--registry http://127.0.0.1:9"), "nothing was done to go on with"


def test_run_never_imports_airflow(tmp_path: Path) -> None:
    toy.months(tmp_path, ("2024-01",))
    toy.declare(tmp_path)
    code = (
        "import json, sys\nfrom airflow_mlops.cli.main import main\nassert main(sys.argv[1:]) == 0\n"
        "print(json.dumps(sorted(name for name in sys.modules if name.split('.')[0] == 'airflow')))\n"
    )
    assert printed(code, "run", "toy.yaml", cwd=tmp_path) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "nowhere.yaml"), "nowhere.yaml: cannot be read"),
        (("run", "two.yaml"), "--pipeline one"),
        (("run", "two.yaml", "--pipeline", "three"), "has no pipeline 'three'; allowed: one, two"),
        (("run", "two.yaml", "--pipeline", "one", "--window", "soon"), "a key such as"),
        (("run", "two.yaml", "--pipeline", "one"), "no window of"),
        (("schema", "infer", "nowhere.parquet"), "nowhere.parquet"),
    ],
)
def test_a_wrong_word_is_answered_in_one_sentence(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    one, two = (toy.declare(tmp_path, name) and (tmp_path / f"{name}.yaml").read_text() for name in ("one", "two"))
    (tmp_path / "two.yaml").write_text(f"{one}---\n{two}")

    done = command(*words, cwd=tmp_path)

    assert done.returncode == 1
    assert said in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == "" and not (tmp_path / ".airflow-mlops" / "store" / "ledger").exists()


def test_lint_names_every_mistake_with_its_line(tmp_path: Path) -> None:
    toy.declare(tmp_path, "good")
    body = yaml.safe_load((tmp_path / "good.yaml").read_text())
    body |= {"name": "bad", "train": {"estimator": "sklearn.nowhere.Model"}, "evaluate": {"metrics": ["rocauc"]}}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(body, sort_keys=False))

    fine = command("lint", "good.yaml", cwd=tmp_path)
    wrong = command("lint", "good.yaml", "bad.yaml", cwd=tmp_path)

    assert (fine.returncode, fine.stdout) == (0, "1 file: ok\n")
    assert wrong.returncode == 1
    *problems, last = wrong.stdout.splitlines()
    assert last == f"2 files: {len(problems)} problems"
    for problem in problems:
        name, line, _ = problem.split(":", 2)
        assert name == "bad.yaml" and int(line) > 1
    assert any("sklearn.nowhere" in problem for problem in problems)


CHECKS = """
def one(rows): return rows["amount"] > 0
def two(rows, more): return rows["amount"] > more
three = 3
"""


def test_lint_holds_the_schema_against_its_code_and_the_declaration_against_the_schema(tmp_path: Path) -> None:
    toy.package(tmp_path, "team", CHECKS)
    names = ("features:one", "features:two", "features:three", "features:four", "nowhere:check")
    rules = [f"  - {{function: team.{name}}}\n" for name in names]
    (tmp_path / "schema.yaml").write_text(f"{COLUMNS}checks:\n{''.join(rules)}")
    toy.declare(
        tmp_path,
        data={"schema": "schema.yaml", "target": "why", "time": "age", "key": ["id", "num"], "drop": ["member"]},
        prepare={"split": {"by": "group", "group": "house"}},
        evaluate={"slices": ["regoin"], "fairness": ["sex"]},
        monitor={"data_drift": {"columns": ["amuont"]}},
    )
    done = command("lint", "toy.yaml", cwd=tmp_path)
    assert done.returncode == 1
    *problems, _ = done.stdout.splitlines()
    lines = (tmp_path / "toy.yaml").read_text().splitlines()
    found = {}
    for problem in problems:
        name, line, said = problem.split(":", 2)
        assert name == "toy.yaml"
        found[said.partition(": ")[2]] = lines[int(line) - 1].strip()
    missing = {"why": "target: why", "num": "- num", "house": "group: house", "regoin": "- regoin", "sex": "- sex"}
    for column, where in {**missing, "amuont": "- amuont"}.items():
        (said,) = [each for each in found if f"the data schema has no column {column!r}" in each]
        assert found[said] == where
    assert any("try: region" in said for said in found) and any("add it to schema.yaml" in said for said in found)
    (said,) = [each for each in found if "'age'" in each]
    assert found[said] == "time: age"
    assert said == (
        "the column 'age' is a number in the data schema, and no time; allowed: a timestamp or a date, as at; try: "
        "store it as one where the data is written, in CSV as 2024-05-26, and change its type in schema.yaml"
    )
    schema = tmp_path / "schema.yaml"
    checks = sorted(said.removeprefix(f"{schema}:") for said in found if said.startswith(str(schema)))
    first = len(COLUMNS.splitlines()) + 2
    assert [each.partition(":")[0] for each in checks] == [str(first + index) for index in (1, 2, 3, 4)]
    for part, said in zip(("two(rows, more)", "is int", "has no 'four'", "team.nowhere"), checks, strict=True):
        assert part in said
    assert len(problems) == 11

    schema.write_text(f"{COLUMNS}extra_columns: allow\n")
    toy.declare(tmp_path, data={"schema": "schema.yaml", "target": "y", "key": ["id", "num"]})
    assert command("lint", "toy.yaml", cwd=tmp_path).stdout == "1 file: ok\n"


def test_an_inferred_schema_fits_the_rows_it_was_inferred_from(tmp_path: Path) -> None:
    toy.months(tmp_path, ("2024-01", "2024-02"))
    toy.declare(tmp_path)

    infer = ("schema", "infer", "toy.yaml", "--out", "schemas/toy.yaml")
    wrote = command(*infer, cwd=tmp_path)

    assert wrote.returncode == 0 and "review it" in wrote.stderr
    printed = command("schema", "infer", "data/2024-02.parquet", cwd=tmp_path).stdout
    file = tmp_path / "schemas" / "toy.yaml"
    proposed = file.read_text()
    # A pipeline says what its key, its time and its target are, a bare file does not.
    assert {"unique:", "  column: at", "# the target", "# the key"} <= {
        part for line in proposed.splitlines() for part in (line, line[line.find("# ") :].partition(";")[0])
    }
    assert "unique:" not in printed and "freshness:" not in printed and "the target" not in printed
    assert "from 400 rows of 2024-02: review every line" in proposed
    printed = proposed
    file.write_text(f"{printed}# reviewed\n")
    again = command(*infer, cwd=tmp_path)
    assert again.returncode == 1 and "--force" in again.stderr and file.read_text().endswith("# reviewed\n")
    assert command(*infer, "--force", cwd=tmp_path).returncode == 0 and file.read_text() == printed
    assert load_schema(str(file)).columns.keys() >= {"amount", "region", "y"}
    toy.declare(tmp_path, data={"schema": "schemas/toy.yaml"})
    assert command("lint", "toy.yaml", cwd=tmp_path).returncode == 0
    assert command("run", "toy.yaml", "--window", "2024-02", cwd=tmp_path).returncode == 0


def test_schema_prints_a_json_schema_that_editors_can_use(tmp_path: Path) -> None:
    printed = json.loads(command("schema", cwd=tmp_path).stdout)
    assert printed["title"] == "Pipeline" and "train" in printed["properties"]
    pipeline = toy.declare(tmp_path).pipeline
    assert pipeline.model_dump(mode="json", by_alias=True).keys() <= printed["properties"].keys()


def test_no_command_prints_the_help_and_is_an_error(tmp_path: Path) -> None:
    done = command(cwd=tmp_path)
    assert done.returncode == 2 and "lint" in done.stdout and "demo" in done.stdout


def test_lint_knows_what_is_installed(tmp_path: Path) -> None:
    file = tmp_path / "it.yaml"
    file.write_text(
        'name: it\ndata: {source: "x/{window}.parquet", target: y}\n'
        "train: {estimator: sklearn.linear_model.LogisticRegression}\nbackend: moon\ndeploy: {target: sun}\n"
    )
    done = command("lint", "it.yaml", cwd=tmp_path)
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert "4: pipeline 'it': no package that is installed here has the backend 'moon'; allowed: " in told
    assert "5: pipeline 'it': no package that is installed here has the target 'sun'; allowed: local, vertex" in told
    assert "1 file: 2 problems" in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--port 99999", "--port 99999; allowed: 0 to 65535"),
        ("--timeout nan", "--timeout nan; allowed: more than 0 seconds"),
        (
            "--flush -3 --timeout 0",
            "--timeout 0; allowed: more than 0 seconds\n--flush -3; allowed: more than 0 seconds",
        ),
        ("--no-log --log-to x", "--no-log and --log-to contradict each other"),
    ],
)
def test_serve_refuses_numbers_that_make_no_sense(options: str, said: str, tmp_path: Path) -> None:
    done = command("serve", "churn", *options.split(), cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert said in done.stderr
