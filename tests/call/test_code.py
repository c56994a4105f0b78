"""The user's code: a snapshot named by its content, and the only place its packages are imported from."""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.call import ArtifactRef, Store
from airflow_mlops.call.code import code_scope, load, snapshot, split_path, unpack
from airflow_mlops.errors import CodeError

Write = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "cache"))
    return Store(str(tmp_path / "store"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write files into a folder; return the folder."""

    def write(folder: str, **files: str) -> Path:
        for name, text in files.items():
            file = tmp_path / folder / f"{name.replace('__slash__', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path / folder

    return write


def taken(callable_path: str, base: Path, store: Store) -> ArtifactRef:
    ref = snapshot([callable_path], str(base), store)
    assert ref is not None
    return ref


def contents(ref: ArtifactRef, store: Store) -> set[str]:
    folder = unpack(ref, store)
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("path", "parts"), [("a.b:c", ("a.b", "c")), ("a:c", ("a", "c")), ("sklearn.svm.SVC", ("sklearn.svm", "SVC"))]
)
def test_a_path_has_a_module_and_a_name(path: str, parts: tuple[str, str]) -> None:
    assert split_path(path) == parts


def test_equal_code_is_one_snapshot_wherever_and_whenever_it_lies(store: Store, write: Write) -> None:
    files = {"toyfit/__init__": "", "toyfit/model": "def fit(): ...\n", "toyfit/deep/more": "x = 1\n"}
    one, other = write("one", **files), write("other", **dict(reversed(files.items())))
    os.utime(other / "toyfit" / "model.py", (0, 0))
    (other / "toyfit" / "model.py").chmod(0o755)
    assert taken("toyfit.model:fit", one, store) == taken("toyfit.model:fit", other, store)


def test_a_snapshot_knows_neither_the_clock_nor_the_order_of_a_folder(store: Store, write: Write) -> None:
    files = {"toyfit/Model": "", "toyfit/model": "", "toyfit/deep/more": ""}
    with zipfile.ZipFile(taken("toyfit.model:fit", write("one", **files), store).uri) as archive:
        assert archive.namelist() == sorted(archive.namelist())
        assert len({entry.date_time for entry in archive.infolist()}) == 1
        assert archive.infolist()[0].date_time[0] < 2000


def test_caches_data_and_hidden_files_are_no_code(store: Store, write: Write) -> None:
    base = write("one", **{"toyfit/__init__": "", "toyfit/model": ""})
    before = taken("toyfit.model:fit", base, store)
    for name in ("__pycache__/model.py", ".git/hook.py", "rows.parquet", "rows.csv", ".env", "model.pkl"):
        (base / "toyfit" / name).parent.mkdir(exist_ok=True)
        (base / "toyfit" / name).write_text("x")
    (base / "other.py").write_text("not asked for")
    assert taken("toyfit.model:fit", base, store) == before
    assert contents(before, store) == {"toyfit/__init__.py", "toyfit/model.py"}


@pytest.mark.parametrize("name", ["model.py", "settings.yaml", "deep/query.sql", "new.py"])
def test_changed_code_is_another_snapshot(store: Store, write: Write, name: str) -> None:
    base = write("one", **{"toyfit/__init__": "", "toyfit/model": "x = 1\n", "toyfit/deep/more": ""})
    (base / "toyfit" / "settings.yaml").write_text("a: 1\n")
    (base / "toyfit" / "deep" / "query.sql").write_text("select 1\n")
    before = taken("toyfit.model:fit", base, store)
    (base / "toyfit" / name).write_text("changed")
    assert taken("toyfit.model:fit", base, store).digest != before.digest


def test_code_lies_beside_the_declaration_or_one_folder_up(store: Store, write: Write) -> None:
    write("repo", toyone="f = 1\n")
    base = write("repo/pipelines", toytwo="f = 2\n")
    ref = snapshot(["toyone:f", "toytwo:f", "sklearn.svm.SVC"], str(base), store)
    assert ref is not None
    assert contents(ref, store) == {"toyone.py", "toytwo.py"}


def test_installed_code_needs_no_snapshot(store: Store, tmp_path: Path) -> None:
    assert snapshot(["sklearn.svm.SVC", "json:dumps", "math:sqrt"], str(tmp_path), store) is None


@pytest.mark.parametrize("folder", ["lib/site-packages", "lib/dist-packages"])
def test_a_folder_of_libraries_is_installed_wherever_it_lies(
    store: Store, write: Write, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.syspath_prepend(str(write(folder, toylibrary="def fit(): ...\n")))
    assert snapshot(["toylibrary:fit"], store.path, store) is None


@pytest.mark.parametrize("path", ["toynowhere.model:fit", "__main__:fit"])
def test_a_package_nowhere_to_be_found_says_where_it_was_sought(store: Store, tmp_path: Path, path: str) -> None:
    with pytest.raises(
        CodeError, match=rf"there is no package '\w+'; allowed: one in {tmp_path}, .*or an installed one"
    ):
        snapshot([path], str(tmp_path), store)


def test_a_folder_without_python_is_no_package(store: Store, tmp_path: Path) -> None:
    (tmp_path / "toydata").mkdir()
    with pytest.raises(CodeError, match="there is no package 'toydata'"):
        snapshot(["toydata.model:fit"], str(tmp_path), store)


def test_what_was_snapshotted_counts_and_not_what_lies_there_now(store: Store, write: Write) -> None:
    base = write("one", **{"toyfit/model": "NAME = 'then'\n"})
    ref = taken("toyfit.model:NAME", base, store)
    write("one", **{"toyfit/model": "NAME = 'now'\n"})
    with code_scope(unpack(ref, store)):
        assert load("toyfit.model:NAME") == "then"


def test_two_snapshots_of_one_name_load_after_one_another_and_nested(store: Store, write: Write) -> None:
    folders = []
    for name in ("one", "two"):
        base = write(name, **{"toyfit/__init__": "", "toyfit/model": "from toyfit.names import NAME\n"})
        write(name, **{"toyfit/names": f"NAME = '{name}'\n"})
        folders.append(unpack(taken("toyfit.model:NAME", base, store), store))
    for folder, name in zip([*folders, *folders], ["one", "two", "one", "two"], strict=True):
        with code_scope(folder):
            assert load("toyfit.model:NAME") == name
    with code_scope(folders[0]):
        first = load("toyfit.model:NAME"), sys.modules["toyfit.names"]
        with code_scope(folders[1]):
            assert load("toyfit.model:NAME") == "two"
        assert (load("toyfit.model:NAME"), sys.modules["toyfit.names"]) == first


@pytest.mark.parametrize("elsewhere", [{"toyfit/__init__": "", "toyfit/model": "NAME = 'wrong'\n"}, {"toyfit": ""}])
def test_a_package_of_the_same_name_on_the_path_does_not_win(
    store: Store, write: Write, elsewhere: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = taken("toyfit.model:NAME", write("one", **{"toyfit/model": "NAME = 'right'\n"}), store)
    monkeypatch.syspath_prepend(str(write("worker", **elsewhere)))
    with code_scope(unpack(ref, store)):
        assert load("toyfit.model:NAME") == "right"
        with pytest.raises(CodeError):
            load("toyfit.absent:NAME")


def test_a_module_that_the_snapshot_lacks_is_not_taken_from_elsewhere(
    store: Store, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = taken("toyfit.model:f", write("one", **{"toyfit/model": ""}), store)
    monkeypatch.syspath_prepend(str(write("worker", **{"toyfit/late": "f = 1\n"})))
    with code_scope(unpack(ref, store)), pytest.raises(CodeError, match=r"No module named 'toyfit\.late'"):
        load("toyfit.late:f")


@pytest.mark.parametrize("raised", [None, RuntimeError, KeyboardInterrupt])
def test_a_scope_leaves_the_process_as_it_was(
    store: Store, write: Write, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException] | None
) -> None:
    monkeypatch.syspath_prepend(str(write("worker", toyfit="WHO = 'worker'\n")))
    before_module = __import__("toyfit")
    ref = taken("toyfit:WHO", write("one", toyfit="import toylate\nWHO = 'snapshot'\n", toylate=""), store)
    other = taken("toylate:x", write("one", toylate=""), store)
    path, modules = list(sys.path), dict(sys.modules)
    try:
        with code_scope(unpack(other, store)), code_scope(unpack(ref, store)):
            assert load("toyfit:WHO") == "snapshot"
            sys.path = [*sys.path, "added by a library"]
            if raised:
                raise raised
    except (RuntimeError, KeyboardInterrupt) as error:
        assert type(error) is raised
    assert sys.path == path
    assert sys.modules["toyfit"] is before_module
    assert set(sys.modules) == set(modules)
    monkeypatch.delitem(sys.modules, "toyfit")


def test_without_a_snapshot_nothing_changes() -> None:
    before = list(sys.path)
    with code_scope(None) as folder:
        assert folder is None
        assert sys.path == before


def test_a_snapshot_is_unpacked_once_and_whole(store: Store, write: Write) -> None:
    ref = taken("toyfit:f", write("one", toyfit="f = 1\n"), store)
    folder = unpack(ref, store)
    stamp = (folder / "toyfit.py").stat()
    assert unpack(ref, store) == folder
    assert (folder / "toyfit.py").stat() == stamp
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_a_damaged_snapshot_unpacks_to_nothing(store: Store, write: Write) -> None:
    ref = taken("toyfit:f", write("one", toyfit="f = 1\n"), store)
    Path(ref.uri).write_bytes(Path(ref.uri).read_bytes()[:-5])
    with pytest.raises(Exception, match="changed or cut off"):
        unpack(ref, store)
    assert list((Path(tempfile.gettempdir()) / f"airflow-mlops-{os.getuid()}" / "code").iterdir()) == []


# Loading


def loading(write: Write, monkeypatch: pytest.MonkeyPatch, path: str, source: str) -> Any:
    monkeypatch.syspath_prepend(str(write("one", toyload=source)))
    try:
        return load(path)
    finally:
        sys.modules.pop("toyload", None)


def test_a_path_names_anything_in_a_module(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading(write, monkeypatch, "toyload:A", "A = 3\n") == 3
    assert loading(write, monkeypatch, "toyload.A", "A = 3\n") == 3


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        (
            "toymissing.model:fit",
            "",
            r"'toymissing\.model:fit' cannot be imported: ModuleNotFoundError: .*'toymissing'",
        ),
        (
            "toyload:fit",
            "import os\nimport toygone\n",
            r"No module named 'toygone' \(at .*toyload\.py:2\); try: install toygone where the stages run",
        ),
        (
            "toyload:fit",
            "1 / 0\n",
            r"ZeroDivisionError: division by zero \(at .*toyload\.py:1\); try: correct that line$",
        ),
        ("toyload:fit", "x = 1\ndef fit(:\n", r"cannot be imported: SyntaxError: .* at .*toyload\.py:2; try: correct"),
        ("toyload:fit", "import sys\nsys.exit(3)\n", r"'toyload:fit' cannot be imported: SystemExit: 3"),
        (
            "toyload:built",
            "def build(): ...\ndef fit(): ...\n",
            r"'toyload' has no 'built'; allowed: build, fit; try: toyload:build$",
        ),
        ("toyload.built", "def build(): ...\n", r"allowed: build; try: toyload\.build$"),
        ("toyload:fit", "x = 1\n", r"'toyload' has no 'fit'$"),
    ],
)
def test_code_that_does_not_load_says_why(
    write: Write, monkeypatch: pytest.MonkeyPatch, path: str, source: str, words: str
) -> None:
    with pytest.raises(CodeError, match=words) as caught:
        loading(write, monkeypatch, path, source)
    assert not caught.value.retryable
