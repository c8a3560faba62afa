"""The direction in which modules may import each other (CONTRIBUTING.md), read from the source text."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "wsss"

FLOORS = (
    {"wsss"},
    {"errors"},
    {"grammar", "parallel", "plugins"},
    {"data"},
    {"refine"},
    {"config"},
    {"usage", "rundir", "runtime", "models"},
    {"saliency"},
    {"metrics", "options", "extension"},
    {"tasks"},
    {"stages"},
    {"pipeline", "report"},
    {"runner", "export", "explain", "predict", "comparison"},
    {"commands", "inference"},
    {"cli"},
    {"__main__"},
)
"""The house from the ground up: a room (a package, or a module at the top of wsss/) imports from lower floors only."""

MOST_ROOMS_OF_ONE_FILE = 16
"""Modules at the top of wsss/, without __init__ and __main__."""

LIGHT = (
    "wsss.config",
    "wsss.rundir",
    "wsss.metrics.segmentation",
    "wsss.data.palette",
    "wsss.data.files",
    "wsss.data.labels",
    "wsss.refine.parameters",
    "wsss.grammar",
)
LIGHT_LIBRARIES = {"numpy", "PIL"}
MATHS = {
    "saliency": {"wsss", "errors", "grammar", "models", "saliency"},
    "refine": {"wsss", "errors", "grammar", "refine"},
    "extension": {"wsss", "errors", "models", "saliency", "extension"},
}
"""Rooms of pure mathematics -> the rooms that they may know: never Lightning, disk or configuration."""


def source_of(module: str) -> Path | None:
    """The file of a module of ours; None for names in modules and for files that do not exist (yet)."""
    base = ROOT.joinpath(*module.split("."))
    candidates = (base / "__init__.py", base.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def at_import_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run when the module is imported: not in functions, not under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_import_time(node)


def imported(path: Path, *, lazy: bool) -> set[str]:
    """Full names that a file imports; with `lazy`, those inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree) if lazy else at_import_time(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, path)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def absolute(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return node.module or ""
    parts = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
    return ".".join((*parts, node.module) if node.module else parts)


def starts_with(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def ours_behind(module: str) -> dict[str, Path]:
    """Every module of ours that importing `module` loads, packages' `__init__` included."""
    loaded: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = source_of(name)
        if path is None or not starts_with(name, "wsss") or name in loaded:
            continue
        loaded[name] = path
        parts = name.split(".")
        waiting += [".".join(parts[:end]) for end in range(1, len(parts))]
        waiting += imported(path, lazy=False)
    return loaded


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_need_numpy_pillow_and_the_standard_library_only(module: str) -> None:
    assert source_of(module) is not None
    for name, path in ours_behind(module).items():
        foreign = {found.partition(".")[0] for found in imported(path, lazy=False)}
        heavy = foreign - LIGHT_LIBRARIES - set(sys.stdlib_module_names) - {"wsss", ""}
        assert not heavy, f"{name}, which {module} loads, imports {sorted(heavy)}"


@pytest.mark.parametrize("name", ["data/labels", "data/tags", "grammar", "refine/parameters"])
def test_these_need_the_standard_library_only(name: str) -> None:
    foreign = {name.partition(".")[0] for name in imported(PACKAGE / f"{name}.py", lazy=True)}
    assert foreign - set(sys.stdlib_module_names) == {"wsss"}


def room_of(module: str) -> str:
    """The package, or the module at the top of wsss/, that a module belongs to."""
    return module.split(".")[1] if "." in module else module


def modules() -> dict[str, Path]:
    return {module_of(path): path for path in PACKAGE.rglob("*.py")}


def arrows() -> dict[str, set[str]]:
    """Every module of ours -> the modules of ours that it imports, inside functions too."""
    known = modules()
    return {
        name: {found for found in imported(path, lazy=True) if found in known and found not in (name, "wsss")}
        for name, path in known.items()
    }


def test_no_module_imports_in_a_circle() -> None:
    packages = {module_of(path) for path in PACKAGE.rglob("__init__.py")}  # beside the modules in them
    graph = {name: {other for other in found if other not in packages} for name, found in arrows().items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_arrow_runs_up() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    assert set(floor) == {room_of(name) for name in modules()}
    up = [
        (name, other)
        for name, found in arrows().items()
        for other in found
        if name != "wsss"  # `wsss.load` is imported when it is used, and named there for type checkers only
        and room_of(name) != room_of(other)
        and floor[room_of(name)] <= floor[room_of(other)]
    ]
    assert not up


def test_few_modules_stand_at_the_top() -> None:
    top = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert len(top) <= MOST_ROOMS_OF_ONE_FILE, sorted(top)


@pytest.mark.parametrize("room", MATHS)
def test_mathematics_knows_no_lightning_disk_or_configuration(room: str) -> None:
    for path in (PACKAGE / room).glob("*.py"):
        names = {name for name in imported(path, lazy=True) if starts_with(name, "wsss")}
        # The class-index constants (0 and 255) are defined once, in a module of the standard library only.
        rooms = {room_of(name) for name in names if not starts_with(name, "wsss.data.labels")} - {"data"}
        assert rooms <= MATHS[room], (path, rooms - MATHS[room])
        assert all(
            name == "wsss.data" or starts_with(name, "wsss.data.labels")
            for name in names
            if room_of(name) == "data"
        )
        assert not any(starts_with(name, "lightning") for name in imported(path, lazy=True))


def test_nothing_but_main_imports_the_command_line() -> None:
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(starts_with(name, "wsss.cli") for name in imported(path, lazy=True))
    }
    assert importers <= {"__main__.py", "cli.py"}


def test_worker_processes_do_without_torch() -> None:
    code = "import sys, wsss.stages.workers; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("module", ["wsss", "wsss.metrics.segmentation", "wsss.data.files"])
def test_importing_it_loads_no_heavy_library(module: str) -> None:
    heavy = ["torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "cv2"]
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_lazy_and_relative_imports_are_seen(tmp_path: Path) -> None:
    path = PACKAGE / "saliency" / "imaginary.py"  # resolved by name only, never written
    node = ast.parse("from ..data import files").body[0]
    assert isinstance(node, ast.ImportFrom)
    assert absolute(node, path) == "wsss.data"
    text = "import a\nif TYPE_CHECKING:\n    import b\nclass C:\n    import c\ndef f():\n    import d\n"
    (tmp_path / "m.py").write_text(text)
    assert imported(tmp_path / "m.py", lazy=False) == {"a", "c"}
    assert imported(tmp_path / "m.py", lazy=True) == {"a", "b", "c", "d"}
