"""Releases: one atomic switch, one at a time, taken back where they go wrong; in a folder, a Git branch, a bucket."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_mlops.delivery.build import build
from airflow_mlops.delivery.bundle import Bundle, Manifest
from airflow_mlops.delivery.environment import declarations_in
from airflow_mlops.delivery.gcs_place import GcsPlace
from airflow_mlops.delivery.git import git
from airflow_mlops.delivery.git_place import GitPlace
from airflow_mlops.delivery.places import Place, StorePlace, pointer_file
from airflow_mlops.delivery.release import history, rollback, running
from airflow_mlops.delivery.settings import read_settings, target_of
from airflow_mlops.errors import (
    DeclarationError,
    DeliveryError,
    ReleaseConflictError,
    ReleaseFailedError,
)
from tests.delivery.made import half_finished, project, push, release, repository
from tests.toy import race


@pytest.fixture(params=["folder", "git", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Each kind of place, anew."""
    return reopened(request.param, request, tmp_path)()


def reopened(kind: str, request: pytest.FixtureRequest, folder: Path) -> Callable[[], Place]:
    """How to come to one place again and again, as another process does."""
    if kind == "folder":
        (folder / "dags").mkdir()
        return lambda: StorePlace(str(folder / "dags"))
    if kind == "bucket":
        bucket = request.getfixturevalue("gcs")
        return lambda: GcsPlace(f"{bucket}/dags")
    repository(folder)
    return lambda: GitPlace(str(folder / "origin.git"), "main", "dags")


def refuse(manifest: Manifest, smoke: bool) -> None:
    """Airflow does not load version 2."""
    if manifest.version == "2.0":
        raise ReleaseFailedError("Airflow does not load it: no module named x")


def runs(place: Place) -> tuple[str | None, str | None]:
    """What the log and the pointer say."""
    state = place.look("churn")
    now = running(state.entries)
    return now and now.version, state.pointer and state.pointer.partition("releases/churn/")[2][:16]


def test_releases_replace_each_other_and_can_be_gone_back_to(place: Place, bundles: list[Bundle]) -> None:
    assert runs(place) == (None, None)
    for bundle in bundles:
        seen = []
        assert release(place, bundle, lambda *told, seen=seen: seen.append(told)).kind == "deployed"  # type: ignore[misc]
        assert seen == [(bundle.manifest, True)]
        assert runs(place) == (bundle.manifest.version, bundle.manifest.release)
        assert place.bundle("churn", bundle.manifest.digest) == bundle
    assert place.names() == ["churn"]
    for bundle in (bundles[1], bundles[0]):
        rollback(place, "churn", "staging", by="ben", watch=lambda *_: None, timeout=timedelta(minutes=5))
        assert runs(place) == (bundle.manifest.version, bundle.manifest.release)
    with pytest.raises(DeliveryError, match="has no release before"):
        rollback(place, "churn", "staging", by="ben", watch=lambda *_: None, timeout=timedelta(minutes=5))


def test_a_bad_release_leaves_the_old_one_running(place: Place, bundles: list[Bundle]) -> None:
    with pytest.raises(ReleaseFailedError, match=r"(?s)no module named x.*nothing runs now"):
        release(place, bundles[1], refuse)
    assert runs(place) == (None, None)
    release(place, bundles[0])
    with pytest.raises(ReleaseFailedError, match=r"(?s)churn 2.0 in staging.*no module named x.*1.0 runs again"):
        release(place, bundles[1], refuse)
    assert runs(place) == ("1.0", bundles[0].manifest.release)
    last = place.look("churn").entries[-1]
    assert (last.kind, last.before, last.by) == ("failed", bundles[0].manifest.digest, "ann")
    assert last.reason
    assert "no module named x" in last.reason


def test_a_release_that_was_interrupted_is_put_back_too(tmp_path: Path, bundles: list[Bundle]) -> None:
    place = StorePlace(str(tmp_path))
    release(place, bundles[0])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        release(place, bundles[1], interrupted)
    assert runs(place) == ("1.0", bundles[0].manifest.release)


def test_the_same_release_again_changes_nothing(tmp_path: Path, bundles: list[Bundle]) -> None:
    place = StorePlace(str(tmp_path))
    first = release(place, bundles[0])
    assert release(place, bundles[0], refuse) == first
    assert len(place.look("churn").entries) == 2


