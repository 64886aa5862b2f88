"""Surfaces from labels: contour, smooth, decimate, repair, check and measure, in patient millimetres.

The package can be called: `slice3d.surface(segmentation, "liver")` is `slice3d.surface.surface(...)`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from slice3d.surface.check import Limits as Limits
from slice3d.surface.check import PrintReport as PrintReport
from slice3d.surface.check import check as check
from slice3d.surface.decimate import decimate as decimate
from slice3d.surface.distance import Gap as Gap
from slice3d.surface.distance import deviation as deviation
from slice3d.surface.distance import distance_between as distance_between
from slice3d.surface.distance import signed_distance as signed_distance
from slice3d.surface.extract import surface as surface
from slice3d.surface.extract import surfaces as surfaces
from slice3d.surface.measure import Cut as Cut
from slice3d.surface.measure import Measurements as Measurements
from slice3d.surface.measure import Plane as Plane
from slice3d.surface.measure import cut as cut
from slice3d.surface.measure import measure as measure
from slice3d.surface.measure import plane as plane
from slice3d.surface.remesh import remesh as remesh
from slice3d.surface.repair import repair as repair
from slice3d.surface.scalars import annotate as annotate
from slice3d.surface.settings import SurfaceSettings as SurfaceSettings
from slice3d.surface.smooth import smooth as smooth


class _CallablePackage(ModuleType):
    """Importing any submodule binds the package to the name `slice3d.surface`; this keeps that name a function too."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return surface(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
