"""What several of these tests release."""

from __future__ import annotations

import pytest

from airflow_mlops.delivery.build import build
from airflow_mlops.delivery.bundle import Bundle
from tests.delivery.made import project


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Three versions of one pipeline."""
    return [
        build([project(tmp_path_factory.mktemp("v"), description=f"number {number}")], version=f"{number}.0")
        for number in (1, 2, 3)
    ]
