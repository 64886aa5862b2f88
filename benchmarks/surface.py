"""Surfaces side by side: slice3d, scikit-image marching cubes, VTK with its usual smoothing, 3D Slicer's defaults in VTK.

    python benchmarks/surface.py [--quick] [--labels s0011.nii.gz] [--out benchmarks/results/surface.json]

Accuracy against analytic bodies, sampled on grids with random sub-voxel offsets and rotations; speed and memory on one
organ of a 512×512×300 mask; all structures of a real label map in one run. Medians; every peer in the same process run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from slice3d.grid import Grid
from slice3d.mesh import Mesh
from slice3d.surface import _vtk, check, decimate, surface, surfaces
from slice3d.volume import Segmentation
from tests.surface.shapes import Shape, all_shapes, sample

SPACINGS = ((1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (0.8, 0.8, 5.0))


def skimage_surface(values: np.ndarray, grid: Grid) -> Mesh:
    """scikit-image marching cubes at ½, zero-padded."""
    from skimage.measure import marching_cubes

    vertices, faces, _, _ = marching_cubes(np.pad(values.astype(np.float32), 1), 0.5)
    return Mesh(grid.to_world(vertices - 1), faces)


def flying_edges(values: np.ndarray, grid: Grid) -> Mesh:
    """VTK flying edges at ½, zero-padded, no smoothing."""
    from vtkmodules.vtkFiltersCore import vtkFlyingEdges3D

    filter_ = vtkFlyingEdges3D()
    filter_.SetInputData(_vtk.image(np.pad(values.astype(np.float32), 1)))
    filter_.SetValue(0, 0.5)
    filter_.ComputeNormalsOff()
    filter_.Update()
    points, faces = _vtk.arrays(filter_.GetOutput())
    return Mesh(grid.to_world(points[:, ::-1] - 1), faces)


def windowed_sinc(mesh: Mesh, *, iterations: int, band: float) -> Mesh:
    """VTK's windowed-sinc smoothing in mm."""
    from vtkmodules.vtkFiltersCore import vtkWindowedSincPolyDataFilter

    filter_ = vtkWindowedSincPolyDataFilter()
    filter_.SetInputData(_vtk.polydata(mesh.vertices, mesh.faces))
    filter_.SetNumberOfIterations(iterations)
    filter_.SetPassBand(band)
    filter_.NormalizeCoordinatesOn()
    filter_.FeatureEdgeSmoothingOff()
    filter_.BoundarySmoothingOff()
    filter_.NonManifoldSmoothingOn()
    filter_.Update()
    return Mesh(*_vtk.arrays(filter_.GetOutput()))


def vtk_usual(values: np.ndarray, grid: Grid) -> Mesh:
    """Flying edges and windowed sinc as VTK's own medical examples have it: 15 iterations, pass band 0.001 (−120°)."""
    return windowed_sinc(flying_edges(values, grid), iterations=15, band=0.001)


def slicer_default(values: np.ndarray, grid: Grid) -> Mesh:
    """3D Slicer's closed-surface conversion at its defaults: smoothing factor 0.5, so 40 iterations and pass band 0.01."""
    return windowed_sinc(flying_edges(values, grid), iterations=40, band=0.01)


def ours(values: np.ndarray, grid: Grid) -> Mesh:
    """slice3d at its defaults; fractions go in as a probability map."""
    binary = values.dtype.kind != "f"
    labels = np.asarray(values >= 0.5).astype(np.uint8)
    maps = {} if binary else {"x": values}
    return surface(Segmentation(labels, grid, {1: "x"}, probabilities=maps), "x")


METHODS: dict[str, Callable[[np.ndarray, Grid], Mesh]] = {
    "slice3d": ours, "scikit-image": skimage_surface, "VTK usual": vtk_usual, "3D Slicer defaults": slicer_default,
}  # fmt: skip


def errors(shape: Shape, mesh: Mesh) -> dict[str, float]:
    """Area-weighted distance of the surface from the truth, and relative volume error."""
    corner = mesh.vertices[mesh.faces]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    distance = shape.distance(corner.mean(axis=1))
    order = np.argsort(distance)
    share = np.cumsum(area[order]) / area.sum()
    return {
        "mean_mm": float((distance * area).sum() / area.sum()),
        "p95_mm": float(distance[order][np.searchsorted(share, 0.95)]),
        "volume_error": abs(mesh.volume_mm3) / shape.volume_mm3 - 1.0,
    }


