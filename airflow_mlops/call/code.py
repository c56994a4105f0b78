"""The user's code as a snapshot: taken once a run, named by its content, and what every stage imports from.

What happens to lie on a worker's path does not matter, and two models with different code of the same name can be
loaded after one another in one process.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
import traceback
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow_mlops.call.store import Store, cache_folder
from airflow_mlops.call.wire import ArtifactRef
from airflow_mlops.errors import CodeError

_SUFFIXES = {".py", ".json", ".yaml", ".yml", ".toml", ".txt", ".sql"}
_MAX_BYTES = 1 << 20
_INSTALLED = {"site-packages", "dist-packages"}


def split_path(path: str) -> tuple[str, str]:
    """Part ``package.module:name`` (or ``package.module.Name``) into module and name."""
    module, colon, name = path.partition(":")
    if not colon:
        module, _, name = path.rpartition(".")
    return module, name


def _search_folders(base: str) -> list[Path]:
    """Where the user's packages may lie: beside the declaration, a folder up, and on the path outside the libraries."""
    libraries = {Path(path).resolve() for path in sysconfig.get_paths().values()}
    libraries |= {library / "lib-dynload" for library in libraries}
    folders = [Path(base), Path(base).parent, *(Path(entry or os.getcwd()) for entry in sys.path)]
    kept = []
    for folder in folders:
        resolved = folder.resolve()
        inside = any(resolved == library or _INSTALLED & set(resolved.parts) for library in libraries)
        if resolved.is_dir() and not inside and resolved not in kept:
            kept.append(resolved)
    return kept


def _locate(top: str, base: str) -> Path | None:
    for folder in _search_folders(base):
        package, module = folder / top, folder / f"{top}.py"
        if module.is_file():
            return module
        if package.is_dir() and any(package.rglob("*.py")):
            return package
    return None


def snapshot(callables: Iterable[str], base: str, store: Store, *, elsewhere: bool = False) -> ArtifactRef | None:
    """Keep the packages that hold the user's functions; None when all of them come from installed libraries.

    Args:
        callables: paths such as ``churn.features:build``.
        base: the folder to look in first.
        store: where the snapshot goes.
        elsewhere: the code runs in an environment of its own, which may have packages installed that are not here.

    Raises:
        CodeError: when a package is neither beside the declaration nor installed.
    """
    files = packages(callables, base, elsewhere=elsewhere)
    if not files:
        return None
    with store.scratch(".zip") as archive:
        # Stored, not deflated: the digest must not depend on a machine's zlib.
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
            for name, file in sorted(files.items()):
                entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                target.writestr(entry, file.read_bytes() if file else b"")
        return store.put_file(archive, "code")


def packages(callables: Iterable[str], base: str, *, elsewhere: bool = False) -> dict[str, Path | None]:
    """The files of the packages that hold the user's functions, by the names that they are imported by.

    A package without an ``__init__.py`` gets an empty one, which is None here: without it, a package of the same name
    elsewhere on a worker's path would win. The arguments are those of `snapshot`.

    Raises:
        CodeError: when a package is neither beside the declaration nor installed.
    """
    files: dict[str, Path | None] = {}
    for top in sorted({split_path(path)[0].split(".")[0] for path in callables}):
        place = _locate(top, base)
        if place is None:
            if not elsewhere and not _installed(top):
                folders = ", ".join(map(str, _search_folders(base)))
                raise CodeError(f"there is no package {top!r}", allowed=f"one in {folders}, or an installed one")
        elif place.is_file():
            files[place.name] = place
        else:
            files[f"{top}/__init__.py"] = None
            files |= {file.relative_to(place.parent).as_posix(): file for file in _files_of(place)}
    return files


def _installed(top: str) -> bool:
    try:
        # No other process finds what is __main__ in this one.
        return top != "__main__" and importlib.util.find_spec(top) is not None
    except ValueError:  # a module without a spec: it was put into sys.modules by hand
        return False


def _files_of(package: Path) -> Iterator[Path]:
    for file in package.rglob("*"):
        parts = file.relative_to(package).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if file.is_file() and not hidden and file.suffix in _SUFFIXES and file.stat().st_size <= _MAX_BYTES:
            yield file


def unpack(code: ArtifactRef, store: Store) -> Path:
    """The snapshot as a local folder, to be put on the path."""
    folder = cache_folder("code") / code.digest.removeprefix("sha256:")
    if not folder.exists():
        beside = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            with zipfile.ZipFile(store.fetch(code)) as archive:
                archive.extractall(beside)
            try:
                beside.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder


@contextmanager
def code_scope(folder: Path | None) -> Iterator[Path | None]:
    """Import the packages of a folder from there and from nowhere else, for as long as the scope lasts.

    Modules of the same names are set aside and put back at the end, so scopes can follow one another and nest.
    """
    if folder is None:
        yield None
        return
    tops = {entry.stem if entry.suffix == ".py" else entry.name for entry in folder.iterdir()}

    def take_out() -> dict[str, Any]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in tops}

    aside, path, before = take_out(), sys.path, list(sys.path)
    path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield folder
    finally:
        # Libraries may have put another list in place of sys.path.
        path[:], sys.path = before, path
        take_out()
        sys.modules.update(aside)


def told(error: BaseException) -> str:
    """An error of the user's code in one line: what it is, and the last line of theirs that it went through.

    A file is named as it lies beside the declaration, ``churn/features.py:12``, and not as the copy that was imported.
    """
    place = _place(error)
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}" + (f" at {place}" if place else "")
    text = type(error).__name__ + (f": {error}" if str(error) else "") + (f" (at {place})" if place else "")
    return f"{text}, and must return or raise an exception" if isinstance(error, SystemExit) else text


def _place(error: BaseException) -> str | None:
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno or 1))
    libraries = [
        *(Path(path).resolve() for path in sysconfig.get_paths().values()),
        Path(__file__).resolve().parents[1],
    ]
    here = Path.cwd()
    for name, line in reversed(frames):
        file = Path(name).resolve()
        if not file.is_file() or _INSTALLED & set(file.parts) or any(file.is_relative_to(each) for each in libraries):
            continue
        root = file.parent
        while (root / "__init__.py").exists():
            root = root.parent
        return f"{file.relative_to(here if file.is_relative_to(here) else root)}:{line}"
    return None


def load(path: str) -> Any:
    """Import what a path such as ``churn.features:build`` names.

    Raises:
        CodeError: when the module does not import or has no such name.
    """
    module_name, name = split_path(path)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise CodeError(f"{path!r} cannot be imported: {told(error)}", fix=_remedy(error, module_name)) from error
    if not hasattr(module, name):
        public = [entry for entry in dir(module) if not entry.startswith("_") and callable(getattr(module, entry))]
        close = difflib.get_close_matches(name, public, n=1)
        shown = ", ".join(public[:12]) + (", ..." if len(public) > 12 else "")
        raise CodeError(
            f"{module_name!r} has no {name!r}",
            allowed=shown or None,
            # As it was written: an estimator's path has a dot where a function's has a colon.
            fix=f"{path.removesuffix(name)}{close[0]}" if close else None,
        )
    return getattr(module, name)


def _remedy(error: BaseException, module: str) -> str:
    """What to do about a module that does not import."""
    missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else None
    if missing is None:
        return "correct that line" if _place(error) else f"correct {module}"
    install = f"install {missing.split('.')[0]} where the stages run"
    if missing == module or module.startswith(f"{missing}."):
        return f"correct the name, {install}, or put {module.replace('.', '/')}.py beside the declaration"
    return f"{install}, or correct the import"
