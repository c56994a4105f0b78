"""The interpreter of a runtime: built once, never used half-built, and refused with words that help."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from airflow_mlops.backends import runtime
from airflow_mlops.backends.runtime import FOLDER_VARIABLE, environment, environments, interpreter, needed, prune
from airflow_mlops.errors import PackageIndexUnreachableError, RuntimeBuildError
from tests.conftest import free_port

# Stages that a pipeline's runtime runs, in an interpreter that has no Airflow.
IMPORTS = """
import importlib, sys, sklearn
for stage in ("prepare", "train", "evaluate", "batch_predict"):
    importlib.import_module(f"airflow_mlops.stages.{stage}")
print(sklearn.__version__, importlib.util.find_spec("airflow"), "airflow" in sys.modules)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for environments of the test's own."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "runtimes"))
    return tmp_path


def written(folder: Path, text: str) -> Path:
    file = folder / "requirements.txt"
    file.write_text(text)
    return file


def test_a_built_environment_imports_its_stages_and_has_no_airflow(old_sklearn: str) -> None:
    python = interpreter(None, old_sklearn)
    done = subprocess.run(
        [python, "-P", "-c", IMPORTS],
        env={"PYTHONPATH": str(runtime.package_folder())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version, *airflow = done.stdout.split()
    assert version.startswith("1.6.") and airflow == ["None", "False"]
    assert python == interpreter(None, old_sklearn)
    assert [each.requirements for each in environments()] == [Path(old_sklearn).read_text()]


def test_what_cannot_be_resolved_is_said_in_uvs_own_words_and_not_retried(folder: Path) -> None:
    file = written(folder, "scikit-learn==1.6.*\nscikit-learn==1.5.*\n")
    with pytest.raises(RuntimeBuildError, match=r"cannot be built; uv says:[\s\S]*scikit-learn") as caught:
        environment(file)
    assert not caught.value.retryable and "correct requirements.txt" in str(caught.value.fix)
    assert not [each for each in (folder / "runtimes" / "environments").iterdir() if each.is_dir()]


def test_an_index_that_does_not_answer_is_worth_a_retry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{free_port()}/simple")
    monkeypatch.setenv("UV_CACHE_DIR", str(folder / "uv"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(PackageIndexUnreachableError, match="cannot be fetched") as caught:
        environment(written(folder, "six==1.16.0\n"))
    assert caught.value.retryable


def test_requirements_that_are_not_there_are_told(folder: Path) -> None:
    with pytest.raises(RuntimeBuildError, match="nowhere.txt cannot be read"):
        environment(folder / "nowhere.txt")


def test_an_environment_is_built_once_and_a_half_built_one_is_built_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []

    def uv(*arguments: str, of: Path) -> None:
        if arguments[0] == "venv":
            built.append(Path(arguments[-1]))
            assert not built[-1].exists(), "what was half-built is gone"
            built[-1].mkdir()

    monkeypatch.setattr(runtime, "_uv", uv)
    file = written(folder, "-r more.txt\n")
    (folder / "more.txt").write_text("a\n")
    asked = [threading.Thread(target=environment, args=(file,)) for _ in range(4)]
    for each in asked:
        each.start()
    for each in asked:
        each.join()
    assert len(built) == 1
    first = environment(file)
    (folder / "more.txt").write_text("b\n")
    built[0].with_name("left").mkdir()
    assert environment(file) != first and len(built) == 2
    assert len(environments()) == 2 and prune(days=1) == []
    assert len(prune(days=-1)) == 2 and environments() == []


def test_an_interpreter_without_what_stages_need_is_refused_with_the_command(folder: Path) -> None:
    made = folder / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True)
    python = str(made / "bin" / "python")
    with pytest.raises(RuntimeBuildError, match="lacks what the stages need: cloudpickle, ") as caught:
        interpreter(python, None)
    assert str(caught.value.fix).startswith(f"uv pip install --python {python} 'cloudpickle>=3' ")
    assert not caught.value.retryable


def test_an_interpreter_is_looked_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert interpreter(sys.executable, None) == sys.executable
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("looked at again"))
    assert interpreter(sys.executable, None) == sys.executable


@pytest.mark.parametrize(("python", "said"), [("/nowhere/python", "there is no interpreter"), ("true", "is no Python")])
def test_what_is_no_interpreter_is_told(folder: Path, python: str, said: str) -> None:
    with pytest.raises(RuntimeBuildError, match=said):
        interpreter(python, None)


def test_what_stages_need_is_told_from_the_package_without_airflow() -> None:
    names = {line.split(">")[0].split("<")[0] for line in needed()}
    assert {"scikit-learn", "mlflow", "pandas", "pyarrow", "skops"} <= names
    assert not [name for name in names if "airflow" in name or name in ("uv", "evidently")]
