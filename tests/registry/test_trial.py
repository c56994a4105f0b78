"""Whether a candidate holds: pure decisions from what servers count."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from airflow_mlops.registry.serving import Served, Serving
from airflow_mlops.registry.trial import Standing, counted, standing, wilson_lower
from airflow_mlops.spec.stages import Trial

SINCE = datetime(2024, 1, 1, tzinfo=UTC)
BAKE = timedelta(minutes=10)


def server(name: str = "a", **counts: Any) -> Serving:
    return Serving(
        server=name, url="http://a", pid=1, started=SINCE, at=SINCE, champion="1", versions={"2": Served(**counts)}
    )


def look(*servers: Serving, after: timedelta = BAKE, **rules: Any) -> Standing:
    return standing(Trial(**{"share": 10, "bake": BAKE, **rules}), servers, "2", SINCE, SINCE + after)


def test_it_holds_when_time_and_requests_are_enough() -> None:
    found = look(server(requests=150, p99=12.0))
    assert found == Standing("held", ("it has stood 150 requests in 10 min, 0 failed, 99% of them within 12 ms",))


@pytest.mark.parametrize(
    ("after", "requests"), [(BAKE - timedelta(seconds=1), 10_000), (BAKE, 99), (timedelta(hours=23), 99)]
)
def test_it_bakes_on_until_both_are(after: timedelta, requests: int) -> None:
    assert look(server(requests=requests), after=after).state == "baking"


def test_servers_are_counted_together_and_one_without_the_version_is_not() -> None:
    other = server("c").model_copy(update={"versions": {"1": Served(requests=9)}})
    servers = [server("a", requests=60, errors=1, p99=5.0), server("b", requests=50, p99=9.0), other]
    assert counted(servers, "2") == (2, 110, 1, 0, 0, 9.0)
    assert look(*servers).state == "held"


def test_too_many_errors_end_it_at_once_where_chance_cannot_explain_them() -> None:
    found = look(server(requests=20, errors=10), after=timedelta(seconds=3))
    assert found == Standing("broken", ("10 of 20 requests failed (50.00%), and 2.00% is the most",))


def test_an_early_error_may_be_chance_and_at_the_end_the_rate_counts() -> None:
    assert look(server(requests=20, errors=1), after=timedelta(seconds=3)).state == "baking"
    assert look(server(requests=200, errors=4)).state == "held"
    assert look(server(requests=200, errors=5)).state == "broken"


def test_a_shadow_is_judged_by_what_it_answers_otherwise() -> None:
    shadow = {"share": 0, "disagreement": 0.1}
    assert look(server(compared=200, disagreements=20), **shadow).state == "held"
    found = look(server(compared=200, disagreements=21), **shadow)
    assert found.reasons == ("21 of 200 compared rows were answered otherwise (10.50%), and 10.00% is the most",)
    assert look(server(requests=200), **shadow).state == "baking"


def test_a_slow_candidate_is_told_at_the_end() -> None:
    assert look(server(requests=200, p99=80.0), max_p99_ms=50).state == "broken"
    assert look(server(requests=200, p99=80.0), max_p99_ms=50, after=timedelta(seconds=9)).state == "baking"


def test_without_enough_requests_it_ends_by_its_timeout() -> None:
    day = timedelta(days=1)
    assert look(server(requests=7), after=day).reasons == ("only 7 of 100 requests came in 1440 min",)
    assert look(after=day) == Standing("broken", ("no server has loaded it",))
    # What has stood longer than the timeout has stood all the same.
    assert look(server(requests=100), after=day).state == "held"


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_the_bound_is_scipys(hits: int, tries: int) -> None:
    hits = min(hits, tries)
    expected = stats.binomtest(hits, tries).proportion_ci(0.90, method="wilson").low
    assert wilson_lower(hits, tries) == pytest.approx(expected, abs=1e-4)
    assert 0.0 <= wilson_lower(hits, tries) <= hits / tries


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0, 0.5))
def test_more_errors_never_help(requests: int, errors: int, limit: float) -> None:
    """A trial that is broken by some errors is broken by more of them."""
    errors = min(errors, requests)
    rank = {"held": 0, "baking": 0, "broken": 1}
    for after in (timedelta(seconds=1), BAKE):
        less = look(server(requests=requests, errors=errors), after=after, error_rate=limit)
        more = look(server(requests=requests, errors=min(errors + 1, requests)), after=after, error_rate=limit)
        assert rank[less.state] <= rank[more.state]