def accuracy(seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    for shape in all_shapes():
        for spacing in SPACINGS:
            cases = [sample(shape, spacing, seed=seed, rotate=seed % 2 == 0) for seed in seeds]
            for source in ("partial volume", "binary"):
                row: dict[str, Any] = {"shape": shape.name, "spacing_mm": spacing, "input": source, "cases": len(seeds)}
                for name, method in METHODS.items():
                    found, gate, added = [], [], []
                    for part, grid in cases:
                        values = part if source == "partial volume" else (part >= 0.5).astype(np.uint8)
                        mesh = method(values, grid)
                        found.append(errors(shape, mesh))
                        if name == "slice3d" and not gate:
                            gate.append(check(mesh, wall=False).passed)
                            less = decimate(mesh, target_triangles=len(mesh.faces) // 10)
                            gate.append(check(less, wall=False).passed)
                            added.append(errors(shape, less)["mean_mm"] - found[-1]["mean_mm"])
                    row[name] = {k: float(np.median([abs(f[k]) for f in found])) for k in found[0]}
                    row[name]["worst_volume_error"] = max(abs(f["volume_error"]) for f in found)
                    row[name]["worst_mean_mm"] = max(f["mean_mm"] for f in found)
                    if name == "slice3d":
                        row[name] |= {"passes_gate": all(gate), "mean_added_by_decimation_to_10_percent_mm": max(added)}
                rows.append(row)
                print(shape.name, spacing, source, {m: round(row[m]["mean_mm"], 3) for m in METHODS}, flush=True)
    return rows


def organ_mask(quick: bool) -> tuple[np.ndarray, Grid]:
    """A liver-sized body in a 512×512×300 mask at 0.8×0.8×1 mm: a sum of waves over an ellipsoid."""
    shape = (256, 256, 150) if quick else (512, 512, 300)
    grid = Grid.from_spacing(shape, (0.8, 0.8, 1.0))
    labels = np.zeros(shape, dtype=np.uint8)
    half = np.array([105, 80, 85]) * (0.5 if quick else 1.0)
    centre = np.asarray(grid.size_mm) / 2 + (20, 10, 5)
    x, y, z = np.meshgrid(
        *(np.arange(n) * s for n, s in zip(shape, grid.spacing_mm, strict=True)), indexing="ij", sparse=True
    )
    u, v, w = (x - centre[0]) / half[0], (y - centre[1]) / half[1], (z - centre[2]) / half[2]
    bump = 0.08 * np.sin(5 * u + 1) * np.sin(4 * v) + 0.06 * np.sin(7 * w + 2 * u)
    labels[u**2 + v**2 + w**2 < (1 + bump) ** 2] = 1
    return labels, grid


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    times, out = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        out = work()
        times.append(time.perf_counter() - start)
    return float(np.median(times)), out


def cropped(labels: np.ndarray) -> np.ndarray:
    from slice3d.surface.region import MARGIN, bounding_box

    box = bounding_box(labels == 1)
    assert box is not None
    return np.ascontiguousarray(labels[tuple(slice(a - MARGIN, b + MARGIN) for a, b in zip(*box, strict=True))])


def speed(quick: bool) -> dict[str, Any]:
    labels, grid = organ_mask(quick)
    segmentation = Segmentation(labels, grid, {1: "x"})
    repeats = 3
    surface(segmentation, "x")  # imports are not what is measured
    mine, mesh = timed(lambda: surface(segmentation, "x"), repeats)
    # the same post-processing for all: 15 iterations of windowed sinc; slice3d needs none, its smoothing is in the function
    crop_vtk, _ = timed(lambda: vtk_usual(cropped(labels), grid), repeats)
    crop_only, _ = timed(lambda: flying_edges(cropped(labels), grid), repeats)
    whole, _ = timed(lambda: windowed_sinc(skimage_surface(labels, grid), iterations=15, band=0.001), 1 if quick else 2)
    return {
        "shape": list(labels.shape), "crop": list(cropped(labels).shape), "faces": len(mesh.faces),
        "seconds": {
            "slice3d, mask to finished mesh": mine,
            "VTK flying edges on the crop, contour alone": crop_only,
            "VTK flying edges on the crop + windowed sinc": crop_vtk,
            "scikit-image on the whole array + windowed sinc": whole,
        },
        "ratio_to_whole_scikit_image": mine / whole, "ratio_to_vtk_with_smoothing": mine / crop_vtk,
        "memory": memory(quick),
    }  # fmt: skip


def memory(quick: bool) -> dict[str, float]:
    """Peak of a fresh process over what it held before, in multiples of the cropped array as float32."""
    code = (
        "import sys, resource; sys.path.insert(0, '.'); sys.path.insert(0, 'benchmarks');"
        "from surface import organ_mask, cropped; from slice3d.surface import surface; from slice3d.volume import Segmentation, freeze;"
        "import numpy as np;"
        f"labels, grid = organ_mask({quick}); segmentation = Segmentation(freeze(labels), grid, {{1: 'x'}});"
        "small = Segmentation(np.pad(np.ones((4, 4, 4), np.uint8), 3), type(grid).from_spacing((10, 10, 10), (1, 1, 1)), {1: 'x'});"
        "surface(small, 'x'); size = cropped(labels).size * 4;"
        "peak = lambda: int([l for l in open('/proc/self/status') if l.startswith('VmHWM')][0].split()[1]) * 1024;"
        "open('/proc/self/clear_refs', 'w').write('5'); before = peak(); surface(segmentation, 'x');"
        "print((peak() - before) / size, (peak() - before) / 2**20, size / 2**20)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    ratio, peak, size = (float(v) for v in done.stdout.split())
    return {"peak_over_crop_float32": ratio, "peak_mib": peak, "crop_float32_mib": size}


def real_labels(path: Path, quick: bool) -> dict[str, Any]:
    """All structures of a label map in one run; peers one by one over the whole array, measured on every n-th."""
    from slice3d import load_segmentation

    segmentation = load_segmentation(path)
    surfaces(segmentation, structures=[segmentation.names[v] for v in list(segmentation.names)[:2]])
    mine, meshes = timed(lambda: surfaces(segmentation), 1)
    filled = {n: m for n, m in meshes.items() if len(m.faces)}
    names = list(filled)[:: 40 if quick else 12]
    peers = {}
    for peer, method in (("scikit-image", skimage_surface), ("VTK usual", vtk_usual)):
        start = time.perf_counter()
        for name in names:
            method(segmentation.mask(name), segmentation.grid)
        peers[peer] = (time.perf_counter() - start) / len(names) * len(filled)
    drift = [m.volume_ml / m.metadata["voxel_volume_ml"] - 1 for m in filled.values()]
    return {
        "structures": len(filled), "shape": list(segmentation.labels.shape), "slice3d_seconds": mine,
        "peer_seconds_scaled_from_sample": peers, "sampled": len(names),
        "ratio": {p: mine / t for p, t in peers.items()},
        "gaps_and_overlaps": interfaces(segmentation, filled),
        "volume_drift": {"median": float(np.median(np.abs(drift))), "p95": float(np.percentile(np.abs(drift), 95))},
        "gate": gate(list(filled.values())[:: 8 if quick else 2]),
    }  # fmt: skip


def interfaces(segmentation: Segmentation, meshes: dict[str, Mesh]) -> dict[str, float]:
    """Sum of the parts against the whole: the union's surface encloses as much as all parts together, or there are gaps."""
    whole = Segmentation((segmentation.labels > 0).astype(np.uint8), segmentation.grid, {1: "all"})
    net = surfaces(replace(segmentation, groups={}))
    parts = sum(m.volume_mm3 for m in net.values() if len(m.faces))
    corners = np.concatenate([np.sort(m.vertices[m.faces].reshape(-1, 9).round(6), axis=1) for m in meshes.values()])
    _, count = np.unique(corners, axis=0, return_counts=True)
    return {
        "faces_in_one_mesh_only": int((count == 1).sum()), "faces_in_two_meshes": int((count == 2).sum()),
        "faces_in_more": int((count > 2).sum()), "parts_ml": parts / 1000, "voxels_ml": whole.volume_ml("all"),
    }  # fmt: skip


def gate(meshes: list[Mesh]) -> dict[str, Any]:
    reports = [check(m, wall=False) for m in meshes]
    return {
        "checked": len(reports),
        "passed": sum(r.passed for r in reports),
        "reasons": sorted({x for r in reports for x in r.reasons}),
    }


def machine() -> dict[str, Any]:
    import skimage
    import vtkmodules.vtkCommonCore as core

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scikit-image": skimage.__version__}
    return {"cpu": model, "cores": os.cpu_count(), "versions": {**versions, "vtk": core.vtkVersion.GetVTKVersion()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--labels", type=Path, help="a real label map with many structures")
    parser.add_argument("--only", choices=["accuracy", "speed", "labels"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/surface.json"))
    options = parser.parse_args()
    result = json.loads(options.out.read_text()) if options.out.is_file() else {}
    result["machine"] = machine()
    if options.only in (None, "accuracy"):
        result["accuracy"] = accuracy((2,) if options.quick else (1, 2))
    if options.only in (None, "speed"):
        result["speed"] = speed(options.quick)
    if options.labels and options.only in (None, "labels"):
        result["labels"] = real_labels(options.labels, options.quick)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
