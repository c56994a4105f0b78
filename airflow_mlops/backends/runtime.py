"""The interpreter of a runtime: one that is given, or a virtual environment built by uv and kept for the next time.

Neither has Airflow. This package's own files, below its backends, are put on the interpreter's path as a copy named by
its content; what they need of other packages is told from this package's metadata.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import airflow_mlops
from airflow_mlops.call.wire import digest_of
from airflow_mlops.errors import PackageIndexUnreachableError, RuntimeBuildError

FOLDER_VARIABLE = "AIRFLOW_MLOPS_RUNTIMES"
"""The environment variable that says where environments are kept."""

_SHIPPED = ("__init__.py", "errors.py", "spec", "call", "google", "drift", "registry", "deployments", "stages")
_IN_WORKER = re.compile(r"apache-airflow|evidently|msgspec|packaging|prometheus|psutil|starlette|uv")
"""What no stage of a runtime needs: monitoring stays in the worker."""

_UNREACHABLE = re.compile(
    r"error sending request|failed to (fetch|download|connect)|connection (refused|reset)|dns error|timed? ?out"
    r"|status (server error|code 5)|network|temporary failure",
    re.IGNORECASE,
)
_LAST_LINES = 12
_LOOK = """
import importlib.metadata, json, sys, sysconfig
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = None
print(json.dumps({"python": sys.version.split()[0], "folder": sysconfig.get_path("purelib"), "found": found}))
"""


class Environment(NamedTuple):
    """An environment that was built: its folder, what it was built from, its size in bytes, when it was last used."""

    folder: Path
    requirements: str
    size: int
    used: float


def runtimes_folder(*parts: str) -> Path:
    """Where environments are kept: ``$AIRFLOW_MLOPS_RUNTIMES``, else ``airflow-mlops/runtimes`` in the user's cache.

    Not in the temporary folder: what cleans it up takes old files out of an environment one by one.
    """
    chosen = os.environ.get(FOLDER_VARIABLE)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(chosen or Path(home, "airflow-mlops", "runtimes")).absolute().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise RuntimeBuildError(
            f"environments cannot be kept in {folder}: {error}", fix=f"set {FOLDER_VARIABLE} to a folder to write to"
        ) from error
    return folder


@cache
def needed() -> tuple[str, ...]:
    """What the stages need of other packages, as requirements: this package's own, without Airflow and the worker's."""
    declared = (line for line in metadata.requires("airflow-mlops") or () if "extra ==" not in line)
    return tuple(sorted(line for line in declared if not _IN_WORKER.match(line)))


def package_folder() -> Path:
    """A folder for the path of an interpreter without Airflow: the part of this package that needs none.

    It is named by its content, so that it stays what it is while the worker's installation is upgraded.
    """
    source = Path(airflow_mlops.__file__).parent
    files = sorted(
        file for top in _SHIPPED for file in ((source / top).rglob("*.py") if top[-3:] != ".py" else [source / top])
    )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(source)}\0".encode() + file.read_bytes() + b"\0")
    folder = runtimes_folder("package") / digest.hexdigest()[:32]
    if not folder.exists():
        beside = Path(tempfile.mkdtemp(dir=folder.parent))
        for file in files:
            target = beside / "airflow_mlops" / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        try:
            beside.rename(folder)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            if not folder.exists():
                raise
    return folder


def interpreter(python: str | None, requirements: str | None) -> str:
    """The interpreter of a runtime, ready to run stages.

    Args:
        python: its path, absolute; a bare name is looked up on ``PATH``.
        requirements: instead, the file of requirements of an environment, which is built unless it is there.

    Raises:
        RuntimeBuildError: when it cannot be had; retryable only where the package index could not be reached.
    """
    if requirements:
        return str(environment(Path(requirements)) / "bin" / "python")
    if not python:
        return sys.executable
    found = shutil.which(python)
    if found is None:
        raise RuntimeBuildError(
            f"there is no interpreter {python}",
            fix="correct runtime.python, or give runtime.requirements and let it be built",
        )
    _check(found)
    return found


def _check(python: str) -> None:
    """Refuse an interpreter that lacks what the stages need; once looked at, it is trusted until packages change."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in needed()]
    seen = runtimes_folder("checked") / digest_of([python, needed()])[7:39]
    if seen.exists():
        folder, stamp = json.loads(seen.read_text())
        if os.path.exists(folder) and os.stat(folder).st_mtime_ns == stamp:
            return
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [python, "-c", _LOOK, *(each.name for each in wanted)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    try:
        looked = json.loads(done.stdout)
    except ValueError as error:
        said = _last_lines(done.stderr)
        raise RuntimeBuildError(f"{python} is no Python interpreter that runs: {said}") from error
    if (version := tuple(map(int, looked["python"].split(".")[:2]))) < (3, 11):
        raise RuntimeBuildError(f"{python} is Python {'.'.join(map(str, version))}", allowed="3.11 and later")
    wrong = []
    for each in wanted:
        has = looked["found"][each.name]
        if has is None or not each.specifier.contains(has, prereleases=True):
            wrong.append((each, has))
    if wrong:
        lacks = ", ".join(f"{each.name}{f' {each.specifier} (has {has})' if has else ''}" for each, has in wrong)
        install = shlex.join(f"{each.name}{each.specifier}" for each, _ in wrong)
        raise RuntimeBuildError(
            f"{python} lacks what the stages need: {lacks}",
            fix=f"uv pip install --python {shlex.quote(python)} {install}",
        )
    beside = seen.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps([looked["folder"], os.stat(looked["folder"]).st_mtime_ns]))
    beside.replace(seen)


