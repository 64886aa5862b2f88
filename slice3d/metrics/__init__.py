"""Validation metrics: exact definitions, spacing respected, empty cases defined.

Everything is imported when it is first used; `import slice3d.metrics` costs milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "evaluate": "table",
    "evaluate_cases": "cases",
    "CaseSettings": "cases",
    "summarise": "cases",
    "rank": "cases",
    "ranking_plot": "plots",
    "save_ranking_plot": "plots",
    "lesion_scores": "lesions",
    "LesionScores": "lesions",
    "betti_numbers": "topology",
    "betti_errors": "topology",
    "euler_characteristic": "topology",
    "Betti": "topology",
    "cl_dice": "topology",
    "mae": "image",
    "psnr": "image",
    "ssim": "image",
    "mesh_distances": "meshes",
    "chamfer_mm": "meshes",
    "brier": "calibration",
    "expected_calibration_error": "calibration",
    "reliability": "calibration",
    "Surface": "border",
    "mask_surface": "border",
    "distances_mm": "border",
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
    from slice3d.metrics.border import Surface as Surface
    from slice3d.metrics.border import distances_mm as distances_mm
    from slice3d.metrics.border import mask_surface as mask_surface
    from slice3d.metrics.calibration import brier as brier
    from slice3d.metrics.calibration import expected_calibration_error as expected_calibration_error
    from slice3d.metrics.calibration import reliability as reliability
    from slice3d.metrics.cases import CaseSettings as CaseSettings
    from slice3d.metrics.cases import evaluate_cases as evaluate_cases
    from slice3d.metrics.cases import rank as rank
    from slice3d.metrics.cases import summarise as summarise
    from slice3d.metrics.distance import Convention as Convention
    from slice3d.metrics.distance import SurfaceDistances as SurfaceDistances
    from slice3d.metrics.distance import assd_mm as assd_mm
    from slice3d.metrics.distance import hausdorff_mm as hausdorff_mm
    from slice3d.metrics.distance import masd_mm as masd_mm
    from slice3d.metrics.distance import nsd as nsd
    from slice3d.metrics.distance import surface_distances as surface_distances
    from slice3d.metrics.image import mae as mae
    from slice3d.metrics.image import psnr as psnr
    from slice3d.metrics.image import ssim as ssim
    from slice3d.metrics.lesions import LesionScores as LesionScores
    from slice3d.metrics.lesions import lesion_scores as lesion_scores
    from slice3d.metrics.meshes import chamfer_mm as chamfer_mm
    from slice3d.metrics.meshes import mesh_distances as mesh_distances
    from slice3d.metrics.overlap import boundary_iou as boundary_iou
    from slice3d.metrics.overlap import dice as dice
    from slice3d.metrics.overlap import jaccard as jaccard
    from slice3d.metrics.overlap import precision as precision
    from slice3d.metrics.overlap import sensitivity as sensitivity
    from slice3d.metrics.overlap import volume_difference_ml as volume_difference_ml
    from slice3d.metrics.overlap import volume_ml as volume_ml
    from slice3d.metrics.overlap import volume_similarity as volume_similarity
    from slice3d.metrics.plots import ranking_plot as ranking_plot
    from slice3d.metrics.plots import save_ranking_plot as save_ranking_plot
    from slice3d.metrics.table import evaluate as evaluate
    from slice3d.metrics.topology import Betti as Betti
    from slice3d.metrics.topology import betti_errors as betti_errors
    from slice3d.metrics.topology import betti_numbers as betti_numbers
    from slice3d.metrics.topology import cl_dice as cl_dice
    from slice3d.metrics.topology import components as components
    from slice3d.metrics.topology import euler_characteristic as euler_characteristic


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'slice3d.metrics' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"slice3d.metrics.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
