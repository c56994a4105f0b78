"""Releases in a Git repository: a release with its pointer and its line in the log is one commit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from airflow_mlops.delivery.bundle import Bundle
from airflow_mlops.delivery.git import git
from airflow_mlops.delivery.places import RELEASES, Entry, Place, State, StorePlace
from airflow_mlops.errors import DeliveryError, ReleaseConflictError

_TRIES = 5
_AS_THEY_ARE = "* -text -filter -ident -working-tree-encoding\n"
"""For Git: whatever a repository does to its files, those of releases are held against their digests."""
_BEHIND = ("non-fast-forward", "fetch first", "cannot lock ref", "failed to update ref")
"""How Git says that somebody else has pushed meanwhile."""
T = TypeVar("T")


class GitPlace(Place):
    """A branch of a repository. What others push beside releases is no conflict.

    Args:
        repo: the repository's address.
        branch: the branch.
        path: the folder of the DAGs in it.
    """

    def __init__(self, repo: str, branch: str, path: str = "") -> None:
        self.where = f"{repo} ({branch}{f', {path}' if path else ''})"
        self.branch = branch
        self._folder = tempfile.TemporaryDirectory(prefix="airflow-mlops-git-")
        self.tree = Path(self._folder.name, "tree")
        fix = f"make the branch {branch!r} first, and see that you may read and push it"
        git("clone", "--quiet", "--branch", branch, "--single-branch", repo, "tree", folder=self._folder.name, fix=fix)
        self._path = path

    def names(self) -> list[str]:
        """The names that something was released under."""
        return self._fresh().names()

    def look(self, name: str) -> State:
        """What was released under a name, and what the pointer says."""
        return self._fresh().look(name)

    def bundle(self, name: str, digest: str) -> Bundle:
        """The files of a release, each held against its digest."""
        return self._fresh().bundle(name, digest)

    def start(self, state: State, entry: Entry, bundle: Bundle, pointer: str) -> State:
        """Commit a release, that it has started and the pointer, and push it."""
        told = f"{entry.action} {bundle.manifest.name} {entry.version} ({bundle.manifest.release})"
        return self._push(told, entry.by, lambda place: place.start(state, entry, bundle, pointer))

    def finish(self, state: State, name: str, entry: Entry, pointer: str | None) -> None:
        """Commit how a release has ended, with the pointer where it was put back, and push it."""
        told = f"{name} {entry.version}: {entry.kind}"
        self._push(told, entry.by, lambda place: place.finish(state, name, entry, pointer))

    def _fresh(self) -> StorePlace:
        """The work tree as the branch is now."""
        git("fetch", "--quiet", "origin", self.branch, folder=self.tree)
        git("reset", "--quiet", "--hard", "FETCH_HEAD", folder=self.tree)
        git("clean", "--quiet", "-fdx", folder=self.tree)
        root = self.tree / self._path
        root.mkdir(parents=True, exist_ok=True)
        return StorePlace(str(root))

    def _push(self, told: str, by: str, change: Callable[[StorePlace], T]) -> T:
        for _ in range(_TRIES):
            made = change(self._fresh())
            (self.tree / self._path / RELEASES / ".gitattributes").write_text(_AS_THEY_ARE)
            # What a repository ignores may well be a part of a release.
            git("add", "--all", "--force", ".", folder=self.tree / self._path)
            git(*self._author(by), "commit", "--quiet", "--message", told, folder=self.tree)
            try:
                git("push", "--quiet", "origin", f"HEAD:{self.branch}", folder=self.tree)
            except DeliveryError as error:
                if not any(sign in error.what for sign in _BEHIND):
                    raise
            else:
                return made
        raise ReleaseConflictError(f"{self.where}: others push all the time", fix="try again")

    def _author(self, by: str) -> tuple[str, ...]:
        try:
            git("config", "user.email", folder=self.tree)
        except DeliveryError:
            return ("-c", f"user.name={by}", "-c", f"user.email={by}@localhost")
        return ()
