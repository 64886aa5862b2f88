"""slice3d: the slices of a CT or MR study become measured 3D models.

Everything here is imported when it is first used, so that `import slice3d` costs milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name → the module that defines it
_PUBLIC = {
    "Grid": "slice3d.grid",
    "Volume": "slice3d.volume",
    "Segmentation": "slice3d.volume",
    "Mesh": "slice3d.mesh",
    "Finding": "slice3d.findings",
    "Slice3DError": "slice3d.errors",
    "scan": "slice3d.io",
    "load": "slice3d.io",
    "load_segmentation": "slice3d.io",
    "save": "slice3d.io",
    "segment": "slice3d.pipeline",
    "run_cohort": "slice3d.cohort",
    "upsample": "slice3d.superres",
    "surface": "slice3d.surface",
    "surfaces": "slice3d.surface",
    "evaluate": "slice3d.metrics",
    "models": "slice3d.models",
}

# submodules that are reachable as attributes without an import statement of their own
_MODULES = ("inference", "io", "metrics", "models", "samples", "surface", "training", "viewer")

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from slice3d import models as models
    from slice3d.cohort import run_cohort as run_cohort
    from slice3d.errors import Slice3DError as Slice3DError
    from slice3d.findings import Finding as Finding
    from slice3d.grid import Grid as Grid
    from slice3d.io import load as load
    from slice3d.io import load_segmentation as load_segmentation
    from slice3d.io import save as save
    from slice3d.io import scan as scan
    from slice3d.mesh import Mesh as Mesh
    from slice3d.metrics import evaluate as evaluate
    from slice3d.pipeline import segment as segment
    from slice3d.superres import upsample as upsample
    from slice3d.surface import surface as surface
    from slice3d.surface import surfaces as surfaces
    from slice3d.volume import Segmentation as Segmentation
    from slice3d.volume import Volume as Volume


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"slice3d.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'slice3d' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
