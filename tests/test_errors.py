"""The tree of errors: what each says, whether a retry mends it, and that it survives a process border."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from airflow_mlops import errors
from airflow_mlops.errors import DeclarationError, MlopsError

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, MlopsError)]


def make(kind: type[MlopsError]) -> MlopsError:
    return kind(["a.yaml:1: x", "a.yaml:2: y"]) if kind is DeclarationError else kind("x", where="here", fix="y")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", TREE)
def test_an_error_survives_a_process_border(kind: type[MlopsError]) -> None:
    error = make(kind)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert (vars(again), again.args) == (vars(error), error.args)


def test_only_what_passes_by_itself_is_worth_a_retry() -> None:
    retryable = {kind.__name__ for kind in TREE if kind.retryable}
    assert retryable == {
        "AirflowUnreachableError",
        "CloudUnreachableError",
        "JobFailedError",
        "JobLostError",
        "PackageIndexUnreachableError",
        "RegistryUnreachableError",
        "SourceUnreachableError",
        "StoreUnreachableError",
    }


def test_the_tree_is_drawn_as_it_is() -> None:
    drawn = [line for line in (errors.__doc__ or "").splitlines() if "Error" in line and line.startswith("    ")]
    names = {word for line in drawn for word in line.split() if word.endswith("Error")}
    assert names == {kind.__name__ for kind in TREE}
    marked = {word for line in drawn if "worth a retry" in line for word in line.split() if word.endswith("Error")}
    assert marked == {kind.__name__ for kind in TREE if kind.retryable}


def test_an_error_says_where_what_and_what_to_do() -> None:
    error = MlopsError("it broke", where="a.yaml:3", allowed="this", fix="that")
    assert str(error) == "a.yaml:3: it broke; allowed: this; try: that"
    assert str(MlopsError("it broke")) == "it broke"


def test_the_first_to_say_where_knows_best() -> None:
    error = MlopsError("it broke")
    assert error.at("stage 'train'") is error
    assert str(error.at("somewhere")) == "stage 'train': it broke"


def test_a_wrong_declaration_tells_every_problem_on_a_line_of_its_own() -> None:
    assert str(DeclarationError(["a", "b"]).at("here")) == "here: a\nb"
    assert DeclarationError(["a", "b"]).problems == ["a", "b"]
