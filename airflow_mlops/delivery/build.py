"""From declarations in a work tree to a bundle."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from packaging.version import InvalidVersion, Version

from airflow_mlops import __version__
from airflow_mlops.call.code import packages
from airflow_mlops.delivery.bundle import Bundle, Manifest, digest_of_bytes
from airflow_mlops.delivery.environment import beside_the_code
from airflow_mlops.delivery.git import Origin, origin_of
from airflow_mlops.delivery.wheel import wheel
from airflow_mlops.errors import CodeError, DeclarationError, DeliveryError
from airflow_mlops.spec.load import Declaration, load_declarations
from airflow_mlops.spec.plan import callables_of, train_plan

LOCKS = ("requirements.lock", "pylock.toml", "uv.lock", "requirements.txt")
"""What a lock is called, the best first."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")


def build(
    files: Sequence[str],
    *,
    name: str | None = None,
    version: str | None = None,
    lock: str | None = None,
    allow_dirty: bool = False,
) -> Bundle:
    """Put declarations and all that they name into a bundle.

    Args:
        files: YAML files of pipelines, and DAG files of the team's own (``.py``).
        name: the bundle's name. Default: that of the first declaration's file.
        version: its version. Default: by Git's tags, which a shallow clone may lack, else by the content.
        lock: the file that pins the environment. Default: the first of `LOCKS` beside a declaration, or in a folder
            above it that the bundle spans.
        allow_dirty: whether files may differ from the commit.

    Raises:
        DeclarationError: when a declaration is wrong, or names data that no environment would find beside it.
        CodeError: when a package is not there, two differ that have one name, or a DAG file is no Python.
        DeliveryError: when a file is missing or named by an absolute path, differs from the commit, an image is
            named by a tag, or a shallow clone is to name the version.
    """
    declared = [file for file in files if not file.endswith(".py")]
    dags = [_there(file) for file in files if file.endswith(".py")]
    if not declared:
        raise DeliveryError("there is no declaration to build", fix="name a YAML file of one or more pipelines")
    name = name or Path(declared[0]).stem
    if not _NAME.fullmatch(name):
        raise DeliveryError(f"{name!r} is no name of a bundle", allowed="letters, digits, _ and -", fix="--name NAME")
    declarations = [each for file in declared for each in load_declarations(file, "")]
    if problems := [problem for each in declarations for problem in _beside_the_code(each)]:
        raise DeclarationError(problems)
    named = [path for each in declarations for path in _named(each)]
    sources = {*map(_there, declared), *named, *dags}
    root = Path(os.path.commonpath([path.parent for path in sources]))
    for path in dags:
        _compiled(path, root)
    pin = _there(lock) if lock else _lock(declarations, root)
    code = _code(declarations)
    where = origin_of(root, [*sources, *([pin] if pin else []), *(path for path in code.values() if path)])
    if where and where.changed and not allow_dirty:
        raise DeliveryError(
            f"not as they are in commit {where.commit[:12]}: {', '.join(where.changed[:10])}",
            fix="commit them, so that others can make the same bundle; or --allow-dirty",
        )
    if where and where.shallow and not version:
        raise DeliveryError(
            f"a shallow clone of commit {where.commit[:12]} may lack the tags that name its version: elsewhere the "
            "bundle of the same commit would have another digest",
            fix="git fetch --unshallow --tags, or --version",
        )
    held = {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(sources)}
    if pin:
        held[pin.name if lock or not pin.is_relative_to(root) else pin.relative_to(root).as_posix()] = pin.read_bytes()
    modules = {path: file.read_bytes() if file else b"" for path, file in code.items()}
    version = _version(version, where, {**held, **{f"code/{path}": content for path, content in modules.items()}})
    made = None
    if modules:
        made, content = wheel(name, version, modules)
        made = f"wheels/{made}"
        held[made] = content
    manifest = Manifest(
        name=name,
        version=version,
        made_by=__version__,
        commit=where.commit if where else None,
        dirty=bool(where and where.changed),
        pipelines=tuple(sorted(each.pipeline.name for each in declarations)),
        declarations=tuple(sorted({_there(path).relative_to(root).as_posix() for path in declared})),
        dags=tuple(sorted(path.relative_to(root).as_posix() for path in dags)),
        wheel=made,
        code=tuple(sorted({_inside(each.base, root) for each in declarations})) if made else (),
        images=_images(declarations),
        files={path: digest_of_bytes(content) for path, content in sorted(held.items())},
    )
    return Bundle(manifest, held)


