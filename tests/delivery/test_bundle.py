"""Bundles: of the same input the same bytes, whole, and nothing in them that was changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlops.cli import main
from airflow_mlops.delivery.build import build
from airflow_mlops.delivery.bundle import MANIFEST, packed, read_bundle
from airflow_mlops.delivery.git import git
from airflow_mlops.delivery.wheel import wheel
from airflow_mlops.errors import CodeError, DeclarationError, DeliveryError
from tests.delivery.made import FEATURES, WHO, project

NAMES = st.text("abc/_", min_size=1, max_size=8).map(lambda text: f"m/{text.strip('/').replace('//', '/')}x.py")
FILES = st.dictionaries(NAMES, st.binary(max_size=30), max_size=6)


@given(FILES, st.randoms(use_true_random=False))
def test_an_archive_follows_from_names_and_contents_alone(files: dict[str, bytes], random: object) -> None:
    shuffled = list(files.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert packed(dict(shuffled)) == packed(files)
    assert wheel("a-b", "1.0", dict(shuffled)) == wheel("a-b", "1.0", files)
    if files:
        path = next(iter(files))
        assert packed({**files, path: files[path] + b"x"}) != packed(files)


def test_a_bundle_is_the_same_wherever_whenever_and_by_whomever_it_is_made(tmp_path: Path) -> None:
    first = Path(project(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "somewhere" / "else")
    second = tmp_path / "somewhere" / "else" / "pipelines" / "churn.yaml"
    # The source of the data is named by an absolute path, which is a part of the declaration.
    for file in (tmp_path / "somewhere").rglob("*"):
        os.utime(file, (1, 1))
        file.chmod(0o700)
    command = [sys.executable, "-m", "airflow_mlops", "build", "churn.yaml", "--out"]
    out = []
    for folder, mask in ((first.parent, 0o22), (second.parent, 0o77)):
        out.append(tmp_path / f"out-{mask}")
        subprocess.run([*command, str(out[-1])], cwd=folder, umask=mask, check=True, capture_output=True)
    (one,), (two,) = (list(folder.iterdir()) for folder in out)
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()


def test_a_bundle_holds_what_the_pipeline_needs_where_it_finds_it(tmp_path: Path) -> None:
    file = project(tmp_path)
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "team.py").write_text('"""A DAG of the team (Airflow)."""\n')
    bundle = build([file, str(tmp_path / "dags" / "team.py")], version="1.2.0")
    manifest = bundle.manifest
    assert set(bundle.files) == {
        "pipelines/churn.yaml",
        "schemas/churn.yaml",
        "samples/churn.parquet",
        "requirements.lock",
        "dags/team.py",
        "wheels/churn-1.2.0-py3-none-any.whl",
    }
    assert (manifest.pipelines, manifest.dags, manifest.code) == (("churn",), ("dags/team.py",), ("pipelines",))
    unpacked = bundle.unpacked()
    assert unpacked["pipelines/churn/features.py"].decode() == FEATURES
    assert "pipelines/churn/__init__.py" in unpacked
    assert read_bundle(bundle.write(tmp_path / "dist")) == bundle


def test_the_wheel_installs(tmp_path: Path) -> None:
    bundle = build([project(tmp_path)], version="1.2.0")
    made = bundle.manifest.wheel or ""
    (tmp_path / Path(made).name).write_bytes(bundle.files[made])
    target = tmp_path / "installed"
    command = ["uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--target", str(target)]
    command[0] = str(Path(sys.executable).with_name("uv"))
    subprocess.run([*command, str(tmp_path / Path(made).name)], check=True, env={**os.environ, "UV_NO_CONFIG": "1"})
    assert (target / "churn" / "features.py").read_text() == FEATURES
    assert (target / "churn-1.2.0.dist-info" / "METADATA").is_file()


@pytest.mark.parametrize(
    ("path", "content", "what"),
    [
        ("pipelines/churn.yaml", b"name: other\n", "was changed after it was built"),
        ("schemas/churn.yaml", None, "is missing"),
        ("pipelines/more.yaml", b"x", "is not in its manifest"),
        (MANIFEST, b"{}", "does not read"),
    ],
)
def test_a_bundle_that_was_changed_is_refused(tmp_path: Path, path: str, content: bytes | None, what: str) -> None:
    bundle = build([project(tmp_path)])
    files = {**bundle.files, MANIFEST: bundle.manifest.to_bytes(), path: content}
    (tmp_path / "changed.zip").write_bytes(packed({name: data for name, data in files.items() if data is not None}))
    with pytest.raises(DeliveryError, match=what):
        read_bundle(tmp_path / "changed.zip")


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    for name, what in (
        ("text.zip", "is no bundle"),
        ("other.zip", "has no manifest.json"),
        ("none.zip", "none.zip is no bundle: No such file or directory;"),
    ):
        with pytest.raises(DeliveryError, match=what):
            read_bundle(tmp_path / name)


def test_versions_and_commits_come_from_git_and_a_dirty_work_tree_is_refused(tmp_path: Path) -> None:
    file = project(tmp_path)
    (tmp_path / ".gitignore").write_text("notes\n")
    git("init", "--quiet", folder=tmp_path)
    git("add", ".", folder=tmp_path)
    git(*WHO, "commit", "--quiet", "--message", "one", folder=tmp_path)
    commit = git("rev-parse", "HEAD", folder=tmp_path).strip()
    assert build([file]).manifest.version == f"0+g{commit[:12]}"
    git("tag", "v1.3.0", folder=tmp_path)
    clean = build([file]).manifest
    assert (clean.version, clean.commit, clean.dirty) == ("1.3.0", commit, False)
    (tmp_path / "notes").write_text("what is no part of the bundle may change")
    (tmp_path / "more").write_text("also what Git does not know")
    assert build([file]).manifest == clean
    (tmp_path / "pipelines" / "churn" / "features.py").write_text(FEATURES + "\n")
    with pytest.raises(DeliveryError, match=r"not as they are in commit.*pipelines/churn/features\.py"):
        build([file])
    dirty = build([file], allow_dirty=True).manifest
    assert dirty.dirty
    assert dirty.version.startswith("1.3.0+dirty.c")
    git(*WHO, "commit", "--quiet", "--all", "--message", "two", folder=tmp_path)
    assert build([file]).manifest.version.startswith("1.3.0.post1+g")


def test_a_shallow_clone_cannot_name_a_version(tmp_path: Path) -> None:
    """Its tags may be missing, and the same commit would give other bytes than elsewhere."""
    tree = tmp_path / "tree"
    file = Path(project(tree))
    git("init", "--quiet", folder=tree)
    git("add", ".", folder=tree)
    git(*WHO, "commit", "--quiet", "--message", "one", folder=tree)
    git("tag", "v1.3.0", folder=tree)
    (tree / "more").write_text("x")
    git("add", ".", folder=tree)
    git(*WHO, "commit", "--quiet", "--message", "two", folder=tree)
    git("clone", "--quiet", "--depth", "1", tree.as_uri(), "shallow", folder=tmp_path)
    there = tmp_path / "shallow" / file.relative_to(tree)
    with pytest.raises(DeliveryError, match=r"shallow clone.*; try: git fetch --unshallow --tags, or --version"):
        build([str(there)])
    assert build([str(there)], version="1.4.0") == build([str(file)], version="1.4.0")
    git("fetch", "--quiet", "--unshallow", "--tags", folder=tmp_path / "shallow")
    assert build([str(there)]) == build([str(file)])
    assert build([str(there)]).manifest.version.startswith("1.3.0.post1+g")


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"prepare": {"features": "mistyped.features:biuld"}}, "biuld"),
        ({"train": {"estimator": "sklearn.linear_model.LogisticRegression", "params": {"CC": 1}}}, "no parameter 'CC'"),
        ({"environments": {"prod": {"runtime": {"requirements": "gone.txt"}}}}, "(environment 'prod')"),
    ],
)
def test_what_lint_refuses_is_not_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sections: dict[str, object], what: str
) -> None:
    file = project(tmp_path, "mistyped", **sections)
    assert main(["lint", file]) == 1
    told = capsys.readouterr().out.splitlines()[:-1]
    assert main(["build", file, "--out", str(tmp_path / "dist")]) == 1
    said = capsys.readouterr()
    assert what in said.err
    assert not said.out
    assert all(problem in said.err for problem in told)
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"import airflow\ndef broken(:\n", r"team\.py:2: .*syntax"),
        (b"a = '\xff'\n", r"team\.py.*utf-8"),
        (b"a = 1\0\n", r"team\.py.*null bytes"),
    ],
)
def test_a_dag_file_that_is_no_python_is_not_built(tmp_path: Path, content: bytes, what: str) -> None:
    file, team = project(tmp_path), tmp_path / "pipelines" / "team.py"
    team.write_bytes(content)
    with pytest.raises(CodeError, match=what):
        build([file, str(team)])
    # Only what it says is looked at: what it imports is there where Airflow runs.
    team.write_bytes(b"# -*- coding: latin-1 -*-\nimport not_here\nwho = '\xe9'\n")
    assert build([file, str(team)]).manifest.dags == ("pipelines/team.py",)


def test_what_every_environment_would_refuse_is_not_built(tmp_path: Path) -> None:
    relative: dict[str, Any] = {"data": {"source": "data/{window}.parquet", "target": "y"}}
    absolute = {"data": {"source": "/data/{window}.parquet"}}
    with pytest.raises(
        DeclarationError, match=r"churn\.yaml:\d+: .*a release holds none of it; try: an absolute .* URI$"
    ):
        build([project(tmp_path / "a", **relative)])
    with pytest.raises(
        DeclarationError, match=r"environments\.prod\.data\.source\n.*environments\.staging\.data\.source"
    ):
        build([project(tmp_path / "b", **relative, environments={"staging": {}, "prod": {}})])
    with pytest.raises(DeclarationError, match=r"predict\.output is 'out'"):
        build([project(tmp_path / "c", predict={"output": "out"})])
    assert build([project(tmp_path / "d", **relative, environments={"staging": absolute, "prod": {}})])


def test_what_cannot_be_taken_along_is_refused(tmp_path: Path) -> None:
    absolute = project(tmp_path / "a", tests={"sample": str(tmp_path / "x.csv")})
    with pytest.raises(DeclarationError, match="is not relative to the declaration"):
        build([absolute])
    with pytest.raises(DeclarationError, match=r"there is no file \.\./x\.csv"):
        build([project(tmp_path / "b", tests={"golden": "../x.csv"})])
    tagged = project(tmp_path / "c", google={"project": "my-project", "region": "europe-west1", "image": "r/i:latest"})
    with pytest.raises(DeclarationError, match="is named by a tag"):
        build([tagged])
    with pytest.raises(CodeError, match="there is no package 'gone'"):
        build([project(tmp_path / "d", prepare={"features": "gone.features:build"})])
    with pytest.raises(DeliveryError, match="is no version"):
        build([project(tmp_path / "e")], version="one")
    first, second = project(tmp_path / "f"), project(tmp_path / "g")
    Path(second).with_name("churn").joinpath("features.py").write_text("def build(frame):\n    return frame\n")
    with pytest.raises(CodeError, match="two pipelines have different churn/features"):
        build([first, second])
