"""`airflow-mlops release`: what was tested in staging, and nothing else, goes on to production, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from airflow_mlops.cli.main import main
from airflow_mlops.delivery.build import build
from airflow_mlops.delivery.bundle import MANIFEST, Bundle, packed, read_bundle
from airflow_mlops.delivery.environment import place_of
from airflow_mlops.delivery.places import Place
from airflow_mlops.delivery.release import running
from airflow_mlops.delivery.settings import Target
from tests.delivery.made import half_finished, project, repository
from tests.loopback.airflow import Standin, airflow_of

SMOKE = {"dag": "churn", "params": {"window": "2024-01"}}


class Two:
    """Staging and production, each with its Airflow, and the commands that people give."""

    def __init__(self, folder: Path, places: dict[str, Place], said: pytest.CaptureFixture[str]) -> None:
        self.folder, self.places, self._said = folder, places, said
        self.airflows: dict[str, Standin] = {}

    def __call__(self, *words: str, code: int = 0) -> str:
        """Give a command; what it says where it should, of a refusal what it says of that."""
        self._said.readouterr()
        config = ["--config", str(self.folder / "deploy.yaml")]
        assert main([*words, *config, *([] if words[0] == "diff" else ["--by", "ann"])]) == code
        said = self._said.readouterr()
        return said.err if code else said.out

    def refused(self, *words: str) -> str:
        """The reason why a command is refused, after which production is as it was."""
        before = self.places["prod"].look("churn")
        said = self(*words, code=1)
        assert self.places["prod"].look("churn") == before
        return said

    def runs(self, environment: str) -> tuple[str, str | None]:
        """The version by the log, and the release by the pointer."""
        state = self.places[environment].look("churn")
        now = running(state.entries)
        assert now
        found = re.search(r"churn/(\w{16})", state.pointer or "")
        return now.version, found and found[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two versions of one pipeline, as files."""
    overlays = {"staging": {"owner": "dev"}, "prod": {"owner": "ops"}}
    folder = tmp_path_factory.mktemp("built")
    return [
        build([project(folder / text, description=text, environments=overlays)], version=f"{text}.0").write(folder)
        for text in ("1", "2")
    ]


@pytest.fixture(params=["folder"])
def two(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Two]:
    """Staging in a folder; production in a folder too, or as the test says."""
    (tmp_path / "staging").mkdir()
    (tmp_path / "prod").mkdir()
    prod: dict[str, object] = {"dags": str(tmp_path / "prod")}
    if request.param == "bucket":
        prod = {"gcs": f"{request.getfixturevalue('gcs')}/dags"}
    elif request.param == "git":
        prod = {"git": {"repo": str(repository(tmp_path)), "path": "dags"}}
    targets = {"staging": {"dags": str(tmp_path / "staging"), "smoke": [SMOKE]}, "prod": prod}
    with ExitStack() as stack:
        places = {
            name: place_of(Target.model_validate({**target, "airflow": "http://a"})) for name, target in targets.items()
        }
        made = Two(tmp_path, places, capsys)
        for name, target in targets.items():
            made.airflows[name] = stack.enter_context(
                airflow_of(place_of(Target.model_validate({**target, "airflow": "http://a"})))
            )
            target["airflow"] = made.airflows[name].url
        (tmp_path / "deploy.yaml").write_text(yaml.safe_dump({"environments": targets}, sort_keys=False))
        yield made


@pytest.mark.parametrize("two", ["folder", "git", "bucket"], indirect=True)
def test_the_very_same_digest_goes_on_and_back(two: Two, files: list[Path]) -> None:
    for file in files:
        said = two("deploy", str(file), "--env", "staging")
        digest = re.search(r"digest +(\S+)", said)
        two("release", "promote", "staging", "prod")
        held = [place.bundle("churn", digest[1]) for place in two.places.values()] if digest else []
        assert held[0] == held[1]
        assert held[0].to_bytes() == file.read_bytes()
        assert two.runs("prod") == two.runs("staging")
        last = two.places["prod"].look("churn").entries[-1]
        assert (last.kind, last.action, last.source, last.by) == ("deployed", "promote", "staging", "ann")
    # Smoke runs are the environment's own, and a new Airflow's DAGs are unpaused.
    assert two.airflows["staging"].runs == [("churn.train", {"window": "2024-01"})] * 2
    assert two.airflows["prod"].runs == []
    assert "churn.monitor" in two.airflows["prod"].unpaused
    assert two.runs("prod")[0] == "2.0"
    found = json.loads(two("release", "list", "--json"))
    assert found["prod"]["churn"][-1]["digest"] == found["staging"]["churn"][-1]["digest"]
    assert "owner" in (differing := two("diff", "staging", "prod")) and "digest" not in differing

    # The same once more changes nothing.
    before = two.places["prod"].look("churn")
    assert "churn 2.0 runs in prod" in two("release", "promote", "staging", "prod")
    assert two.places["prod"].look("churn") == before

    assert "back from 2.0 to 1.0; 1.0 runs in prod" in two("release", "rollback", "prod")
    assert (two.runs("prod")[0], two.runs("staging")[0]) == ("1.0", "2.0")
    told = two("release", "list", "prod")
    assert re.search(r"^ \*churn 1\.0 \w{16}  rollback deployed", told, re.MULTILINE)
    assert re.search(r"^  churn 2\.0 \w{16}  promote deployed .* by ann from staging", told, re.MULTILINE)
    assert "digest" in two("diff", "staging", "prod")