@pytest.mark.parametrize("kind", ["folder", "git", "bucket"])
def test_of_two_at_once_one_is_refused(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, bundles: list[Bundle]
) -> None:
    again = reopened(kind, request, tmp_path)
    first = again()
    release(first, bundles[0])

    def meanwhile(*_: object) -> None:
        with pytest.raises(ReleaseConflictError, match="ann began to release churn 2.0"):
            release(again(), bundles[2], by="ben")

    release(first, bundles[1], meanwhile)
    assert runs(first) == ("2.0", bundles[1].manifest.release)

    # Both have looked before either has begun.
    one, two = again(), again()
    states = [one.look("churn"), two.look("churn")]
    entry = states[0].entries[-1].model_copy(update={"number": 5, "kind": "started"})
    one.start(states[0], entry, bundles[2], "# airflow-mlops deploy: one")
    with pytest.raises(ReleaseConflictError):
        two.start(states[1], entry, bundles[2], "# airflow-mlops deploy: two")
    assert again().look("churn").pointer == "# airflow-mlops deploy: one"


@pytest.mark.parametrize("kind", ["folder", "git", "bucket"])
@pytest.mark.parametrize("loaded", [True, False])
def test_who_was_taken_back_leaves_what_others_have_released_since(
    kind: str, loaded: bool, request: pytest.FixtureRequest, tmp_path: Path, bundles: list[Bundle]
) -> None:
    again = reopened(kind, request, tmp_path)
    first = again()
    release(first, bundles[0])

    def meanwhile(*_: object) -> None:
        other = again()
        rollback(other, "churn", "staging", by="ben", watch=lambda *_: None, timeout=timedelta(minutes=5))
        release(other, bundles[2], by="ben")
        if not loaded:
            raise ReleaseFailedError("Airflow does not load it: timed out")

    with pytest.raises(ReleaseConflictError if loaded else ReleaseFailedError, match="release list"):
        release(first, bundles[1], meanwhile)
    assert runs(again()) == ("3.0", bundles[2].manifest.release)


def test_a_pipeline_is_released_under_one_name(place: Place, bundles: list[Bundle]) -> None:
    release(place, bundles[0])
    renamed = Bundle(bundles[1].manifest.model_copy(update={"name": "other"}), bundles[1].files)
    with pytest.raises(ReleaseConflictError, match=r"(?s)staging has 'churn' in the release churn 1.0.*--name churn"):
        release(place, renamed)
    assert place.names() == ["churn"]


def test_a_half_finished_release_is_in_the_way_until_it_counts_as_lost(place: Place, bundles: list[Bundle]) -> None:
    release(place, bundles[0])
    half_finished(place, bundles[1], datetime.now(UTC) + timedelta(hours=1))
    assert runs(place) == ("1.0", bundles[1].manifest.release)
    with pytest.raises(ReleaseConflictError, match="release rollback staging"):
        release(place, bundles[2])
    entry, told = rollback(place, "churn", "staging", by="ben", watch=lambda *_: None, timeout=timedelta(minutes=5))
    assert entry
    assert (entry.version, told) == ("1.0", "2.0, which ann had begun, was taken back")
    assert runs(place) == ("1.0", bundles[0].manifest.release)

    half_finished(place, bundles[1], datetime.now(UTC))
    release(place, bundles[2])
    assert runs(place) == ("3.0", bundles[2].manifest.release)
    assert [each.kind for each in place.look("churn").entries][-3:] == ["failed", "started", "deployed"]
    assert "lost" in (place.look("churn").entries[-3].reason or "")


