"""The declaration of a runtime: what may be said, and what is refused with the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_mlops.backends import carrier
from airflow_mlops.cli.lint import lint
from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec.base import format_size, parse_size
from airflow_mlops.spec.pipeline import Runtime
from airflow_mlops.spec.wiring import problems_of
from tests import toy


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2 << 30), ("1.5GB", 1_500_000_000), ("512 MiB", 512 << 20), (1024, 1024)]
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["2G", "", "GiB", "-1GiB", "0MiB", 0, True, None, "2 gib"])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is no amount of memory"):
        parse_size(text)


def test_sizes_are_written_for_people() -> None:
    assert [format_size(size) for size in (2 << 30, 700_000_000, 12)] == ["2GiB", "667.57MiB", "12 bytes"]


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ({"python": "/p", "requirements": "r.txt"}, "give one of 'python' and 'requirements', not both"),
        ({}, "give 'python', 'requirements' or 'memory'"),
        ({"memory": "much"}, "'much' is no amount of memory"),
        ({"conda": "env"}, "conda"),
    ],
)
def test_a_runtime_that_says_nothing_or_too_much_is_refused(tmp_path: Path, runtime: dict[str, str], said: str) -> None:
    with pytest.raises(DeclarationError, match=said):
        toy.declare(tmp_path, runtime=runtime)


def test_paths_start_from_the_declaration_and_bare_names_do_not() -> None:
    for python, found in (("python3.12", "python3.12"), ("env/bin/python", "/base/env/bin/python"), ("/p", "/p")):
        assert carrier("local", None, Runtime(python=python), "/base") == ("subprocess", {"python": found})
    made = carrier("subprocess", {"warm": True}, Runtime(requirements="r.txt", memory="1GiB"), "/base")
    assert made == ("subprocess", {"requirements": "/base/r.txt", "memory": "1GiB", "warm": True})
    assert carrier("fake", {"mode": "slow"}, None, "/base") == ("fake", {"mode": "slow"})


def test_a_backend_elsewhere_has_no_runtime(tmp_path: Path) -> None:
    (problem,) = problems_of(toy.declare(tmp_path, backend="fake", runtime={"memory": "1GiB"}))
    assert "the backend 'fake' runs no `runtime`; allowed: backend: local or backend: subprocess" in problem
    with pytest.raises(DeclarationError, match="the backend 'fake' runs no `runtime`"):
        carrier("fake", None, Runtime(memory="1GiB"), "/")


def test_lint_finds_missing_requirements_and_leaves_libraries_to_the_runtime(tmp_path: Path) -> None:
    toy.declare(tmp_path, train={"estimator": "nowhere.Model"}, runtime={"requirements": "r.txt"})
    (problem,) = lint([str(tmp_path / "toy.yaml")])
    assert f"there is no file {tmp_path}/r.txt" in problem
    (tmp_path / "r.txt").write_text("nowhere\n")
    assert lint([str(tmp_path / "toy.yaml")]) == []