def _there(path: str | Path) -> Path:
    found = Path(os.path.abspath(path))
    if not found.is_file():
        raise DeliveryError(f"{path}: no such file")
    return found


def _compiled(file: Path, root: Path) -> None:
    """See that a DAG file is Python. It is not run: what it imports is there where Airflow is."""
    try:
        compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
    except SyntaxError as error:
        where = f"{file.relative_to(root).as_posix()}{f':{error.lineno}' if error.lineno else ''}"
        raise CodeError(f"is no Python: {error.msg}", where=where) from error


def _inside(folder: str, root: Path) -> str:
    found = Path(folder).relative_to(root).as_posix()
    return "" if found == "." else found


def _named(declaration: Declaration) -> Iterator[Path]:
    """The files that a declaration names and a bundle takes along."""
    pipeline = declaration.pipeline
    for path, name in {
        ("data", "schema"): pipeline.data.schema_file,
        ("runtime", "requirements"): pipeline.runtime.requirements if pipeline.runtime else None,
        ("tests", "sample"): pipeline.tests.sample,
        ("tests", "golden"): pipeline.tests.golden,
    }.items():
        if name is None:
            continue
        file = Path(os.path.normpath(os.path.join(declaration.base, name)))
        if os.path.isabs(name) or "://" in name:
            raise DeclarationError([declaration.problem(path, f"{name} is not relative to the declaration")])
        if not file.is_file():
            raise DeclarationError([declaration.problem(path, f"there is no file {name}")])
        yield file


def _beside_the_code(declaration: Declaration) -> list[str]:
    """Why every environment would refuse a pipeline; nothing where one would take it."""
    pipeline = declaration.pipeline
    found = [
        list(beside_the_code(declaration._replace(pipeline=pipeline.in_environment(environment)), environment))
        for environment in pipeline.environments or ("",)
    ]
    return [problem for problems in found for problem in problems] if all(found) else []


def _code(declarations: Iterable[Declaration]) -> dict[str, Path | None]:
    """The user's modules by the names that they are imported by."""
    found: dict[str, Path | None] = {}
    for each in declarations:
        paths = callables_of(train_plan(each.pipeline), each.base)
        for path, file in packages(paths, each.base, elsewhere=each.pipeline.runtime is not None).items():
            other = found.setdefault(path, file)
            if other != file and (other and other.read_bytes()) != (file and file.read_bytes()):
                raise CodeError(
                    f"two pipelines have different {path}: {other} and {file}", fix="build each a bundle of its own"
                )
    return found


def _lock(declarations: Iterable[Declaration], root: Path) -> Path | None:
    bases = [Path(each.base) for each in declarations]
    folders = [folder for base in bases for folder in (base, *base.parents) if folder.is_relative_to(root)]
    return next((file for name in LOCKS for folder in folders if (file := folder / name).is_file()), None)


def _version(wanted: str | None, where: Origin | None, files: dict[str, bytes]) -> str:
    try:
        if wanted:
            return str(Version(wanted))
    except InvalidVersion as error:
        raise DeliveryError(f"{wanted!r} is no version", allowed="such as 1.4.0 or 2024.5.1 (PEP 440)") from error
    if where and not where.changed:
        return where.described
    content = hashlib.sha256()
    for path, data in sorted(files.items()):
        content.update(f"{path}\0{digest_of_bytes(data)}\n".encode())
    digest = f"c{content.hexdigest()[:12]}"
    if where is None:
        return f"0+{digest}"
    return f"{where.described}{'.' if '+' in where.described else '+'}dirty.{digest}"


def _images(declarations: Iterable[Declaration]) -> dict[str, str]:
    """The images of the declarations as they stand and in each environment, each by its digest."""
    found: dict[str, str] = {}
    for each in declarations:
        for environment in ("", *each.pipeline.environments):
            google = each.pipeline.in_environment(environment).google
            if google is None or google.image is None:
                continue
            if "@sha256:" not in google.image:
                what = f"the image {google.image} is named by a tag, which may be moved"
                raise DeclarationError([each.problem(("google", "image"), what, fix="IMAGE@sha256:DIGEST")])
            found[f"{each.pipeline.name}{f' ({environment})' if environment else ''}"] = google.image
    return found
