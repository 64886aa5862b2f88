"""Validation metrics: exact definitions, spacing respected, empty cases defined.

Everything is imported when it is first used; `import slice3d.metrics` costs milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "evaluate": "table",
    "Convention": "distance",
    "SurfaceDistances": "distance",
    "surface_distances": "distance",
    "hausdorff_mm": "distance",
    "assd_mm": "distance",
    "masd_mm": "distance",
    "nsd": "distance",
    "dice": "overlap",
    "jaccard": "overlap",
    "sensitivity": "overlap",
    "precision": "overlap",
    "volume_similarity": "overlap",
    "volume_difference_ml": "overlap",
    "volume_ml": "overlap",
    "boundary_iou": "overlap",
    "components": "topology",
}

__all__ = [*_PUBLIC]

if TYPE_CHECKING:
    from slice3d.metrics.table import evaluate as evaluate
    from slice3d.metrics.topology import components as components


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'slice3d.metrics' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"slice3d.metrics.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
