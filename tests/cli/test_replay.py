"""``airflow-mlops replay`` on a small history in which one column jumps: what it prints, keeps, and leaves alone."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from airflow_mlops.call.store import Store
from airflow_mlops.cli import main
from airflow_mlops.cli.past import Past
from airflow_mlops.cli.replay import policies_of, settings_of
from airflow_mlops.registry.mlflow_api import pointed_at
from airflow_mlops.registry.replay import walk
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.spec import Declaration, load_declarations
from airflow_mlops.spec.pipeline import DataDrift
from tests import toy
from tests.forked import printed
from tests.toy import World

KEYS = ("2024-01", "2024-02", "2024-03", "2024-04", "2024-05")
WORDS = ("replay", "toy.yaml", "--from", "2024-02", "--to", "2024-04")


def history(folder: Path, **sections: Any) -> Declaration:
    """Five months; from the third on ``amount`` lies three standard deviations higher, so the old model is lost."""
    for key in KEYS:
        toy.months(folder, [key], 1000, shift=3.0 if key >= "2024-03" else 0.0)
    monitor = {"schedule": "@continuous", **sections.pop("monitor", {})}
    return toy.declare(folder, schedule=None, **without_schedule(sections), monitor=monitor)


def without_schedule(sections: dict[str, Any]) -> dict[str, Any]:
    """The windows stay months where no schedule says so."""
    data = {"source": "data/{window}.parquet", "target": "y", "time": "at", "key": "id", "window": "month"}
    return {"data": data, "evaluate": {"metrics": ["accuracy"], "plots": False}, **sections}


def run_here(folder: Path, *words: str) -> tuple[int, str]:
    """Run the command in this process, which has imported what it needs; what it printed."""
    out = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        return main([*words]), out.getvalue()


class Replayed(NamedTuple):
    """A replay and the same once more, and a third one after a month was lost and the declaration changed."""

    folder: Path
    first: dict[str, Any]
    again: dict[str, Any]
    changed: str
    airflow: bool
    """Whether Airflow was imported."""


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    folder = tmp_path_factory.mktemp("replayed")
    history(folder)
    code = """
import contextlib, io, json, sys
from airflow_mlops.cli import main
with contextlib.redirect_stdout(io.StringIO()) as out:
    assert main(sys.argv[1:]) == 0
