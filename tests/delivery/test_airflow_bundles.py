"""What was deployed to a Git repository or a bucket, read by the classes by which Airflow reads its DAG bundles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow_mlops.delivery.bundle import NOT_WHOLE, Bundle
from airflow_mlops.delivery.gcs_place import GcsPlace
from airflow_mlops.delivery.git import git
from airflow_mlops.delivery.git_place import GitPlace
from airflow_mlops.delivery.release import rollback
from tests.delivery.made import release, repository

TIMEOUT = timedelta(minutes=5)

# As Airflow's DAG processor does it: a bundle is refreshed, and its files are parsed in a process of their own.
READER = """
import json, os, sys, time
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # Airflow logs to what is the standard output when it is imported
from importlib import import_module
import airflow_mlops.factory
from airflow.dag_processing.dagbag import DagBag

def parsed(path):
    reading, writing = os.pipe()
    if os.fork() == 0:
        bag = DagBag(str(path), safe_mode=True)
        tags = {name: [tag for tag in dag.tags if tag.startswith("release:")] for name, dag in bag.dags.items()}
        os.write(writing, json.dumps([tags, list(bag.import_errors.values())]).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as said:
        text = said.read()
    os.wait()
    return json.loads(text)

module, _, name = sys.argv[1].rpartition(".")
BundleClass = getattr(import_module(module), name)
bundle = None
for line in sys.stdin:
    asked = json.loads(line)
    meanwhile = []
    if bundle is None or "version" in asked:
        read = bundle = BundleClass(name="team", **{**json.loads(sys.argv[2]), **asked})
        read.initialize()
    else:
        if asked.get("each_object"):
            # Each object that comes is followed by a parse, as when a parse falls into a synchronisation.
            sync = bundle.gcs_hook._sync_to_local_dir_if_changed
            def watched(**arguments):
                sync(**arguments)
                meanwhile.append(parsed(bundle.path))
            bundle.gcs_hook._sync_to_local_dir_if_changed = watched
        if seconds := asked.get("clock_ahead"):
            now = time.time() + seconds
            for file in bundle.path.rglob("*"):
                os.utime(file, (now, now))
        bundle.refresh()
        if asked.get("each_object"):
            bundle.gcs_hook._sync_to_local_dir_if_changed = sync
    tags, errors = parsed(bundle.path)
    version = bundle.get_current_version()
    version = getattr(version, "version", version)
    said = {"tags": tags, "errors": errors, "version": version, "meanwhile": meanwhile}
    print(json.dumps(said), file=answers, flush=True)
"""


class Reader:
    """A bundle of Airflow's in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def __call__(self, **asked: Any) -> dict[str, Any]:
        """Refresh the bundle, parse it, and say what was found."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self._log.read_text()[-3000:]
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def reader(folder: Path, bundle_class: str, arguments: Mapping[str, Any], **environment: str) -> Iterator[Reader]:
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", READER, bundle_class, json.dumps(arguments)],
            env={
                **os.environ,
                "AIRFLOW_HOME": str(folder / "airflow"),
                "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(folder / "bundles"),
                **environment,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        yield Reader(process, folder / "log")
    finally:
        process.kill()
        process.communicate()


def whole(found: dict[str, Any], bundle: Bundle) -> bool:
    """Whether the DAGs of a release were found, all of them and no others."""
    tags = found["tags"]
    return (
        found["errors"] == []
        and {"churn.train", "churn.monitor", "churn.rollback"} <= set(tags)
        and all(each == [f"release:{bundle.manifest.release}"] for each in tags.values())
    )


def test_a_git_bundle_has_a_release_whole_and_a_run_keeps_the_commit_that_it_began_with(
    tmp_path: Path, bundles: list[Bundle]
) -> None:
    origin = repository(tmp_path)
    place = GitPlace(str(origin), "main", "dags")
    arguments = {"tracking_ref": "main", "repo_url": str(origin), "subdir": "dags"}
    with reader(tmp_path, "airflow.providers.git.bundles.git.GitDagBundle", arguments) as read:
        release(place, bundles[0])
        one = read()
        assert whole(one, bundles[0]), one
        assert one["version"] == git("rev-parse", "main", folder=origin).strip()

        # While a release is watched its commit is there already; it is what Airflow is to load.
        watched = []
        release(place, bundles[1], lambda *_: watched.append(read()))
        assert whole(watched[0], bundles[1]), watched
        assert whole(read(), bundles[1])
        rollback(place, "churn", "staging", by="ben", watch=lambda *_: watched.append(read()), timeout=TIMEOUT)
        assert whole(watched[1], bundles[0]), watched
        # A run that began with the second release still has it.
        assert whole(read(version=watched[0]["version"]), bundles[1])


def test_a_bucket_bundle_has_a_release_whole_or_says_that_it_is_not_yet(
    tmp_path: Path, bundles: list[Bundle], gcs: str
) -> None:
    place = GcsPlace(f"{gcs}/dags")
    connection = json.dumps({"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True}})
    name = "airflow.providers.google.cloud.bundles.gcs.GCSDagBundle"
    arguments = {"bucket_name": gcs.removeprefix("gs://"), "prefix": "dags"}
    with reader(tmp_path, name, arguments, AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT=connection) as read:
        release(place, bundles[0])
        one = read()
        assert whole(one, bundles[0]), one

        release(place, bundles[1])
        two = read(each_object=True)
        assert whole(two, bundles[1]), two
        parses = [{"tags": tags, "errors": errors} for tags, errors in two["meanwhile"]]
        late = [each for each in parses if not (whole(each, bundles[0]) or whole(each, bundles[1]))]
        # The pointer comes before the files that it names, for objects come by their names.
        assert late
        for each in late:
            (error,) = each["errors"]
            assert each["tags"] == {} and f"release {bundles[1].manifest.release} {NOT_WHOLE}" in error

        # A worker whose clock is ahead of Google's takes what it has for newer than what replaced it.
        rollback(place, "churn", "staging", by="ben", watch=lambda *_: None, timeout=TIMEOUT)
        back = read(clock_ahead=60)
        assert whole(back, bundles[0]), back