def test_nothing_goes_on_where_nothing_runs(two: Two, files: list[Path]) -> None:
    assert "nothing was released in staging" in two.refused("release", "promote", "staging", "prod")
    two.airflows["staging"].broken["1.0"] = "no module named x"
    two("deploy", str(files[0]), "--env", "staging", code=1)
    assert "no release of 'churn' runs in staging" in two.refused("release", "promote", "staging", "prod")
    assert "churn: nothing runs" in two("release", "list", "staging")
    # What was deployed before it runs again, and goes on.
    two.airflows["staging"].broken = {"2.0": "no module named x"}
    two("deploy", str(files[0]), "--env", "staging")
    two("deploy", str(files[1]), "--env", "staging", code=1)
    two("release", "promote", "staging", "prod")
    assert two.runs("prod")[0] == "1.0"


def test_what_is_not_as_it_was_tested_does_not_go_on(two: Two, files: list[Path]) -> None:
    for file in files:
        two("deploy", str(file), "--env", "staging")
    folder = next((two.folder / "staging" / "releases" / "churn").glob(f"{two.runs('staging')[1]}"))
    for path in ("pipelines/churn.yaml", "pipelines/churn/features.py", "manifest.json"):
        before = (folder / path).read_bytes()
        (folder / path).write_bytes(before + b"\n")
        assert f"{path} was changed" in two.refused("release", "promote", "staging", "prod")
        (folder / path).write_bytes(before)
    pointer = two.folder / "staging" / "churn_release.py"
    other = next(each.name for each in folder.parent.iterdir() if each.name not in (folder.name, "log"))
    right = pointer.read_text()
    pointer.write_text(right.replace(folder.name, other))
    told = two.refused("release", "promote", "staging", "prod")
    assert "does not name churn 2.0, which was deployed in staging" in told
    pointer.write_text(right)
    two("release", "promote", "staging", "prod")


def test_nothing_goes_on_from_or_to_what_is_half_finished(two: Two, files: list[Path]) -> None:
    def half(environment: str, bundle: Bundle, until: timedelta) -> None:
        half_finished(two.places[environment], bundle, datetime.now(UTC) + until, environment)

    first, second = map(read_bundle, files)
    two("deploy", str(files[0]), "--env", "staging")
    half("prod", second, timedelta(hours=1))
    told = two.refused("release", "promote", "staging", "prod")
    assert "ann began to release churn 2.0 in prod" in told
    assert "airflow-mlops release rollback prod to take it back" in told
    assert "churn 2.0 is half-finished, since" in two("release", "list")
    assert "2.0, which ann had begun, was taken back" in two("release", "rollback", "prod")
    assert two.places["prod"].look("churn").pointer is None
    two("release", "promote", "staging", "prod")
    assert two.runs("prod") == ("1.0", first.manifest.release)

    # One that counts as lost is in nobody's way.
    half("prod", second, timedelta(0))
    two("release", "promote", "staging", "prod")
    assert two.runs("prod") == ("1.0", first.manifest.release)

    half("staging", second, timedelta(0))
    told = two.refused("release", "promote", "staging", "prod")
    assert "ann began to release churn 2.0 in staging" in told and "not known yet what runs there" in told


def test_what_production_does_not_load_is_taken_back_there(two: Two, files: list[Path]) -> None:
    two("deploy", str(files[0]), "--env", "staging")
    two("release", "promote", "staging", "prod")
    two("deploy", str(files[1]), "--env", "staging")
    two.airflows["prod"].broken["2.0"] = "no connection there"
    two.airflows["prod"].slow = 2
    told = two("release", "promote", "staging", "prod", code=1)
    assert "Airflow does not load it" in told and "no connection there" in told and "1.0 runs again" in told
    assert (two.runs("prod")[0], two.runs("staging")[0]) == ("1.0", "2.0")
    last = two.places["prod"].look("churn").entries[-1]
    assert (last.kind, last.action, last.version) == ("failed", "promote", "2.0")
    assert re.search(r"churn 2\.0 .* promote failed .*: Airflow does not load it", two("release", "list", "prod"))


def test_a_release_whose_files_come_late_is_waited_for_and_not_for_ever(two: Two, files: list[Path]) -> None:
    two.airflows["prod"].late = 4
    two("deploy", str(files[0]), "--env", "prod")
    assert two.airflows["prod"].late == 0
    two.airflows["prod"].late = 1000
    config = two.folder / "deploy.yaml"
    config.write_text(config.read_text().replace("  prod:\n", "  prod:\n    timeout: 1s\n"))
    told = two("deploy", str(files[1]), "--env", "prod", code=1)
    assert "Airflow has not loaded it within 1 s" in told and "x is missing" in told
    assert two.runs("prod")[0] == "1.0"


def test_environments_that_are_not_there_are_refused(two: Two, files: list[Path]) -> None:
    allowed = "there is no environment 'live'; allowed: staging, prod"
    assert allowed in two.refused("deploy", str(files[0]), "--env", "live")
    two("deploy", str(files[0]), "--env", "staging")
    assert allowed in two.refused("release", "promote", "staging", "live")
    assert allowed in two.refused("release", "rollback", "live")
    assert "name another environment" in two.refused("release", "promote", "staging", "staging")


def test_a_bundle_that_was_changed_never_reaches_an_environment(two: Two, files: list[Path], tmp_path: Path) -> None:
    bundle = read_bundle(files[0])
    held = {**bundle.files, MANIFEST: bundle.manifest.to_bytes(), "schemas/churn.yaml": b"columns: {}\n"}
    (tmp_path / "changed.zip").write_bytes(packed(held))
    told = two.refused("deploy", str(tmp_path / "changed.zip"), "--env", "prod")
    assert "schemas/churn.yaml was changed after it was built" in told
    assert list((tmp_path / "prod").iterdir()) == []
