"""What the tests of commands share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli import forked


@pytest.fixture(scope="session", autouse=True)
def _commands_end() -> Iterator[None]:
    yield
    forked.end()