def test_a_release_that_was_changed_where_it_lies_is_not_taken_on(tmp_path: Path, bundles: list[Bundle]) -> None:
    (tmp_path / "dags").mkdir()
    place = StorePlace(str(tmp_path / "dags"))
    for bundle in bundles[:2]:
        release(place, bundle)
    folder = tmp_path / "dags" / "releases" / "churn" / bundles[0].manifest.release
    for path in ("pipelines/churn.yaml", "pipelines/churn/features.py", "manifest.json"):
        before = (folder / path).read_text()
        (folder / path).write_text(before + "\n")
        with pytest.raises(DeliveryError, match=f"{path} was changed"):
            place.bundle("churn", bundles[0].manifest.digest)
        with pytest.raises(DeliveryError, match="was changed"):
            rollback(place, "churn", "staging", by="ben", watch=lambda *_: None, timeout=timedelta(minutes=5))
        (folder / path).write_text(before)
    (folder / "pipelines" / "churn.yaml").write_text("name: other")
    # Who deploys it again has its bytes, and mends it.
    release(place, bundles[0])
    assert place.bundle("churn", bundles[0].manifest.digest) == bundles[0]
    # Also where it runs already.
    (folder / "pipelines" / "churn.yaml").write_text("name: other")
    release(place, bundles[0])
    assert place.bundle("churn", bundles[0].manifest.digest) == bundles[0]


def test_a_file_of_the_teams_is_never_written_over(tmp_path: Path, bundles: list[Bundle]) -> None:
    (tmp_path / pointer_file("churn")).write_text("# mine")
    with pytest.raises(DeliveryError, match="was not written by airflow-mlops deploy"):
        release(StorePlace(str(tmp_path)), bundles[0])


def test_a_commit_of_somebody_else_is_no_conflict(tmp_path: Path, bundles: list[Bundle]) -> None:
    repository(tmp_path)
    place = GitPlace(str(tmp_path / "origin.git"), "main", "dags")

    seen = place.look("churn")
    push(tmp_path / "theirs", "BEFORE", "pushed after we had looked")
    assert seen.entries == []

    def meanwhile(*_: object) -> None:
        git("pull", "--quiet", "origin", "main", folder=tmp_path / "theirs")
        push(tmp_path / "theirs", "NOTES", "pushed while Airflow was waited for")

    release(place, bundles[0], meanwhile)
    git("pull", "--quiet", "origin", "main", folder=tmp_path / "theirs")
    told = git("log", "--format=%s", folder=tmp_path / "theirs").splitlines()
    assert told[:3] == ["churn 1.0: deployed", "NOTES", f"deploy churn 1.0 ({bundles[0].manifest.release})"]
    changed = git("show", "--stat=200", "--format=", "HEAD~2", folder=tmp_path / "theirs")
    for path in ("dags/churn_release.py", "releases/churn/log/00000001.json", "pipelines/churn/features.py"):
        assert path in changed


def test_a_repository_that_changes_files_leaves_releases_as_they_are(tmp_path: Path, bundles: list[Bundle]) -> None:
    repository(tmp_path)
    push(tmp_path / "theirs", ".gitattributes", "*.yaml text eol=crlf\n*.py ident\n")
    release(GitPlace(str(tmp_path / "origin.git"), "main", "dags"), bundles[0])
    cloned = GitPlace(str(tmp_path / "origin.git"), "main", "dags")
    assert cloned.bundle("churn", bundles[0].manifest.digest) == bundles[0]


