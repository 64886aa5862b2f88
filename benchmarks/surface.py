"""Surfaces side by side: slice3d, scikit-image marching cubes, VTK with its usual smoothing, 3D Slicer's defaults in VTK.

    python benchmarks/surface.py [--quick] [--only PART] [--labels s0011.nii.gz] [--out benchmarks/results/surface.json]
    python benchmarks/surface.py --render docs/surfaces.md

Accuracy against analytic bodies, sampled on grids with random sub-voxel offsets and rotations; speed and memory on one
organ of a 512×512×300 mask; all structures of a real label map in one run. Medians; every peer in the same process run.
`--only` runs one part (a body's name, speed or labels) and leaves the others in the file as they are.
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
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from slice3d.grid import Grid
from slice3d.mesh import Mesh
from slice3d.surface import _vtk, check, decimate, surface, surfaces
from slice3d.volume import Segmentation
from tests.surface.shapes import Shape, all_shapes, sample

RESULTS = Path(__file__).parent / "results" / "surface.json"
BEGIN, END = "<!-- surface:begin -->", "<!-- surface:end -->"
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


def accuracy(seeds: tuple[int, ...], only: str | None) -> list[dict[str, Any]]:
    rows = []
    for shape in all_shapes():
        if only not in (None, shape.name):
            continue
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


def timed(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Median wall seconds and least processor seconds of each, taken in turn so that a busy machine disturbs all alike."""
    wall: dict[str, list[float]] = {name: [] for name in works}
    cpu: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter(), time.process_time()
            work()
            wall[name].append(time.perf_counter() - start[0])
            cpu[name].append(time.process_time() - start[1])
    return {name: {"wall": float(np.median(wall[name])), "cpu": min(cpu[name])} for name in works}


def cropped(labels: np.ndarray) -> np.ndarray:
    from slice3d.surface.region import MARGIN, bounding_box

    box = bounding_box(labels == 1)
    assert box is not None
    return np.ascontiguousarray(labels[tuple(slice(a - MARGIN, b + MARGIN) for a, b in zip(*box, strict=True))])


def speed(quick: bool) -> dict[str, Any]:
    labels, grid = organ_mask(quick)
    segmentation = Segmentation(labels, grid, {1: "x"})
    mesh = surface(segmentation, "x")  # imports and compiling are not what is measured
    box = cropped(labels)
    # the same post-processing for all: 15 iterations of windowed sinc; slice3d needs none, its smoothing is in the function
    seconds = timed(
        {
            "slice3d, mask to finished mesh": lambda: surface(segmentation, "x"),
            "VTK flying edges on the crop, contour alone": lambda: flying_edges(box, grid),
            "VTK flying edges on the crop + windowed sinc": lambda: vtk_usual(cropped(labels), grid),
        },
        2 if quick else 7,
    )
    peer = "scikit-image on the whole array + windowed sinc"
    whole = lambda: windowed_sinc(skimage_surface(labels, grid), iterations=15, band=0.001)  # noqa: E731
    seconds |= timed({peer: whole}, 1 if quick else 3)
    mine = seconds["slice3d, mask to finished mesh"]
    return {
        "shape": list(labels.shape), "crop": list(box.shape), "faces": len(mesh.faces), "seconds": seconds,
        "ratio": {name: {k: mine[k] / s[k] for k in s} for name, s in seconds.items() if s is not mine},
        "memory": memory(quick),
    }  # fmt: skip


def memory(quick: bool) -> dict[str, float]:
    """Peak of a fresh process over what it held before, in multiples of the cropped array (of bytes, and as float32)."""
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
    return {"peak_over_crop": 4 * ratio, "peak_over_crop_float32": ratio, "peak_mib": peak, "crop_mib": size / 4}


