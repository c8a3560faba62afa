"""The direction in which modules may import each other (CONTRIBUTING.md), read from the source text."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "wsss"

LIGHT = (
    "wsss.config",
    "wsss.rundir",
    "wsss.metrics.segmentation",
    "wsss.report.palette",
    "wsss.data.files",
    "wsss.data.labels",
)
LIGHT_LIBRARIES = {"numpy", "PIL"}
FORBIDDEN_IN_MATHS = ("lightning", "wsss.data", "wsss.config", "wsss.rundir", "wsss.tasks", "wsss.pipeline")
MATHS = sorted(path for name in ("saliency", "refine") for path in (PACKAGE / name).glob("*.py"))


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


@pytest.mark.parametrize("name", ["labels", "tags"])
def test_labels_need_the_standard_library_only(name: str) -> None:
    foreign = {name.partition(".")[0] for name in imported(PACKAGE / f"data/{name}.py", lazy=True)}
    assert foreign - set(sys.stdlib_module_names) == {"wsss"}


@pytest.mark.parametrize("path", MATHS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_saliency_and_refinement_know_no_lightning_disk_or_configuration(path: Path) -> None:
    if path.name == "stage.py":  # the exception that CONTRIBUTING.md makes
        return
    wrong = [
        name for name in imported(path, lazy=True) for bad in FORBIDDEN_IN_MATHS if starts_with(name, bad)
    ]
    # The class-index constants (0 and 255) are defined once, in a module of the standard library only.
    wrong = [name for name in wrong if not starts_with(name, "wsss.data.labels")]
    assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_nothing_but_main_imports_the_command_line() -> None:
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(starts_with(name, "wsss.cli") for name in imported(path, lazy=True))
    }
    assert importers <= {"__main__.py", "cli.py"}


def test_stages_and_models_do_not_know_the_pipeline() -> None:
    allowed = {"pipeline.py", "stages.py", "runner.py", "cli.py"}
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(starts_with(name, "wsss.pipeline") for name in imported(path, lazy=True))
    }
    assert importers <= allowed


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
