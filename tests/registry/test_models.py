"""The registry and the ledger together: runs found again, versions made once, aliases that follow."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_mlops.call import Call, Store
from airflow_mlops.errors import ModelNotFoundError, RegistryError
from airflow_mlops.registry import ModelRegistry, Request, Requests
from airflow_mlops.registry.policy import decide
from airflow_mlops.spec.pipeline import Retrain
from tests import toy
from tests.toy import World


@pytest.fixture
def registry(world: World) -> ModelRegistry:
    return toy.registry_of(world.store, world.registry)


def call(world: World, run: str = "a") -> Call:
    return Call(pipeline="toy", stage="train", run=run, store=world.store, registry=world.registry)


def promoted(registry: ModelRegistry, version: str, before: str | None) -> None:
    registry.ledger.record(
        "promotion", version=version, champion_before=before, decision=version, reasons=(), run=version
    )


def test_a_run_is_made_once_and_by_every_stage_found_again(world: World, registry: ModelRegistry) -> None:
    made = registry.run_of(call(world))
    assert registry.run_of(call(world).model_copy(update={"stage": "evaluate"})) == made
    assert registry.run_of(call(world, "b")) != made
    assert registry.run_of(call(world), suffix="other") != made


def test_a_call_without_a_registry_is_refused(world: World) -> None:
    with pytest.raises(RegistryError, match="was given none"):
        ModelRegistry.of(call(world).model_copy(update={"registry": None}), Store(world.store))


def test_registering_again_makes_no_second_version(world: World, registry: ModelRegistry) -> None:
    first = toy.make_version(world, "sha256:a")
    assert toy.make_version(world, "sha256:a") == first
    assert len(toy.state_of(world)["versions"]) == 1
    other = toy.make_version(world, "sha256:b")
    assert (first.uri[-2:], other.uri[-2:]) == ("/1", "/2")


def test_without_a_promotion_there_is_no_champion(registry: ModelRegistry) -> None:
    assert registry.champion() is None
    with pytest.raises(ModelNotFoundError, match="has no champion yet"):
        registry.need_champion()


def test_aliases_follow_the_ledger(world: World, registry: ModelRegistry) -> None:
    for digest in ("sha256:a", "sha256:b"):
        toy.make_version(world, digest)
    registry.set_challenger("1")
    promoted(registry, "1", None)
    assert registry.project() == {"champion": "1"}
    registry.set_challenger("2")
    assert registry.project() == {"champion": "1", "challenger": "2"}
    promoted(registry, "2", "1")
    assert registry.project() == {"champion": "2", "previous": "1"}
    assert registry.project() == {"champion": "2", "previous": "1"}
    assert registry.need_champion().tags["mlops.model_digest"] == "sha256:b"


@pytest.mark.parametrize(
    "meddling", [{"champion": "2"}, {"champion": None}, {"previous": "1"}, {"champion": "2", "previous": "2"}]
)
def test_aliases_that_somebody_changed_by_hand_are_put_right(
    world: World, registry: ModelRegistry, meddling: dict[str, str | None]
) -> None:
    for digest in ("sha256:a", "sha256:b"):
        toy.make_version(world, digest)
    promoted(registry, "1", None)
    registry.project()
    for alias, version in meddling.items():
        registry.api.set_alias(world.registry.model, alias, version)
    assert registry.need_champion().version == "1"
    assert registry.project() == {"champion": "1"}


def test_an_alias_without_any_promotion_is_taken_away(world: World, registry: ModelRegistry) -> None:
    toy.make_version(world, "sha256:a")
    registry.api.set_alias(world.registry.model, "champion", "1")
    assert registry.project() == {}


def test_links_lead_to_the_run_and_its_report(world: World, registry: ModelRegistry) -> None:
    experiment = registry.api.experiment_id(world.registry.experiment)
    plain = f"{world.registry.uri}/#/experiments/{experiment}/runs/r1"
    assert registry.run_url("r1") == plain
    assert registry.run_url("r1", "report.html") == f"{plain}/artifacts/report.html"
    outside = world.registry.model_copy(update={"ui_url": "https://mlflow.example/"})
    seen = ModelRegistry(outside, Store(world.store)).run_url("r1")
    assert seen is not None and seen.startswith("https://mlflow.example/#/experiments/")


@pytest.fixture
def three(world: World, registry: ModelRegistry) -> ModelRegistry:
    """Three versions, each the champion in its turn."""
    for number, before in ((1, None), (2, "1"), (3, "2")):
        toy.make_version(world, f"sha256:{number}")
        registry.ledger.record(
            "promotion",
            version=str(number),
            champion_before=before,
            model=f"sha256:{number}",
            decision=f"d{number}",
            reasons=("better",),
            run=f"r{number}",
            window=f"2024-0{number}",
            card=f"card{number}",
        )
    registry.project()
    return registry


def test_two_rollbacks_go_back_two_steps_and_the_aliases_follow(three: ModelRegistry) -> None:
    first = three.roll_back(reason=" worse ", run="a", by="ann")
    assert (first.version, first.champion_before, first.reasons, first.by) == ("2", "3", ("worse",), "ann")
    # What the version was then, for those who serve it and those who monitor it.
    assert (first.model, first.window, first.card) == ("sha256:2", "2024-02", "card2")
    assert three.api.aliases(three.ref.model) == {"champion": "2", "previous": "1"}
    three.roll_back(reason="worse still", run="b")
    assert three.api.aliases(three.ref.model) == {"champion": "1"}
    with pytest.raises(ModelNotFoundError, match=r"has no champion before 1 to go back to; allowed: .*: 2, 3$"):
        three.roll_back(reason="again", run="c")
    # Forward again, over the version between: the way back stays.
    three.roll_back("3", reason="it was none of these", run="d")
    assert three.api.aliases(three.ref.model) == {"champion": "3", "previous": "1"}
    assert three.roll_back(reason="worse", run="e").version == "1"


def test_a_retry_of_a_rollback_takes_no_second_step(three: ModelRegistry) -> None:
    made = three.roll_back(reason="worse", run="a")
    three.api.set_alias(three.ref.model, "champion", "3")
    assert three.roll_back(reason="worse", run="a") == made
    assert three.api.aliases(three.ref.model) == {"champion": "2", "previous": "1"}


@pytest.mark.parametrize(
    ("to", "reason", "error", "said"),
    [
        ("3", "worse", RegistryError, "version 3 of .* is the champion already"),
        ("9", "worse", ModelNotFoundError, "version 9 of .* never was the champion; allowed: 1, 2, 3"),
        ("4", "worse", ModelNotFoundError, "version 4 of .* never was the champion"),
        ("1", " ", RegistryError, "needs a reason"),
    ],
)
def test_a_rollback_that_cannot_be_changes_nothing(
    world: World, three: ModelRegistry, to: str, reason: str, error: type[Exception], said: str
) -> None:
    toy.make_version(world, "sha256:never-promoted")
    before = toy.state_of(world)
    with pytest.raises(error, match=said):
        three.roll_back(to, reason=reason, run="a")
    assert toy.state_of(world) == before


def test_a_rollback_to_a_version_that_is_another_model_now_is_refused(world: World, three: ModelRegistry) -> None:
    three.api.tag_version(three.ref.model, "2", {"mlops.model_digest": "sha256:forged"})
    before = toy.state_of(world)
    with pytest.raises(RegistryError, match="no longer the model that was promoted"):
        three.roll_back(reason="worse", run="a")
    assert toy.state_of(world) == before


def test_before_any_promotion_there_is_nothing_to_go_back_to(registry: ModelRegistry) -> None:
    with pytest.raises(ModelNotFoundError, match="no champion before the first one"):
        registry.roll_back(reason="worse", run="a")


def test_a_rollback_starts_the_cooldown(world: World, three: ModelRegistry) -> None:
    three.roll_back(reason="worse", run="a")
    standing = Requests(Store(world.store), world.registry.model).standing()
    assert standing.champion == "2"
    assert standing.decided is not None and datetime.now(UTC) - standing.decided < timedelta(minutes=1)
    decision = decide(
        Retrain.model_validate({"cooldown": "1h"}),
        [],
        standing,
        Request(model="m", champion="2", reason="moved", trigger="drift"),
        datetime.now(UTC),
    )
    assert decision.state == "held"