def real_labels(path: Path, quick: bool) -> dict[str, Any]:
    """All structures of a label map in one run; peers one by one over the whole array, measured on every n-th."""
    from slice3d import load_segmentation

    segmentation = load_segmentation(path)
    surfaces(segmentation, structures=[segmentation.names[v] for v in list(segmentation.names)[:2]])
    made: dict[str, Mesh] = {}
    mine = timed({"slice3d": lambda: made.update(surfaces(segmentation))}, 1)["slice3d"]
    filled = {n: m for n, m in made.items() if len(m.faces)}
    names = list(filled)[:: 40 if quick else 12]
    peers = {"scikit-image": skimage_surface, "VTK usual": vtk_usual, "3D Slicer defaults": slicer_default}
    runs: dict[str, Callable[[], Any]] = {
        peer: lambda method=method: [method(segmentation.mask(n), segmentation.grid) for n in names]  # type: ignore[misc]
        for peer, method in peers.items()
    }
    scaled = {
        peer: {k: v * len(filled) / len(names) for k, v in seconds.items()} for peer, seconds in timed(runs, 1).items()
    }
    drift = [m.volume_ml / m.metadata["voxel_volume_ml"] - 1 for m in filled.values()]
    return {
        "structures": len(filled), "shape": list(segmentation.labels.shape),
        "spacing_mm": [round(s, 3) for s in segmentation.grid.spacing_mm], "slice3d_seconds": mine,
        "peer_seconds_scaled_from_sample": scaled, "sampled": len(names),
        "ratio": {p: {k: mine[k] / t[k] for k in t} for p, t in scaled.items()},
        "gaps_and_overlaps": interfaces(segmentation, filled),
        "volume_drift": {"median": float(np.median(np.abs(drift))), "p95": float(np.percentile(np.abs(drift), 95))},
        "gate": gate(list(filled.values())[:: 8 if quick else 1]),
    }  # fmt: skip


