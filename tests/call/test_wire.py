"""What crosses the wire: JSON that reads back equal, digests of content, identities that outlive a retry."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from airflow_mlops.call import ArtifactRef, Call, Outcome, RegistryRef, Verdict, digest_of
from airflow_mlops.spec.window import window_at
from tests.call.made import call, calls, json_values, letters, refs

REF = ArtifactRef(uri="a", digest="sha256:1", kind="dataset")


@given(calls)
def test_a_call_reads_back_equal_with_its_identity_and_digest(sent: Call) -> None:
    received = Call.model_validate_json(sent.model_dump_json())
    assert repr(received.params) == repr(sent.params)
    assert received == sent
    assert (received.identity, received.digest) == (sent.identity, sent.digest)


@given(
    st.builds(
        Outcome,
        stage=letters,
        identity=letters,
        call_digest=letters,
        outputs=st.dictionaries(letters, refs, max_size=2),
        metrics=st.dictionaries(letters, st.floats(), max_size=3),
        verdict=st.builds(Verdict, status=st.sampled_from(["ok", "drift"]), reasons=st.tuples(letters)),
        info=st.dictionaries(letters, letters, max_size=2),
    )
)
def test_an_outcome_reads_back_equal_also_with_numbers_that_are_none(sent: Outcome) -> None:
    received = Outcome.model_validate(json.loads(sent.model_dump_json()))
    assert repr(received) == repr(sent)
    assert received.digest == sent.digest


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 1e308, -0.0, 1.0, 2**70])
def test_no_number_changes_on_its_way(number: float) -> None:
    sent = call(params={"deep": [{"C": number}]})
    assert repr(Call.model_validate_json(sent.model_dump_json()).params) == repr(sent.params)
    metrics = {"auc": float(number)}
    came = Outcome(stage="train", identity="i", call_digest="d", metrics=metrics)
    assert repr(Outcome.model_validate_json(came.model_dump_json()).metrics) == repr(metrics)


@given(st.dictionaries(letters, json_values, max_size=5))
def test_a_digest_is_that_of_the_content(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert digest_of(turned) == digest_of(value) == digest_of(json.loads(json.dumps(value)))
    assert digest_of([value]) != digest_of(value)


@given(json_values, json_values)
def test_other_content_has_another_digest(left: Any, right: Any) -> None:
    same = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
    assert (digest_of(left) == digest_of(right)) is same


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", {"a": object()}])
def test_what_is_not_json_has_no_digest(value: Any) -> None:
    with pytest.raises(TypeError, match="is not JSON"):
        digest_of(value)


DAY = window_at("day", datetime(2013, 1, 5, tzinfo=UTC))
NEXT = window_at("day", datetime(2013, 1, 6, tzinfo=UTC))


@pytest.mark.parametrize(
    "other",
    [{"pipeline": "fraud"}, {"stage": "train"}, {"run": "run-2"}, {"window": NEXT}, {"window": None}],
    ids=lambda other: next(iter(other)),
)
def test_identity_tells_pipeline_stage_window_and_run_apart(other: dict[str, Any]) -> None:
    assert call(**{"window": DAY, **other}).identity != call(window=DAY).identity


@given(calls, calls)
def test_identity_depends_on_nothing_else(one: Call, other: Call) -> None:
    kept = {"pipeline", "stage", "window", "run"}
    mixed = one.model_copy(update={name: getattr(other, name) for name in Call.model_fields if name not in kept})
    assert mixed.identity == one.identity


def test_identity_is_not_fooled_by_names_that_run_together() -> None:
    assert call("c", pipeline="ab").identity != call("bc", pipeline="a").identity


def test_a_call_knows_no_try_number() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        call(try_number=2)


def test_all_stages_of_a_run_share_its_identity() -> None:
    assert call("train").run_identity == call("extract", window=DAY).run_identity
    assert call("train", run="run-2").run_identity != call("train").run_identity


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({"params": {"a": 2}}, False),
        ({"window": NEXT}, False),
        ({"code": REF}, False),
        ({"inputs": {"data": REF.model_copy(update={"digest": "sha256:2"})}}, False),
        ({"inputs": {"rows": REF}}, False),
        ({"inputs": {"data": REF.model_copy(update={"uri": "elsewhere"})}}, True),
        ({"store": "elsewhere"}, True),
        ({"run": "run-2"}, True),
    ],
    ids=str,
)
def test_the_digest_is_content_and_never_a_place(other: dict[str, Any], same: bool) -> None:
    least: dict[str, Any] = {"params": {"a": 1}, "window": DAY, "inputs": {"data": REF}}
    assert (call(**{**least, **other}).digest == call(**least).digest) is same


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({"outputs": {"model": REF}}, False),
        ({"metrics": {"f1": 0.5000000000000001}}, False),
        ({"metrics": {"f1": math.nan}}, False),
        ({"verdict": Verdict(status="rejected")}, False),
        ({"stage": "evaluate"}, False),
        ({"info": {"run": "abc"}}, True),
        ({"identity": "other"}, True),
    ],
    ids=str,
)
def test_an_outcome_is_known_by_what_came_out(other: dict[str, Any], same: bool) -> None:
    least = Outcome(stage="train", identity="i", call_digest="d", metrics={"f1": 0.5})
    assert (least.model_copy(update=other).digest == least.digest) is same


@pytest.mark.parametrize(
    ("status", "passed"),
    [
        ("ok", True),
        ("warn", True),
        ("drift", False),
        ("rejected", False),
        ("insufficient_data", False),
        ("error", False),
    ],
)
def test_only_a_good_verdict_lets_the_next_stage_go_on(status: Any, passed: bool) -> None:
    assert Verdict(status=status).passed is passed


def test_an_input_that_was_not_given_is_named() -> None:
    assert call(inputs={"data": REF}).input("data") == REF
    with pytest.raises(
        ValueError, match=r"pipeline 'churn', stage 'train': the Call has no input 'model'; it has: data"
    ):
        call("train", inputs={"data": REF}).input("model")


@pytest.mark.parametrize("name", ["secrets", "password", "token", "environment"])
def test_neither_a_call_nor_a_registry_has_room_for_a_secret(name: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        call(**{name: "hunter2"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        RegistryRef.model_validate({"uri": "u", "model": "m", "experiment": "e", name: "hunter2"})


def test_another_version_of_the_wire_is_refused() -> None:
    with pytest.raises(ValidationError, match="version"):
        call(version=2)
