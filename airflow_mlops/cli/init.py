"""A new project that runs at once, from the files in `airflow_mlops/templates`.

They are a working project called ``new_project``: in their paths and texts that name becomes the project's, and a
``dot_`` at the beginning of a path's part becomes a dot. Nothing else is replaced.
"""

from __future__ import annotations

import argparse
import keyword
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath

from airflow_mlops.errors import DeclarationError

TEMPLATES = Path(__file__).parents[1] / "templates"
PLACEHOLDER = "new_project"
_BINARY = {".parquet"}
_TAKEN = {"dags", "data", "pipelines", "tests"}


def init(options: argparse.Namespace) -> int:
    """Run the command; see ``airflow-mlops init --help``."""
    check_package_name(options.name)
    folder = Path(options.name)
    files = dict(rendered(options.name, options.ci))
    write_new({folder / name: content for name, content in files.items()})
    print(f"made {folder}/ with {len(files)} files: README.md says what they are")
    print(f"  next   cd {folder} && airflow-mlops run pipelines/{options.name}.yaml")
    return 0


def check_package_name(name: str) -> None:
    """See that a name can be that of a new package, and hides none that is there.

    Raises:
        DeclarationError: when it cannot; with a name that could.
    """
    plain = re.sub(r"\W+", "_", name.strip().lower(), flags=re.ASCII).strip("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,49}", name) or keyword.iskeyword(name):
        wrong = "is a word of Python's" if keyword.iskeyword(name) else "is no name of a package"
        allowed = "a small letter, then small letters, digits and _, 50 at most"
        near = plain if re.fullmatch(r"[a-z][a-z0-9_]{0,49}", plain) and not keyword.iskeyword(plain) else "churn"
        raise DeclarationError([f"the name {name!r} {wrong}; allowed: {allowed}; try: {near}"])
    if name in _TAKEN or name in sys.stdlib_module_names or _is_installed(name):
        what = f"the name {name!r} is taken: a package of that name would hide another"
        raise DeclarationError([f"{what}; try: {name}_model"])


def _is_installed(name: str) -> bool:
    paths = sysconfig.get_paths()
    return PathFinder.find_spec(name, [paths["purelib"], paths["platlib"]]) is not None


def rendered(name: str, ci: str | None) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The files of a project: path and content."""
    for root in (TEMPLATES / "project", *([TEMPLATES / ci] if ci else [])):
        for file in sorted(each for each in root.rglob("*") if each.is_file()):
            if "__pycache__" in file.parts:
                continue
            parts = [re.sub("^dot_", ".", part) for part in file.relative_to(root).parts]
            path = PurePosixPath(*(part.replace(PLACEHOLDER, name) for part in parts))
            content = file.read_bytes()
            yield path, content if file.suffix in _BINARY else content.replace(PLACEHOLDER.encode(), name.encode())


def write_new(files: Mapping[Path, bytes]) -> None:
    """Write files that are not there yet: all of them or, where one is in the way, none.

    Raises:
        DeclarationError: with every file that is there already, or why one cannot be written.
    """
    there = [path for path in files if path.exists() or path.is_symlink()]
    if there:
        raise DeclarationError([f"{path}: is there already, and nothing was written" for path in there])
    written: list[Path] = []
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as target:
                written.append(path)
                target.write(content)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise DeclarationError([f"{error.filename}: cannot be written: {error.strerror or error}"]) from error