def interfaces(segmentation: Segmentation, meshes: dict[str, Mesh]) -> dict[str, float]:
    """Whether neighbours meet: each triangle between two structures must be in both meshes, once each way round.

    Triangles in one mesh only are the outside of the whole; together they must close (gaps would show as open edges), and
    enclose as much as all parts (an overlap would count twice). Where a part touches itself its sides are put a few float32
    steps apart, so that files keep them apart: vertices within 0.005 mm count as one, and the farthest of them is reported.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    every = np.concatenate([m.vertices for m in meshes.values()])
    offset = np.cumsum([0, *(len(m.vertices) for m in meshes.values())])
    near = cKDTree(every).query_pairs(0.005, output_type="ndarray")
    farthest = float(np.linalg.norm(every[near[:, 0]] - every[near[:, 1]], axis=1).max(initial=0.0))
    graph = coo_matrix((np.ones(len(near), dtype=np.int8), near.T), shape=(len(every),) * 2)
    count, number = connected_components(graph, directed=False)
    points = np.zeros((count, 3))
    points[number] = every
    faces = number[np.concatenate([m.faces + o for m, o in zip(meshes.values(), offset, strict=False)])].astype(
        np.int64
    )
    turn = faces.argmin(axis=1)[:, None]
    rows = np.take_along_axis(faces, (turn + np.arange(3)) % 3, axis=1)  # lowest corner first, direction kept
    low, high = np.minimum(rows[:, 1], rows[:, 2]), np.maximum(rows[:, 1], rows[:, 2])
    _, where, count = np.unique(
        np.stack([rows[:, 0], low, high], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    balance = np.bincount(where.reshape(-1), weights=np.where(rows[:, 1] < rows[:, 2], 1.0, -1.0))
    outer = rows[count[where.reshape(-1)] == 1]
    edges = np.concatenate([outer[:, [0, 1]], outer[:, [1, 2]], outer[:, [2, 0]]])
    up = edges[:, 0] < edges[:, 1]
    _, edge = np.unique(np.sort(edges, axis=1), axis=0, return_inverse=True)
    open_edges = int(np.count_nonzero(np.bincount(edge.reshape(-1), weights=np.where(up, 1.0, -1.0))))
    parts = sum(m.volume_mm3 for m in meshes.values()) / 1000
    return {
        "triangles_between_two_structures": int((count == 2).sum()),
        "of_them_the_same_way_round_in_both": int(np.count_nonzero(balance[count == 2])),
        "triangles_in_more_than_two": int((count > 2).sum()),
        "farthest_apart_mm": farthest, "outer_triangles": len(outer), "open_edges_of_the_outside": open_edges,
        "parts_ml": parts, "outside_ml": Mesh(points, outer).volume_ml,
        "voxels_ml": float(np.count_nonzero(segmentation.labels)) * segmentation.grid.voxel_volume_mm3 / 1000,
    }  # fmt: skip


def gate(meshes: list[Mesh]) -> dict[str, Any]:
    """How many pass the print gate, and what the others fail by."""
    reports = {m.name: check(m, wall=False) for m in meshes}
    return {
        "checked": len(reports),
        "passed": sum(r.passed for r in reports.values()),
        "failed": {name: list(r.reasons) for name, r in reports.items() if not r.passed},
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
    parser.add_argument("--only", choices=[*(shape.name for shape in all_shapes()), "speed", "labels"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--render", type=Path, help="write the tables of the results into this page, and run nothing")
    options = parser.parse_args()
    result = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    if options.render:
        head, rest = options.render.read_text(encoding="utf-8").split(BEGIN)
        filled = f"{head}{BEGIN}\n{tables(result)}\n{END}{rest.split(END)[1]}"
        options.render.write_text(filled, encoding="utf-8")
        return
    result["machine"] = machine()
    if options.only not in ("speed", "labels"):
        rows = accuracy((2,) if options.quick else (1, 2), options.only)
        done = {row["shape"] for row in rows}
        result["accuracy"] = [row for row in result.get("accuracy", []) if row["shape"] not in done] + rows
    if options.only in (None, "speed"):
        result["speed"] = speed(options.quick)
    if options.labels and options.only in (None, "labels"):
        result["labels"] = real_labels(options.labels, options.quick)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def tables(result: dict[str, Any]) -> str:
    """The results as Markdown, with the machine they were measured on."""
    found = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    out = [f"Measured on {found['cores']} cores of an {found['cpu']}, {versions}.", ""]
    out += ["| body, voxels in mm | input | " + " | ".join(f"{m}: mean mm, volume" for m in METHODS) + " |"]
    out += ["|---|---|" + "---|" * len(METHODS)]
    for row in result.get("accuracy", []):
        cells = [f"{row[m]['mean_mm']:.3f}, {row[m]['volume_error']:.2%}" for m in METHODS]
        spacing = "×".join(f"{v:g}" for v in row["spacing_mm"])
        out += [f"| {row['shape']}, {spacing} | {row['input']} | " + " | ".join(cells) + " |"]
    if "speed" in result:
        out += ["", "| one organ of a 512×512×300 mask | seconds | processor seconds |", "|---|---|---|"]
        out += [f"| {n} | {s['wall']:.3f} | {s['cpu']:.3f} |" for n, s in result["speed"]["seconds"].items()]
        memory = result["speed"]["memory"]
        out += [
            "",
            f"Peak memory: {memory['peak_mib']:.0f} MiB, {memory['peak_over_crop']:.1f} times the cropped mask.",
        ]
    if "labels" in result:
        real = result["labels"]
        shape = "×".join(str(n) for n in real["shape"])
        out += ["", f"| {real['structures']} structures of a real label map, {shape} | seconds | processor seconds |"]
        out += [
            "|---|---|---|",
            "| slice3d, all in one run | {wall:.1f} | {cpu:.1f} |".format(**real["slice3d_seconds"]),
        ]
        out += [
            f"| {peer}, one by one (from {real['sampled']} of them) | {s['wall']:.1f} | {s['cpu']:.1f} |"
            for peer, s in real["peer_seconds_scaled_from_sample"].items()
        ]
        meet, passed = real["gaps_and_overlaps"], real["gate"]
        out += [
            "", f"Of its triangles {meet['triangles_between_two_structures']} lie between two structures, in both meshes to "
            f"{meet['farthest_apart_mm']:.4f} mm and opposite ways round; the other {meet['outer_triangles']} close the outside of the whole with "
            f"{meet['open_edges_of_the_outside']} open edges. {passed['passed']} of {passed['checked']} meshes pass the gate.",
        ]  # fmt: skip
    return "\n".join(out)


if __name__ == "__main__":
    main()
