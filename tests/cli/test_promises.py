"""`airflow-mlops test`: good pipelines pass, and each promise that is broken is told with its line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from airflow_mlops.cli.load_light import load_light
from airflow_mlops.cli.main import main
from airflow_mlops.cli.test import Check, UnderTest, github_lines, junit
from airflow_mlops.errors import CodeError, DataNotFoundError, PromiseError
from airflow_mlops.spec import load_declarations
from tests.delivery.made import FEATURES, project
from tests.forked import python

PROMISES = {
    "sample": "../samples/churn.parquet",
    "min": {"roc_auc": 0.6},
    "monotone": {"amount": "increasing"},
    "invariant": ["region"],
    "max_size": "1MiB",
    "max_latency_ms": 500,
}
QUICK = {"prepare": {"features": "churn.features:build"}, "retries": 0}


def test_a_pipeline_that_keeps_its_promises_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = project(tmp_path, tests=PROMISES, **QUICK)
    code = main(["test", file, "--junit", str(tmp_path / "junit.xml"), "--github"])
    out = capsys.readouterr().out
    assert code == 0, out
    assert "::error" not in out
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("name"), suite.get("failures"), suite.get("skipped")) == ("churn", "0", "0")
    assert [case.get("name") for case in suite] == [
        "lint",
        "sample",
        "schema",
        "features",
        "train",
        "serving",
        "quality",
        "constant",
        "monotone amount",
        "invariant region",
        "size",
        "latency",
        "dags",
    ]


def test_rows_that_are_not_there_are_told_where_they_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = project(tmp_path / "a", tests={"golden": "nothere.csv"})
    lost = "there is no file " + str(tmp_path / "a" / "pipelines" / "nothere.csv")
    for command in ("lint", "test"):
        assert main([command, file]) == 1
        told = f"pipeline 'churn': {lost}; try: correct tests.golden, or put the file there"
        assert told in capsys.readouterr().out
    # What lies at a URI only shows when it is read.
    gone = {key: f"file://{tmp_path}/{key}.csv" for key in ("sample", "golden")}
    file = project(tmp_path / "b", tests=gone)
    assert main(["lint", file]) == 0
    with UnderTest(*load_declarations(file)) as tested:
        for key, uri in gone.items():
            with pytest.raises(
                DataNotFoundError, match=rf"^tests\.{key}: there is no file {uri}; try: correct tests\.{key}"
            ):
                tested._read(key)


def test_each_broken_promise_is_told_where_it_is_declared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {
        **PROMISES,
        "min": {"roc_auc": 0.999},
        "monotone": {"amount": "decreasing", "member": "increasing"},
        "invariant": ["amount", "nobody"],
        "max_size": "1KiB",
        "max_latency_ms": 0.001,
    }
    file = project(tmp_path, tests=broken, **QUICK)
    assert main(["test", file, "--github"]) == 1
    out = capsys.readouterr().out
    failed = {line.split("FAILED")[0].strip(): line for line in out.splitlines() if "FAILED" in line}
    assert set(failed) == {
        "quality",
        "monotone amount",
        "monotone member",
        "invariant amount",
        "invariant nobody",
        "size",
        "latency",
    }
    assert "less than 0.999" in failed["quality"]
    assert "is not decreasing in 'amount'" in failed["monotone amount"]
    assert "is none of numbers" in failed["monotone member"]
    assert "answers change with 'amount'" in failed["invariant amount"]
    assert "'nobody'" in failed["invariant nobody"]
    line = next(number for number, text in enumerate(Path(file).read_text().splitlines(), 1) if "- nobody" in text)
    assert f"line={line},title=churn%3A invariant nobody::" in out


STATEFUL = FEATURES.replace("fillna(0.0)", "fillna(frame['amount'].mean())")


@pytest.mark.parametrize(
    ("source", "what"),
    [
        (STATEFUL, "is not stateless"),
        (FEATURES.replace("    return", "    frame['x'] = 1\n    return"), "changes the frame that it is given"),
        (FEATURES.replace("fillna(0.0)", "dropna()"), "rows with another index"),
        (FEATURES.replace("    return", "    import random\n    return random.random() + "), "is not stateless"),
        (FEATURES.replace("    return", "    return None and"), "gives NoneType"),
    ],
)
def test_features_that_break_their_contract_are_told(tmp_path: Path, source: str, what: str) -> None:
    file = Path(project(tmp_path, **QUICK))
    (file.parent / "churn" / "features.py").write_text(source)
    assert what in found(file, "features").told


def test_code_that_exits_ends_no_test_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, xml = Path(project(tmp_path, **QUICK)), tmp_path / "junit.xml"
    (file.parent / "churn" / "features.py").write_text(
        FEATURES.replace("    return", "    raise SystemExit\n    return")
    )
    assert main(["test", str(file), "--junit", str(xml)]) == 1
    assert "2 failed" in capsys.readouterr().out
    failed = {case.get("name"): case.findtext("failure") for case in ElementTree.parse(xml).iter("testcase")}
    for name in ("features", "train"):
        assert "churn.features:build raised SystemExit (at " in str(failed[name])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--junit", "nodir/x.xml"), "argument --junit: there is no folder nodir to write in"),
        (("--junit", "."), "argument --junit: . is a folder; allowed: a file"),
        (("--sample", "0"), "argument --sample: '0' is no number of rows; allowed: 20 or more"),
        (("--sample=-5",), "argument --sample: '-5' is no number of rows; allowed: 20 or more"),
        (("--sample", "all"), "argument --sample: 'all' is no number of rows; allowed: 20 or more"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_done(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["test", "churn.yaml", *words])
    told = capsys.readouterr()
    assert (caught.value.code, told.out) == (2, "")
    assert told.err.splitlines()[-1] == f"airflow-mlops test: error: {said}"


def test_a_sample_that_breaks_the_schema_is_told_by_what_is_there_afterwards(tmp_path: Path) -> None:
    file = Path(project(tmp_path, **QUICK))
    schema = tmp_path / "schemas" / "churn.yaml"
    schema.write_text(schema.read_text().replace("id: {type: string}", "id: {type: integer}"))
    told = found(file, "schema").told
    assert "'id'" in told
    assert told.endswith("; try: mend the sample, or review the schema (airflow-mlops schema infer)")


def test_the_dag_files_of_the_project_are_loaded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (declaration,) = load_declarations(project(tmp_path, **QUICK))
    dags = tmp_path / "dags"
    dags.mkdir()
    good = "from shared import PATTERN\n\nfrom airflow_mlops import load_dags\n\nload_dags(PATTERN, globals())\n"
    files = {
        "churn_dags.py": good,
        "shared.py": "PATTERN = '../pipelines/*.yaml'\n",
        "others.py": "import nothing_of_ours\n",
        "heavy.py": f"import sklearn.base\n{good}",
    }
    for name, text in files.items():
        (dags / name).write_text(text)
    with pytest.raises(PromiseError, match="^dags/heavy.py loads (pandas, )?numpy, sklearn, .*, which every parse"):
        load_light(declaration)
    (dags / "heavy.py").write_text(f"import nonsense\n{good}")
    (dags / "exits.py").write_text(f"{good}raise SystemExit\n")
    with pytest.raises(CodeError) as caught:
        load_light(declaration)
    exits, nonsense = str(caught.value).split("; ")
    assert exits.startswith("dags/exits.py does not load: SystemExit (at dags/exits.py:6)")
    assert nonsense.startswith("dags/heavy.py does not load: ModuleNotFoundError: No module named 'nonsense'")


def found(file: Path, name: str) -> Check:
    """One check; those after it are not made."""
    (declaration,) = load_declarations(file)
    with UnderTest(declaration, 100) as tested:
        return next(each for each in tested.checks() if each.name == name)


BY_COUNT = FEATURES.replace(
    "    return",
    "    if len(frame) >= 40:\n        frame = frame.assign(amount=frame['amount'].clip(upper=2.5))\n    return",
)
"""What none of the small pieces shows, and of the whole only the few rows at its end."""


def test_features_that_depend_on_how_many_rows_there_are_are_told(tmp_path: Path) -> None:
    file = Path(project(tmp_path, **QUICK))
    (file.parent / "churn" / "features.py").write_text(BY_COUNT)
    (declaration,) = load_declarations(file)
    with UnderTest(declaration) as tested:
        checks = tested.checks()
        kept = {each.name: each for each in (next(checks) for _ in range(6))}
    assert kept["train"].status == "ok"
    assert "is not stateless: 'amount' of a row changes" in kept["features"].told
    assert " alone and " in kept["serving"].told


def test_code_that_does_not_import_and_a_declaration_that_does_not_read_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = project(tmp_path / "a", prepare={"features": "churn.features:nothing"})
    assert main(["test", file]) == 1
    out = capsys.readouterr().out
    assert "has no 'nothing'" in out
    assert "skipped" in out
    wrong = project(tmp_path / "b", tests={"min": {"log_loss": 1.0}})
    assert main(["test", wrong, "--github"]) == 1
    out = capsys.readouterr().out
    assert "'log_loss' is no metric for it; allowed: roc_auc" in out


def test_a_fitted_preprocessing_is_told(tmp_path: Path) -> None:
    file = Path(project(tmp_path, prepare={"features": "churn.features:build", "preprocess": "churn.features:scale"}))
    (file.parent / "churn" / "features.py").write_text(
        FEATURES + "\n\ndef scale():\n    from sklearn.preprocessing import StandardScaler\n\n"
        "    return StandardScaler().fit([[0.0, 0.0]])\n"
    )
    assert found(file, "preprocess").told.startswith("churn.features:scale gives a fitted transformer")


def test_what_has_failed_is_told_as_github_and_junit_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check = Check("size", "failed", "100% too large\nsee <here>", 1.5, str(tmp_path / "a" / "b.yaml"), 7)
    assert list(github_lines("churn", check)) == [
        "::error file=a/b.yaml,line=7,title=churn%3A size::100%25 too large%0Asee <here>"
    ]
    lint = Check("lint", "failed", "a.yaml:3: wrong: x\na.yaml:5: also wrong", 0.1, str(tmp_path / "a.yaml"), 1)
    assert list(github_lines("churn", lint)) == [
        "::error file=a.yaml,line=3,title=churn%3A lint::wrong: x",
        "::error file=a.yaml,line=5,title=churn%3A lint::also wrong",
    ]
    case = ElementTree.fromstring(junit({"churn": [check]}))[0][0]
    failure = case.find("failure")
    assert failure is not None
    assert (failure.get("message"), failure.text) == ("100% too large", "100% too large\nsee <here>")


OWN = '''"""A team's own test."""


def test_churn(mlops_pipeline):
    churn = mlops_pipeline("pipelines/churn.yaml", rows=200)
    assert list(churn.features()) == ["amount", "age"]
    assert len(churn.features(churn.sample.head(3))) == 3
    assert churn.train().predict(churn.sample.head(5)).shape == (5,)


def test_it_breaks(mlops_pipeline):
    mlops_pipeline("pipelines/broken.yaml").check_all()
'''


def test_a_teams_own_tests_get_the_same_by_a_fixture(tmp_path: Path) -> None:
    project(tmp_path, **QUICK)
    file = tmp_path / "pipelines" / "churn.yaml"
    file.with_name("broken.yaml").write_text(file.read_text().replace("features:build", "features:other"))
    (tmp_path / "test_own.py").write_text(OWN)
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", ".", cwd=tmp_path)
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "lint: " in done.stdout
    assert "has no 'other'" in done.stdout


def test_the_plugin_costs_nothing_to_those_who_do_not_use_it() -> None:
    code = "import sys, pytest; before = set(sys.modules); import airflow_mlops.pytest_plugin as p; "
    code += "print(sorted(n for n in set(sys.modules) - before if not n.startswith('airflow_mlops')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
