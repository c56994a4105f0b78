"""The benchmark of alarms runs, and what it counts is plausible even on few pairs."""

from __future__ import annotations

import pytest

from benchmarks import alarms


def test_the_upper_bound_is_that_of_clopper_and_pearson() -> None:
    assert alarms.upper(0, 2000) == pytest.approx(1 - 0.05 ** (1 / 2000))
    assert alarms.upper(20, 2000) == pytest.approx(0.01452, abs=1e-4)


def test_a_quick_round_finds_few_alarms_and_every_large_move() -> None:
    said: list[str] = []
    found = alarms.measure(quick=True, evidently=False, say=said.append)
    assert found["alarms"] < 0.06 and found["confirmed"] < 0.03
    text = "\n".join(said)
    assert (
        "No drift: alarms at a declared rate of 1%" in text and "100 categories" in text and "2013-01 and -02" in text
    )