def test_a_release_to_a_bucket_leaves_nothing_on_this_disk(
    gcs: str, bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    release(GcsPlace(f"{gcs}/dags"), bundles[0])
    assert list(tmp_path.iterdir()) == []


def test_a_pointer_in_a_bucket_is_replaced_only_if_it_is_the_one_seen(gcs: str, bundles: list[Bundle]) -> None:
    place = GcsPlace(f"{gcs}/dags")
    release(place, bundles[0])
    by_hand = "# airflow-mlops deploy: by hand"

    def meanwhile(manifest: Manifest, smoke: bool) -> None:
        place._switch("churn", by_hand, place._pointer("churn")[1])
        refuse(manifest, smoke)

    with pytest.raises(ReleaseFailedError):
        release(place, bundles[1], meanwhile)
    assert place.look("churn").pointer == by_hand


def test_what_cannot_run_in_an_environment_is_refused_before_it_goes_there(tmp_path: Path) -> None:
    relative = build(
        [
            project(
                tmp_path / "a",
                data={"source": "data/{window}.parquet", "target": "y"},
                environments={"staging": {"data": {"source": "/data/{window}.parquet"}}, "prod": {}},
            )
        ]
    )
    with pytest.raises(DeclarationError, match=r"a release holds none of it; try: .*environments\.prod\.data\.source"):
        declarations_in(relative, "prod")
    overlaid = project(
        tmp_path / "b",
        data={"source": "data/{window}.parquet", "target": "y"},
        environments={"prod": {"data": {"source": "gs://b/{window}.parquet"}}},
    )
    (declaration,) = declarations_in(build([overlaid]), "prod")
    assert declaration.pipeline.data.source == "gs://b/{window}.parquet"
    with pytest.raises(DeclarationError, match="there is no environment 'staging'; allowed: prod"):
        declarations_in(build([overlaid]), "staging")


def test_the_history_is_what_can_be_gone_back_to(tmp_path: Path, bundles: list[Bundle]) -> None:
    place = StorePlace(str(tmp_path))
    for bundle in (bundles[0], bundles[1], bundles[0]):
        release(place, bundle)
    versions = [each.version for each in history(place.look("churn").entries)]
    assert versions == ["1.0", "2.0", "1.0"]
    rollback(place, "churn", "staging", by="ben", watch=lambda *_: None, timeout=timedelta(minutes=5))
    assert [each.version for each in history(place.look("churn").entries)] == ["1.0", "2.0"]


def test_settings_are_read_with_the_lines_of_their_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    with pytest.raises(DeclarationError, match=r"deploy\.yaml: there is no such file, .*; try: --config FILE"):
        read_settings(file)
    file.write_text(
        "environments:\n  staging: {dags: dags, airflow: 'http://127.0.0.1:8080', smoke: churn}\n"
        "  prod: {gcs: 'gs://b/dags', airflow: 'https://a.example.org', smoke: [{dag: d, params: {window: x}}]}\n"
    )
    settings = read_settings(file)
    assert settings.environments["staging"].dags == str(tmp_path / "dags")
    assert [each.dag for each in settings.environments["staging"].smoke] == ["churn"]
    with pytest.raises(
        DeclarationError, match=r"deploy\.yaml:1: there is no environment 'dev'; allowed: staging, prod"
    ):
        target_of(file, "dev")
    file.write_text("environments:\n  staging:\n    dags: d\n    gcs: gs://b\n    airflow: http://a\n    tokn: x\n")
    with pytest.raises(DeclarationError) as caught:
        read_settings(file)
    assert "deploy.yaml:6: unknown key 'tokn'" in str(caught.value)
    file.write_text("environments:\n  a: {dags: d, airflow: foo}\n  b: {gcs: 's3://b', airflow: 'http://a'}\n")
    with pytest.raises(DeclarationError) as caught:
        read_settings(file)
    first, second = str(caught.value).splitlines()
    assert "airflow is 'foo', which" in first and first.endswith("; allowed: http://HOST:PORT or https://HOST")
    assert "gcs is 's3://b', which" in second and second.endswith("; allowed: gs://BUCKET/FOLDER")


def test_a_folder_that_cannot_be_made_is_told_as_the_target_s(bundles: list[Bundle]) -> None:
    said = r"the folder /proc/nope, where releases .* cannot be made: .*; try: correct 'dags' in deploy\.yaml"
    with pytest.raises(DeliveryError, match=said):
        release(StorePlace("/proc/nope"), bundles[0])


RACE = """
import json
from datetime import timedelta
from airflow_mlops.delivery.bundle import read_bundle
from airflow_mlops.delivery.places import StorePlace
from airflow_mlops.delivery.release import deploy
from airflow_mlops.errors import ReleaseConflictError
folder, name = sys.argv[1], sys.argv[2]
place, bundle = StorePlace(folder), read_bundle(sys.argv[3])
options = {"by": name, "source": "a race", "timeout": timedelta(minutes=5)}
ready(name)
try:
    said = deploy(place, bundle, "staging", watch=lambda *_: time.sleep(2), **options).kind
except ReleaseConflictError as error:
    said = error.what
print(json.dumps(said))
"""


def test_of_processes_that_release_at_once_one_does(tmp_path: Path, bundles: list[Bundle]) -> None:
    files = [str(bundle.write(tmp_path / "dist")) for bundle in bundles]
    said = race(RACE, tmp_path / "dags", [(f"p{number}", file) for number, file in enumerate(files)])
    assert said.count("deployed") == 1
    assert all("releas" in each for each in said if each != "deployed")
    winner = bundles[said.index("deployed")].manifest
    assert runs(StorePlace(str(tmp_path / "dags"))) == (winner.version, winner.release)