print(json.dumps([json.loads(out.getvalue()), "airflow" in sys.modules]))
"""
    # Nobody listens there: whoever asks the team's registry fails.
    tracking = "http://127.0.0.1:9"
    first, airflow = printed(code, *WORDS, "--json", cwd=folder, MLFLOW_TRACKING_URI=tracking)
    again = run_here(folder, *WORDS, "--json")
    assert again[0] == 0
    history(folder, retrain={"mode": "observe"}, monitor={"schedule": None})
    (folder / "data" / "2024-04.parquet").unlink()
    changed = run_here(folder, *WORDS, "--no-evidently")
    assert changed[0] == 0
    return Replayed(folder, first, json.loads(again[1]), changed[1], airflow)


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["policy"]: each for each in found["policies"]}


def test_a_jump_is_met_by_retraining(replayed: Replayed) -> None:
    policies = by_name(replayed.first)
    assert list(policies) == ["declared", "never", "every month", "evidently", "ours"]
    served = {name: [day["served"] for day in each["windows"]] for name, each in policies.items()}
    assert served["never"] == ["2024-01"] * 3
    assert served["ours"] == served["declared"] == ["2024-01", "2024-01", "2024-03"]
    assert [each["window"] for each in policies["ours"]["trainings"]] == ["2024-03"]
    values = {name: [day["value"] for day in each["windows"]] for name, each in policies.items()}
    # Before the jump all are the same model, and after it only who has retrained knows better.
    assert values["ours"][:2] == values["never"][:2]
    assert values["ours"][2] > values["never"][2] + 0.1
    assert policies["ours"]["training_cpu_seconds"] > 0


def test_the_teams_registry_and_store_are_not_touched(replayed: Replayed) -> None:
    assert sorted(file.name for file in (replayed.folder / ".airflow-mlops").iterdir()) == ["replay"]
    assert sorted(file.name for file in replayed.folder.iterdir()) == [".airflow-mlops", "data", "toy.yaml"]
    assert not replayed.airflow


def test_evidently_is_asked_and_never_recommended(replayed: Replayed) -> None:
    evidently = by_name(replayed.first)["evidently"]
    # One column of four: its share of half is not reached, whatever that column does.
    assert all(day["said"].endswith("of the columns drifted") for day in evidently["windows"])
    assert evidently["judging_cpu_seconds"] > 0
    assert replayed.first["recommended"]["policy"] != "evidently"


def test_once_more_nothing_is_trained_and_what_it_cost_is_still_known(replayed: Replayed) -> None:
    told = [{key: value for key, value in each.items() if key != "judging_cpu_seconds"} for each in policies(replayed)]
    assert told[: len(told) // 2] == told[len(told) // 2 :]
    assert replayed.again["recommended"] == replayed.first["recommended"]


def policies(replayed: Replayed) -> list[dict[str, Any]]:
    return [*replayed.first["policies"], *replayed.again["policies"]]


def test_the_page_has_the_plot_and_every_policy(replayed: Replayed) -> None:
    page = Path(replayed.first["html"]).read_text()
    assert "data:image/png" in page
    assert "every month" in page


def test_the_tables_name_what_is_left_out_and_what_was_taken_for_granted(replayed: Replayed) -> None:
    assert "note: 2024-04 is left out: it has no data" in replayed.changed
    assert "mode: observe; it was replayed as if it said auto" in replayed.changed
    assert "no monitor.schedule is declared: the declared policy hears of no drift" in replayed.changed
    assert "recommended: " in replayed.changed


class Live(NamedTuple):
    """A champion of January in a registry, with its history in a replay beside it."""

    world: World
    replay: Path
    model: str


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    registry = toy.registry_ref(f"sqlite:///{folder}/mlflow.db", "toy")
    world = World(folder, str(folder / "store"), registry)
    outcomes = toy.run_plan(history(folder), "2024-01", "train", world.store, registry)
    (folder / "replay").mkdir()
    yield Live(world, folder / "replay", outcomes["train"].outputs["model"].uri)


RULES = (
    {},
    {"consecutive": 2},
    {"consecutive": 2, "within": 3, "min_effect": 0.0, "false_alarm_rate": 0.2},
    {"multivariate": True, "min_rows": 900},
    {"min_rows": 1001},
)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_replay_says_of_every_month_what_monitoring_says(live: Live, rule: dict[str, Any]) -> None:
    last = 2 if rule.get("consecutive") else 1
    monitor = {"data_drift": rule, "windows": {"last": last}}
    declaration = history(live.world.folder, monitor=monitor)
    # In a store of its own, as the verdicts of other rules would confirm these.
    store = str(live.world.folder / f"store-{last}-{RULES.index(rule)}")
    shutil.copytree(live.world.store, store)
    windows = [toy.month(key) for key in KEYS]
    past = Past(declaration, live.replay)
    try:
        for at, window in enumerate(windows[1:], 1):
            toy.run_monitor(declaration, window, f"monitor-{at}", store, live.world.registry)
            (kept,) = Verdicts(Store(store), "toy", "data_drift").of_window(window.key)
            said = past.verdict(DataDrift(**rule), windows[0], window, windows[1:at])
            same = {key: kept[key] for key in said if key not in ("champion", "cpu")}
            assert json.loads(json.dumps({key: said[key] for key in same})) == same
    finally:
        past.close()


def test_the_metric_is_that_of_the_pipelines_own_model_on_the_window(live: Live) -> None:
    import mlflow
    import pyarrow.parquet as pq

    with pointed_at(live.world.registry.uri):
        model = mlflow.sklearn.load_model(live.model)
    past = Past(history(live.world.folder), live.replay)
    for key in KEYS[1:]:
        rows = pq.read_table(live.world.folder / "data" / f"{key}.parquet").to_pandas()
        expected = float((model.predict(rows) == rows["y"]).mean())
        assert past.metric(toy.month("2024-01"), toy.month(key)) == pytest.approx(expected)
    past.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "2024-05", "--to", "2024-02"], "--to 2024-02 is before --from 2024-05"),
        (["--from", "2024-02-01", "--to", "2024-03"], "is not a window of one month"),
        (["--from", "2024-01", "--to", "2024-03"], "has no 2023-12; allowed: 2024-01, 2024-02"),
        (["--from", "2024-06", "--to", "2024-08"], "has no window from 2024-06 to 2024-08; allowed: 2024-01"),
        (["--from", "2024-02", "--to", "2024-03", "--pipeline", "tooy"], "has no pipeline 'tooy'; allowed: toy"),
    ],
)
def test_windows_that_cannot_be_replayed_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    toy.months(tmp_path, KEYS, 10)
    toy.declare(tmp_path)
    assert run_here(tmp_path, "replay", "toy.yaml", *words) == (1, "")
    assert said in capsys.readouterr().err


def test_what_cannot_be_replayed_at_all_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy.months(tmp_path, KEYS, 10)
    toy.declare(tmp_path, runtime={"python": "/usr/bin/python3"})
    for file, said in (("toy.yaml", "has a runtime of its own"), ("tay.yaml", "tay.yaml")):
        assert run_here(tmp_path, "replay", file, *WORDS[2:])[0] == 1
        assert said in capsys.readouterr().err
    toy.declare(tmp_path, data={"source": "data/2024-01.parquet", "target": "y", "time": None})
    assert run_here(tmp_path, *WORDS)[0] == 1
    assert "its data comes as one whole; try: declare data.time" in capsys.readouterr().err


def ticks_of(folder: Path, schedule: str | None, **sections: Any) -> list[str]:
    declaration = toy.declare(folder, **without_schedule({**sections, "schedule": schedule}))
    declared = policies_of(declaration, toy.month("2024-01"), [toy.month(key) for key in KEYS[1:3]], evidently=False)[0]
    return [f"{at:%m-%d %H:%M}" for at in declared.ticks]


@pytest.mark.parametrize(
    ("schedule", "ticks"),
    [
        (None, []),
        ("@monthly", ["03-01 00:00", "04-01 00:00"]),
        ("@quarterly", ["04-01 00:00"]),
        ("30 6 15 * *", ["02-15 06:30", "03-15 06:30"]),
        (
            "0 12 * * 4",
            [
                f"{day} 12:00"
                for day in ("02-01", "02-08", "02-15", "02-22", "02-29", "03-07", "03-14", "03-21", "03-28")
            ],
        ),
    ],
)
def test_the_schedule_is_that_of_the_declaration(tmp_path: Path, schedule: str | None, ticks: list[str]) -> None:
    assert ticks_of(tmp_path, schedule) == ticks


def test_the_declared_policy_is_replayed_from_its_yaml(tmp_path: Path) -> None:
    from tests.registry.test_replay import Made

    text = {"mode": "suggest", "cooldown": "45d", "max_per_week": 2}
    declaration = toy.declare(
        tmp_path, **without_schedule({"retrain": text, "schedule": "0 0 15 * *", "monitor": {"schedule": "@daily"}})
    )
    windows = [toy.month(key) for key in KEYS[1:]]
    declared = policies_of(declaration, toy.month("2024-01"), windows, evidently=False)[0]
    assert declared.retrain.cooldown == timedelta(days=45) and declared.retrain.max_per_week == 2

    class Monthly(Made):
        def judge(self, *asked: Any) -> Any:
            return super().judge(*asked)._replace(status="drift")

    found = walk(declared, Monthly(), toy.month("2024-01"), windows, timedelta(0))
    # On the 15th of each month the schedule trains on the month before, and a promotion holds drift for 45 days.
    assert [(each.window, f"{each.at:%m-%d}", each.why) for each in found.attempts] == [
        ("2024-02", "03-15", "the schedule"),
        ("2024-03", "04-15", "the schedule"),
        ("2024-04", "05-15", "the schedule"),
    ]


@pytest.mark.parametrize("policy", ["declared", "never", "every month", "ours", ""])
@pytest.mark.parametrize("schedule", ["@monthly", None])
def test_the_settings_can_be_pasted_over_the_declared_ones(tmp_path: Path, policy: str, schedule: str | None) -> None:
    sections = {
        "schedule": schedule,
        "retrain": {"mode": "observe", "cooldown": "6h", "triggers": ["drift"]},
        "monitor": {"schedule": "@daily", "windows": {"last": 2}, "data_drift": {"min_effect": 0.5}},
    }
    declaration = toy.declare(tmp_path, **without_schedule(sections))
    start, windows = toy.month("2024-01"), [toy.month(key) for key in KEYS[1:]]
    wanted = {each.name: each for each in policies_of(declaration, start, windows, evidently=False)}
    file = tmp_path / "toy.yaml"
    text = settings_of(declaration)[policy]
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **yaml.safe_load(text)}))
    pasted = load_declarations(file)[0]
    got = policies_of(pasted, start, windows, evidently=False)[0]
    assert pasted.pipeline.grain == "month" and pasted.pipeline.monitor.windows.last == 2
    if policy == "":
        assert (pasted.pipeline.retrain.mode, got._replace(name="")) == (
            "suggest",
            wanted["declared"]._replace(name=""),
        )
    elif policy in ("declared", "ours"):
        assert pasted.pipeline.retrain.mode == "auto"
        expected = wanted[policy]
        assert (got.judge, got.ticks) == (expected.judge, expected.ticks)
        assert got.retrain.model_copy(update={"triggers": expected.retrain.triggers}) == expected.retrain
    else:
        assert pasted.pipeline.retrain.mode == "observe"
        assert list(got.ticks) == ([each.end for each in windows] if policy == "every month" else [])
