"""The image of the stages, as far as it can be told without a container engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from airflow_mlops.backends.runtime import needed
from airflow_mlops.google.job import build_command
from airflow_mlops.spec.google import JOBS

DOCKER = Path(__file__).parents[2] / "docker"


def test_the_image_has_what_a_runtime_has_and_what_reaches_google_cloud() -> None:
    command = [sys.executable, str(DOCKER / "stage_requirements.py")]
    done = subprocess.run(command, cwd=DOCKER.parent, capture_output=True, text=True, check=True)
    lines = set(done.stdout.splitlines())

    def plain(requirement: str) -> str:
        return ",".join(sorted(re.split(r",|(?<=[\w])(?=[<>=])", requirement.replace(" ", ""))))

    assert {plain(line) for line in needed()} <= {plain(line) for line in lines}
    assert {"gcsfs", "google-auth"} <= lines and not any("airflow" in line for line in lines)


def test_the_build_takes_what_the_error_says() -> None:
    build = yaml.safe_load((DOCKER / "cloudbuild.yaml").read_text())
    said = dict(re.findall(r"(_\w+)=([^,\s]+)", build_command("europe-docker.pkg.dev/p/r/stage@sha256:ab")))
    assert set(said) <= set(build["substitutions"])
    assert said["_IMAGE"].startswith("europe-docker.pkg.dev/p/r/stage:")
    assert [step["id"] for step in build["steps"]] == ["build", "run", "push", "digest"]
    text = (DOCKER / "stage.Dockerfile").read_text()
    arguments = [each for step in build["steps"] for each in step["args"] if each.startswith("--build-arg")]
    for name in (each.split("=")[1] for each in arguments):
        assert f"ARG {name}=" in text
    copied = [name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for name in line.split()]
    assert all((DOCKER.parent / name).exists() for name in copied if "$" not in name)
    assert re.search(r"^USER 50000", text, re.MULTILINE), "no job runs as root"


def test_the_stages_of_jobs_are_stages() -> None:
    from airflow_mlops.call.dispatch import STAGES

    assert set(JOBS) <= set(STAGES)
