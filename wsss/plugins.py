"""Plug-ins: Python files of the user that add methods, refiners, networks and kinds of data under names of their own.

A plug-in is imported before the configuration is read. What it puts into ``METHODS`` (of ``wsss.saliency``),
``REFINERS`` (``wsss.refine.refiners``), ``BACKBONES`` (``wsss.models.backbone``) or ``LOADERS`` (``wsss.data.load``) is
then used by name. It is named by ``--plugin FILE.py`` or in a configuration (``plugins: [FILE.py]``), or it is
installed with an entry point in the group ``wsss.plugins``. That runs its code, so a line says so. A plug-in that only
a run directory names is not run.
"""

import hashlib
import importlib
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from wsss.errors import UserError, escaped

OPTION, GROUP = "--plugin", "wsss.plugins"

LOADED: dict[str, str] = {}
"""File or entry point of each plug-in that was imported -> SHA-256 of the file, or the version of its package."""


def take(words: Sequence[str]) -> list[str]:
    """The words without ``--plugin FILE``, after these files have been imported. Errors as `load`."""
    rest, left = [], list(words)
    while left:
        word = left.pop(0)
        if word == OPTION:
            if not left or left[0].startswith("--"):
                raise UserError(f"{OPTION} needs the path of a Python file")
            load(left.pop(0))
        elif word.startswith(f"{OPTION}="):
            load(word.partition("=")[2])
        else:
            rest.append(word)
    return rest


def load(name: str) -> None:
    """Import a file, once.

    Its folder joins ``sys.path`` and it is imported by its own name, so that worker processes can import it as well.

    Raises:
        UserError: there is no such file, another module has its name, or it fails.
    """
    path = Path(name)
    if name in LOADED:
        return
    if "." in path.stem:
        raise UserError(f"{OPTION} {name}: a name with a dot cannot be imported; rename the file")
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{OPTION} {name}: there is no such Python file")
    module, folder = path.stem, str(path.resolve().parent)
    known = sys.modules.get(module)
    if known is None:
        spec = find_spec(module)
        taken = spec.origin if spec is not None else None
    else:
        taken = getattr(known, "__file__", None) or "Python itself"
    if taken is not None and Path(taken) != path.resolve():
        raise UserError(f"{OPTION} {name}: {taken} has the same name; rename the file")
    print(f"running the code of the plug-in {escaped(name)}", file=sys.stderr)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    sys.path.append(folder)
    try:
        importlib.import_module(module)
    except Exception as error:
        raise UserError(
            f"{OPTION} {name} fails: {type(error).__name__}: {error} (--debug shows where)"
        ) from error
    LOADED[name] = digest


def load_configured(names: Iterable[str], source: Path) -> None:
    """Import what a configuration file names.

    Raises:
        UserError: the file is that of a run directory, and the user has not named the plug-in; or as `load`.
    """
    for name in names:
        if Path(name).stem in {Path(other).stem for other in files()}:  # modules have different names
            continue
        if (source.parent / "manifest.json").is_file():
            raise UserError(
                f"{source} names the plug-in {name}, whose code is not run without being asked for: add "
                f"{OPTION} {name}"
            )
        load(name)


def load_installed() -> None:
    """Import the plug-ins of installed packages, once. Raises UserError if one fails."""
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        name = f"{GROUP}:{point.name}"
        if name in LOADED:
            continue
        print(f"running the code of the plug-in {point.name} ({point.value})", file=sys.stderr)
        try:
            point.load()
        except Exception as error:
            raise UserError(
                f"the installed plug-in {point.name} fails: {type(error).__name__}: {error}"
            ) from error
        LOADED[name] = point.dist.version if point.dist is not None else ""


def files() -> list[str]:
    """The files that were imported."""
    return [name for name in LOADED if not name.startswith(f"{GROUP}:")]
