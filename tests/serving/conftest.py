"""A served model: a real server process over a real registry."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import toy
from tests.serving.client import Served
from tests.toy import World


@pytest.fixture(scope="module")
def trained(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    """January's and February's models are versions 1 and 2; the second is the champion. Tests may move the champion."""
    folder = tmp_path_factory.mktemp("served")
    name = f"served-{folder.name}"
    world = World(folder, str(folder / "store"), toy.registry_ref(mlflow_server, name))
    toy.months(folder)
    declaration = toy.declare(folder, name, validate_model={"versus_champion": None})
    for month in ("2024-01", "2024-02"):
        toy.run_plan(declaration, month, month, world.store, world.registry)
    return world


@pytest.fixture
def served(trained: World) -> Iterator[Served]:
    """A server of the champion, that logs every 0.3 seconds."""
    with Served(trained, "--flush", "0.3") as server:
        yield server
