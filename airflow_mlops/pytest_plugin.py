"""A pytest plugin: the fixture ``mlops_pipeline``, for a team's own tests of its pipelines.

    def test_churn(mlops_pipeline):
        churn = mlops_pipeline("pipelines/churn.yaml")
        churn.check_all()
        assert churn.features(rows)["tenure"].ge(0).all()
        assert churn.train().predict(rows).shape == (len(rows),)

pytest loads this module in every session; what it needs is imported when a test asks for the fixture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from airflow_mlops.cli.test import Check, UnderTest
    from airflow_mlops.stages.model_io import Model


class PipelineUnderTest:
    """One pipeline, its sample, and the model that is trained on it."""

    def __init__(self, tested: UnderTest) -> None:
        self._tested = tested

    @property
    def sample(self) -> Any:
        """The rows of the sample that are used, as a frame."""
        return self._tested.frame

    def features(self, rows: Any = None) -> Any:
        """What the feature function makes of raw rows without the target. Default: of the sample."""
        return self._tested.features(rows)

    def train(self) -> Model:
        """The model that was trained on the sample, logged, and loaded as a server loads it."""
        return self._tested.model

    def checks(self) -> list[Check]:
        """Everything that ``airflow-mlops test`` checks, as it came out."""
        return list(self._tested.checks())

    def check_all(self) -> None:
        """Fail with every promise that is not kept, one line each."""
        __tracebackhide__ = True
        broken = [f"{each.name}: {each.told}" for each in self.checks() if each.status == "failed"]
        if broken:
            pytest.fail("\n".join(broken), pytrace=False)


@pytest.fixture
def mlops_pipeline(request: pytest.FixtureRequest) -> Iterator[Callable[..., PipelineUnderTest]]:
    """Bring a pipeline under test: ``mlops_pipeline(FILE, name=None, rows=None)``, FILE relative to pytest's root."""
    from airflow_mlops.cli.test import UnderTest
    from airflow_mlops.spec import load_declarations

    with contextlib.ExitStack() as stack:

        def under_test(file: str | Path, name: str | None = None, rows: int | None = None) -> PipelineUnderTest:
            declarations = load_declarations(request.config.rootpath / file)
            found = [each for each in declarations if name in (None, each.pipeline.name)]
            if len(found) != 1:
                names = ", ".join(each.pipeline.name for each in declarations)
                pytest.fail(f"{file} holds {len(found)} pipelines of that name; name one of: {names}", pytrace=False)
            return PipelineUnderTest(stack.enter_context(UnderTest(found[0], rows)))

        yield under_test
