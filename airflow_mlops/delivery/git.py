"""Git, by its own command: what a work tree's files were made of, and how others get them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from packaging.version import InvalidVersion, Version

from airflow_mlops.errors import DeliveryError


class Origin(NamedTuple):
    """The commit that files were made of."""

    commit: str
    described: str
    """The commit as a version: the newest tag before it that is one, and how far it lies behind."""
    changed: list[str]
    """Those of the files that differ from it, or are not in it."""
    shallow: bool
    """Whether the repository lacks history, and with it tags, so that others may describe the commit otherwise."""


def git(*arguments: str, folder: str | os.PathLike[str], fix: str | None = None) -> str:
    """Ask Git something.

    Raises:
        DeliveryError: when it refuses, with its own words.
    """
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise DeliveryError("there is no git here", fix="install Git") from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip()
        raise DeliveryError(f"git {arguments[0]} in {folder}: {words or done.returncode}", fix=fix)
    return done.stdout


def origin_of(folder: Path, files: Iterable[Path]) -> Origin | None:
    """The commit that a folder is at; None where it is in no repository, or in one without a commit."""
    try:
        commit = git("rev-parse", "HEAD", folder=folder).strip()
    except DeliveryError:
        return None
    top = git("rev-parse", "--show-toplevel", folder=folder).strip()
    paths = sorted({os.path.relpath(os.path.realpath(file), os.path.realpath(top)) for file in files})
    outside = [path for path in paths if path.startswith("..")]
    inside = [path for path in paths if not path.startswith("..")]
    told = git("status", "--porcelain", "-z", "--ignored", "--untracked-files=all", "--", *inside, folder=top)
    changed = [line[3:] for line in told.split("\0") if line]
    shallow = git("rev-parse", "--is-shallow-repository", folder=top).strip() == "true"
    return Origin(commit, _described(folder, commit), sorted({*changed, *outside}), shallow)


def _described(folder: Path, commit: str) -> str:
    behind = f"g{commit[:12]}"
    try:
        tag, count, _ = git("describe", "--tags", "--long", folder=folder).strip().rsplit("-", 2)
        version = Version(tag)
    except (DeliveryError, InvalidVersion):
        return f"0+{behind}"
    return str(version) if count == "0" else f"{version.public}.post{count}+{behind}"