def environment(requirements: Path) -> Path:
    """The virtual environment of a requirements file, built by the first who asks while the others wait.

    It is kept under the digest of the file's text (and of files it names by ``-r`` and ``-c``), of what the stages
    need, and of this Python. Half-built ones are never used: the finished one appears by a rename.

    Raises:
        RuntimeBuildError: when the file does not read, or no environment has all that it and the stages need.
        PackageIndexUnreachableError: when the packages cannot be fetched now.
    """
    text = "".join(_texts(requirements, ()))
    python = f"{platform.python_implementation()} {platform.python_version()} {sys.base_prefix} {platform.platform()}"
    key = digest_of([text, needed(), python])[7:39]
    folder = runtimes_folder("environments") / key
    if not folder.exists():
        with _alone(folder.with_suffix(".lock")):
            if not folder.exists():
                _build(folder, requirements, text)
    (folder / "used").touch()
    return folder


def _texts(file: Path, above: tuple[Path, ...]) -> Iterator[str]:
    """The text of a requirements file, and of the files that it names."""
    if file in above:
        raise RuntimeBuildError(f"{file} includes itself")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RuntimeBuildError(
            f"the requirements {file} cannot be read: {error}", fix="correct runtime.requirements"
        ) from error
    yield text
    for name in re.findall(r"^\s*(?:-r|-c|--requirements?|--constraints?)[\s=]+(\S+)", text, re.MULTILINE):
        if "://" not in name:
            yield from _texts((file.parent / name).resolve(), (*above, file))


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Let one process at a time in; a killed one lets the next one in."""
    with open(file, "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(folder: Path, requirements: Path, text: str) -> None:
    building = folder.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)
    own = folder.with_suffix(".needed")
    own.write_text("\n".join(needed()))
    try:
        _uv("venv", "--relocatable", "--python", sys.executable, str(building), of=requirements)
        into = ("--python", str(building / "bin" / "python"))
        # Compiled here, once: every stage is a new process.
        _uv("pip", "install", "--compile-bytecode", *into, "-r", str(requirements), "-r", str(own), of=requirements)
        (building / "requirements.txt").write_text(text)
        building.rename(folder)
    finally:
        own.unlink(missing_ok=True)
        shutil.rmtree(building, ignore_errors=True)


def _uv(*arguments: str, of: Path) -> None:
    import uv

    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [uv.find_uv_bin(), *arguments, "--quiet"],
        capture_output=True,
        text=True,
        # A project's settings that happen to lie where the worker was started are not this environment's.
        cwd=runtimes_folder("environments"),
        env={"UV_PYTHON_DOWNLOADS": "never", **inherited},
        check=False,
    )
    if done.returncode == 0:
        return
    said = _last_lines(done.stderr)
    if _UNREACHABLE.search(done.stderr):
        raise PackageIndexUnreachableError(
            f"the environment of {of} cannot be built now, for a package cannot be fetched:\n{said}",
            fix="see that the worker reaches the package index (UV_INDEX_URL, proxies), or build it beforehand with "
            "`airflow-mlops runtime build` where it does",
        )
    raise RuntimeBuildError(
        f"the environment of {of} cannot be built; uv says:\n{said}",
        fix=f"correct {of.name}; the stages themselves need {', '.join(needed())}",
    )


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_LAST_LINES:])


def environments() -> list[Environment]:
    """The environments that are kept here, the one last used first."""
    found = []
    for folder in runtimes_folder("environments").iterdir():
        if (folder / "requirements.txt").is_file():
            size = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_symlink())
            used = (folder / "used").stat().st_mtime if (folder / "used").exists() else folder.stat().st_mtime
            found.append(Environment(folder, (folder / "requirements.txt").read_text(), size, used))
    return sorted(found, key=lambda each: -each.used)


def prune(days: float) -> list[Environment]:
    """Remove the environments that nobody has used for so many days; return them."""
    old = [each for each in environments() if time.time() - each.used > days * 86_400]
    for each in old:
        gone: Any = each.folder.with_suffix(".removed")
        with _alone(each.folder.with_suffix(".lock")):
            each.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    return old
