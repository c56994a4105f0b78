"""The fixtures of BigQuery: its stand-in is loaded by the tests that ask for it, and by no other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.loopback.bigquery import BigQuery


@pytest.fixture(scope="session")
def bigquery_server() -> Iterator[BigQuery]:
    """The stand-in, running."""
    from tests.loopback.bigquery import serving

    with serving() as stand_in:
        yield stand_in


@pytest.fixture
def bigquery(bigquery_server: BigQuery, monkeypatch: pytest.MonkeyPatch) -> BigQuery:
    """BigQuery without tables, faults and jobs; the connection ``lake`` leads there."""
    for name, value in bigquery_server.environment.items():
        monkeypatch.setenv(name, value)
    bigquery_server.forget()
    return bigquery_server
