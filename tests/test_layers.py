"""The import rule of the design, checked on the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "slice3d"

VALUES = {"allocator", "compiled", "errors", "findings", "progress", "grid", "anatomy", "volume", "mesh"}
# folder or module directly below slice3d → what it may import from slice3d
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "allocator": set(),
    "compiled": set(),
    "findings": set(),
    "progress": set(),
    "grid": {"errors"},
    "anatomy": {"errors"},
    "volume": {"errors", "findings", "grid"},
    "mesh": {"errors", "findings"},
    "resample": VALUES,
    "io": VALUES | {"resample"},
    "surface": VALUES | {"resample"},
    "metrics": VALUES | {"resample"},
    "viewer": VALUES | {"resample"},
    "samples": VALUES | {"resample", "io"},
    "models": VALUES | {"resample", "metrics"},
    "inference": VALUES | {"resample", "metrics", "models"},
    "superres": VALUES | {"resample", "metrics", "models"},
    "training": VALUES | {"resample", "metrics", "models", "inference", "samples", "io"},
    "output": {"errors"},
    "reuse": VALUES | {"io", "inference"},
}
TOP = {"pipeline", "cohort", "pacs", "cli", "__init__"}


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ["slice3d", *path.relative_to(PACKAGE).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "slice3d" else {module}
    return {name.split(".")[1] for name in found if name.startswith("slice3d.")}


def _sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_part_has_a_rule() -> None:
    parts = {_part(path) for path in _sources()}
    assert parts <= set(ALLOWED) | TOP, f"no import rule for {sorted(parts - set(ALLOWED) - TOP)}"


@pytest.mark.parametrize("path", _sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    part = _part(path)
    if part in TOP:
        return
    public = {"__version__"}
    forbidden = _imports(path) - ALLOWED[part] - {part} - public
    assert not forbidden, f"{path.name} imports slice3d.{', slice3d.'.join(sorted(forbidden))}"


def test_the_walker_sees_violations() -> None:
    # The rule is only worth something if it can fail.
    assert "cli" not in ALLOWED["io"]
    assert _imports(PACKAGE / "pipeline.py") >= {"errors", "volume"}


@pytest.mark.parametrize("path", [PACKAGE / "models" / "registry.py", PACKAGE / "anatomy.py"], ids=lambda p: p.name)
def test_registry_and_anatomy_never_import_torch(path: Path) -> None:
    assert not re.search(r"^\s*(import|from) (torch|monai)", path.read_text(encoding="utf-8"), re.MULTILINE)


HEAVY = {"torch", "monai", "vtk", "vtkmodules", "SimpleITK", "pandas", "skimage", "scipy", "matplotlib", "nibabel"}


def test_import_is_light() -> None:
    code = f"import sys, slice3d; print(sorted({HEAVY} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_help_is_light() -> None:
    code = f"import sys, slice3d.cli.main; print(sorted({HEAVY} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
