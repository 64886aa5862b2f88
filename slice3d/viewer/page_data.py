"""What the report page carries, small enough for one file: image and labels as NIfTI, surfaces as MZ3, all gzipped."""

from __future__ import annotations

import gzip
import importlib
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.mesh import Mesh
from slice3d.resample import resample_labels
from slice3d.volume import Segmentation, Volume, freeze

_MZ3_MAGIC, _MZ3_FACES_AND_VERTICES = 23117, 3


def shrink(volume: Volume, segmentation: Segmentation, *, most_voxels: int) -> tuple[Volume, Segmentation, str]:
    """Image (mean of blocks) and labels (nearest) with at most `most_voxels`; the sentence says so, else ""."""
    factors = _factors(volume.grid, most_voxels)
    if factors == (1, 1, 1):
        return volume, segmentation, ""
    data = _block_mean(volume.data, factors)
    affine = volume.grid.affine.copy()
    affine[:3, :3] = volume.grid.affine[:3, :3] * factors
    affine[:3, 3] = volume.grid.to_world([(f - 1) / 2 for f in factors])
    grid = Grid(data.shape, affine)
    old, new = (" × ".join(f"{s:.3g}" for s in g.spacing_mm) for g in (volume.grid, grid))
    note = f"This page shows a smaller copy: voxels of {new} mm, not {old} mm. Every number was measured at full size."
    small = replace(volume, data=freeze(data), grid=grid, synthesised=None, uncertainty=None, source=None)
    return small, resample_labels(segmentation, grid=grid), note


def _factors(grid: Grid, most_voxels: int) -> tuple[int, int, int]:
    """Whole factors per axis that bring the size under the limit and the voxels nearest to cubes."""
    factors = [1, 1, 1]
    while np.prod(np.ceil(np.divide(grid.shape, factors))) > most_voxels:
        spacing = np.multiply(grid.spacing_mm, factors)
        # Never down to a handful of slices: a flat axis is not the one to shrink.
        left = np.divide(grid.shape, factors)
        axes = [axis for axis in range(3) if left[axis] > 16] or [int(np.argmax(left))]
        finest = min(spacing[axis] for axis in axes)
        # Axes that are as fine as each other shrink together, so that pixels stay square.
        for axis in axes:
            factors[axis] += bool(spacing[axis] < 1.05 * finest)
    return factors[0], factors[1], factors[2]


def _block_mean(data: NDArray[Any], factors: tuple[int, int, int]) -> NDArray[Any]:
    pad = [(0, -n % f) for n, f in zip(data.shape, factors, strict=True)]
    padded = np.pad(data, pad, mode="edge")
    out = padded
    for axis, f in enumerate(factors):
        shape = [*out.shape[:axis], out.shape[axis] // f, f, *out.shape[axis + 1 :]]
        out = out.reshape(shape).mean(axis=axis + 1, dtype=np.float32)
    return np.rint(out).astype(data.dtype) if data.dtype.kind in "iu" else out


def image_bytes(volume: Volume, limits: tuple[float, float]) -> bytes:
    """Gzipped NIfTI with int16 values; CT as HU between -1024 and 3071, others scaled to what the window needs."""
    data = np.asarray(volume.data)
    if volume.modality == "CT":
        return _nifti(np.clip(np.nan_to_num(data), -1024, 3071).astype(np.int16), volume.grid, 1.0, 0.0)
    values = np.nan_to_num(data.astype(np.float32))
    low, high = float(values.min()), float(np.percentile(values, 99.95))
    low, high = min(low, limits[0]), max(high, limits[1])
    slope = (high - low) / 4095 or 1.0
    stored = np.rint((np.clip(values, low, high) - low) / slope).astype(np.int16)
    return _nifti(stored, volume.grid, slope, low)


def label_bytes(segmentation: Segmentation, values: Sequence[int]) -> bytes:
    """Gzipped NIfTI: label number n is the n-th of `values`, everything else is 0."""
    compact = np.zeros(segmentation.labels.shape, dtype=np.uint8)
    for number, value in enumerate(values, start=1):
        compact[segmentation.labels == value] = number
    return _nifti(compact, segmentation.grid, 1.0, 0.0)


def _nifti(data: NDArray[Any], grid: Grid, slope: float, intercept: float) -> bytes:
    nibabel: Any = importlib.import_module("nibabel")
    image = nibabel.Nifti1Image(data, grid.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1)
    image.header.set_slope_inter(slope, intercept)
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def thin_out(meshes: Sequence[Mesh], *, most_triangles: int) -> tuple[list[Mesh], str]:
    """Meshes with at most `most_triangles` together, each keeping its share; the sentence says so, else ""."""
    total = sum(len(mesh.faces) for mesh in meshes)
    if total <= most_triangles:
        return list(meshes), ""
    keep = most_triangles / total
    note = (
        f"Surfaces are shown with {most_triangles:,} of {total:,} triangles; the files beside this page hold them all."
    )
    return [_decimated(mesh, keep) for mesh in meshes], note


def _decimated(mesh: Mesh, keep: float) -> Mesh:
    from vtkmodules.util import numpy_support
    from vtkmodules.vtkCommonCore import vtkPoints
    from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData
    from vtkmodules.vtkFiltersCore import vtkQuadricDecimation

    convert: Any = numpy_support
    points = vtkPoints()
    points.SetData(convert.numpy_to_vtk(np.ascontiguousarray(mesh.vertices), deep=True))
    cells = vtkCellArray()
    corners = np.ascontiguousarray(mesh.faces.reshape(-1))
    starts = np.arange(0, len(corners) + 1, 3, dtype=np.int64)
    cells.SetData(
        convert.numpy_to_vtkIdTypeArray(starts, deep=True), convert.numpy_to_vtkIdTypeArray(corners, deep=True)
    )
    data = vtkPolyData()
    data.SetPoints(points)
    data.SetPolys(cells)
    fewer = vtkQuadricDecimation()
    fewer.SetInputData(data)
    fewer.SetTargetReduction(1 - keep)
    fewer.SetVolumePreservation(True)
    fewer.Update()
    out = fewer.GetOutput()
    vertices = convert.vtk_to_numpy(out.GetPoints().GetData())
    faces = convert.vtk_to_numpy(out.GetPolys().GetConnectivityArray()).reshape(-1, 3)
    return Mesh(vertices, faces, mesh.name, mesh.color)


def surface_bytes(mesh: Mesh) -> bytes:
    """Gzipped MZ3 (NiiVue's and Surf Ice's own format): int32 faces, float32 vertices in RAS mm, to 0.01 mm."""
    header = struct.pack("<HHIII", _MZ3_MAGIC, _MZ3_FACES_AND_VERTICES, len(mesh.faces), len(mesh.vertices), 0)
    vertices = np.round(mesh.vertices, 2).astype("<f4")
    return gzip.compress(header + mesh.faces.astype("<i4").tobytes() + vertices.tobytes(), compresslevel=6, mtime=0)


def unique_findings(*groups: Sequence[Finding]) -> tuple[Finding, ...]:
    """All findings once, the most serious first."""
    order = ("error", "warning", "info")
    found = {(f.code, f.message): f for group in groups for f in group}
    return tuple(sorted(found.values(), key=lambda f: order.index(f.severity)))
