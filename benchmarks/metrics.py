"""Conformance and speed of the metrics, side by side with other tools in the same run.

    python benchmarks/metrics.py [--quick] [--out benchmarks/results/metrics.json]

Conformance: shapes with closed-form answers, error in mm per tool. Speed: a liver-sized pair in 512×512×300 voxels of
0.8×0.8×5 mm and 100 structures in one pass. Memory: peak beyond the inputs per voxel of the cropped pair.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from slice3d import Grid, Segmentation, evaluate
from slice3d.metrics import hausdorff_mm, masd_mm, surface_distances
from slice3d.volume import freeze

SPACING = (0.8, 0.8, 5.0)
TOOLS = ("mesh", "deepmind", "monai", "simpleitk", "nnunet")


def grid_around(size_mm, spacing):
    shape = [int(np.ceil((size_mm + 4 * s) / s)) // 2 * 2 + 1 for s in spacing]
    return Grid.from_spacing(shape, spacing, [-(n - 1) / 2 * s for n, s in zip(shape, spacing, strict=True)])


def distance_to(grid, centre):
    axes = [grid.affine[a, 3] + np.arange(n) * grid.affine[a, a] - centre[a] for a, n in enumerate(grid.shape)]
    return np.meshgrid(*axes, indexing="ij", sparse=True)


def ball(grid, radius, centre=(0, 0, 0)):
    x, y, z = distance_to(grid, centre)
    return x * x + y * y + z * z <= radius**2


def box(grid, half, centre=(0, 0, 0)):
    x, y, z = distance_to(grid, centre)
    return (abs(x) <= half) & (abs(y) <= half) & (abs(z) <= half)


def slab(grid, top):
    return np.broadcast_to(distance_to(grid, (0, 0, 0))[2] <= top, grid.shape)


def shapes():
    """(name, spacing, prediction, reference, grid, exact HD, exact MASD or None)."""
    for spacing in ((1.0, 1.0, 1.0), (0.7, 0.7, 5.0)):
        for radius in (10, 25):
            for label, centre in (("on a voxel", (0, 0, 0)), ("between voxels", (0.31, -0.17, 0.42))):
                centre = np.multiply(centre, spacing)
                g = grid_around(2 * (radius + 17), spacing)
                name = f"concentric spheres {radius} and {radius + 15} mm, {label}"
                yield name, spacing, ball(g, radius, centre), ball(g, radius + 15, centre), g, 15.0, 15.0
        for axis in range(3):
            g, shift = grid_around(80, spacing), np.eye(3)[axis] * 15
            name = f"equal spheres 20 mm, 15 mm apart along {'ijk'[axis]}"
            yield name, spacing, ball(g, 20), ball(g, 20, shift), g, 15.0, None
        g = grid_around(60, spacing)
        # boxes and planes end half way between voxel centres, where a mask can say it exactly
        edge = [np.array([(np.floor(half / s - 0.5) + 0.5) * s for s in spacing]) for half in (15.1, 25.1)]
        x, y, z = distance_to(g, (0, 0, 0))
        boxes = [(abs(x) <= e[0]) & (abs(y) <= e[1]) & (abs(z) <= e[2]) for e in edge]
        yield "nested boxes", spacing, *boxes, g, float(np.linalg.norm(edge[1] - edge[0])), None
        yield "parallel planes 15 mm apart", spacing, slab(g, -7.5), slab(g, 7.5), g, 15.0, None
        one = (abs(x + 10.5) < 10) & (abs(y) < 10) & (abs(z) < 10)
        step = round(20 / spacing[0])
        yield "equal boxes, touching", spacing, one, np.roll(one, step, 0), g, step * spacing[0], None
        yield from more_shapes(spacing)


def more_shapes(spacing):
    """What no quadric describes: cubes turned out of the axes, tori, capsules."""
    g = grid_around(66, spacing)
    points = g.to_world(np.stack(np.indices(g.shape), axis=-1))
    for seed in range(3):
        away = np.abs(points @ Rotation.random(random_state=seed).as_matrix()).max(axis=-1)
        yield "turned cubes", spacing, away <= 10, away <= 18, g, 8 * 3**0.5, None
    tube = np.hypot(np.hypot(points[..., 0], points[..., 1]) - 18, points[..., 2])
    yield "tori with tubes of 5 and 9 mm", spacing, tube <= 5, tube <= 9, g, 4.0, 4.0
    axis = np.array([1, 2, 3]) / 14**0.5
    away = np.linalg.norm(points - np.clip(points @ axis, -15, 15)[..., None] * axis, axis=-1)
    yield "capsules of 6 and 12 mm", spacing, away <= 6, away <= 12, g, 6.0, 6.0


def conformance():
    rows = []
    for name, spacing, a, b, grid, hd, masd in shapes():
        row = {"shape": name, "spacing_mm": spacing, "exact_hd_mm": hd, "exact_masd_mm": masd, "error_mm": {}}
        for tool in TOOLS:
            d = surface_distances(a, b, grid, convention=tool)
            error = {"hd": hausdorff_mm(d) - hd}
            if masd is not None:
                error["masd"] = masd_mm(d) - masd
            row["error_mm"][tool] = {key: round(value, 4) for key, value in error.items()}
        rows.append(row)
    return rows


def liver_pair(shape=(512, 512, 300), spacing=SPACING, size=(290, 250, 46)):
    """A smooth organ of about 1.6 litres and a prediction that differs by a few millimetres."""
    rng = np.random.default_rng(0)
    g = Grid.from_spacing(size, spacing, [-(n - 1) / 2 * s for n, s in zip(size, spacing, strict=True)])
    x, y, z = distance_to(g, (0, 0, 0))
    bumps = [ndimage.gaussian_filter(rng.normal(size=size), np.divide(w, spacing)) for w in (25, 25, 6)]
    bumps = [field / field.std() for field in bumps]
    level = np.sqrt((x / 100) ** 2 + (y / 75) ** 2 + (z / 85) ** 2) - 0.75
    reference = level + 0.09 * bumps[0] < 0.1
    prediction = level + 0.09 * bumps[0] + 0.012 * bumps[1] + 0.012 * bumps[2] < 0.11
    out = []
    for mask in (prediction, reference):
        labels = np.zeros(shape, np.uint8)
        labels[tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(shape, size, strict=True))] = mask
        out.append(labels)
    return out


def best(function, repeat):
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return round(min(times), 4)


def deepmind(a, b, spacing):
    import surface_distance as peer

    d = peer.compute_surface_distances(b, a, spacing)
    peer.compute_average_surface_distance(d)
    peer.compute_robust_hausdorff(d, 100)
    peer.compute_robust_hausdorff(d, 95)
    peer.compute_surface_dice_at_tolerance(d, 2.0)
    peer.compute_dice_coefficient(b, a)


def monai(a, b, spacing):
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    options = {"include_background": True, "spacing": spacing}
    compute_hausdorff_distance(a, b, **options)
    compute_average_surface_distance(a, b, symmetric=True, **options)
    compute_surface_dice(a, b, class_thresholds=[2.0], **options)


def segmentation(labels, names, spacing=SPACING):
    return Segmentation(freeze(labels), Grid.from_spacing(labels.shape, spacing), names)


def bytes_per_voxel(pair):
    """Peak beyond the inputs over the voxels of the box around both structures, and that number of voxels."""
    boxes = [ndimage.find_objects(one.labels.astype(np.uint8))[0] for one in pair]
    voxels = int(np.prod([max(p.stop, q.stop) - min(p.start, q.start) for p, q in zip(*boxes, strict=True)]))
    tracemalloc.start()
    evaluate(*pair)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(peak / voxels, 2), voxels


def hundred():
    """A hundred organs of different sizes on one grid, and a shifted copy."""
    rng = np.random.default_rng(1)
    labels = np.zeros((512, 512, 300), np.uint8)
    for n in range(100):
        i, j, k = n % 5, n // 5 % 5, n // 25
        r = rng.uniform(15, 38)
        half = [int(np.ceil(r / s)) for s in SPACING]
        grid = np.meshgrid(*(np.arange(-h, h + 1) * s for h, s in zip(half, SPACING, strict=True)), indexing="ij")
        c = (50 + 100 * i, 50 + 100 * j, 30 + 75 * k)
        window = tuple(slice(m - h, m + h + 1) for m, h in zip(c, half, strict=True))
        labels[window][sum(g * g for g in grid) <= r * r] = n + 1
    return np.roll(labels, (2, -1, 1), (0, 1, 2)), labels


def speed(quick):
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    a, b = liver_pair()
    pair = segmentation(a, {1: "liver"}), segmentation(b, {1: "liver"})
    evaluate(*pair)  # compiles or loads the kernels
    repeat = 2 if quick else 5
    masks = a.astype(bool), b.astype(bool)
    tensors = [torch.from_numpy(m)[None, None].float() for m in masks]
    out = {"spacing_mm": SPACING, "shape": a.shape, "liver_ml": round(float(b.sum() * 3.2 / 1000)), "seconds": {}}
    seconds = out["seconds"]
    seconds["slice3d, all metrics"] = best(lambda: evaluate(*pair), repeat)
    seconds["slice3d, all metrics, convention deepmind"] = best(lambda: evaluate(*pair, convention="deepmind"), repeat)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds["surface-distance"] = best(lambda: deepmind(*masks, SPACING), repeat)
        seconds["MONAI, Hausdorff + surface distance + surface Dice"] = best(lambda: monai(*tensors, SPACING), repeat)
    out["times_faster_than_surface_distance"] = round(seconds["surface-distance"] / seconds["slice3d, all metrics"], 2)
    out["times_faster_than_monai"] = round(
        seconds["MONAI, Hausdorff + surface distance + surface Dice"] / seconds["slice3d, all metrics"], 2
    )
    out["bytes_per_cropped_voxel_beyond_inputs"], out["cropped_voxels"] = bytes_per_voxel(pair)
    if not quick:
        even = [np.ascontiguousarray(m) for m in liver_pair((300, 300, 300), (1, 1, 1), (232, 200, 230))]
        pair = tuple(segmentation(m, {1: "liver"}, (1, 1, 1)) for m in even)
        a, b = (m.astype(bool) for m in even)
        seconds["slice3d, the same organ at 1 mm in 300×300×300"] = best(lambda: evaluate(*pair), 2)
        seconds["surface-distance, the same organ at 1 mm"] = best(lambda: deepmind(a, b, (1, 1, 1)), 1)
        out["bytes_per_cropped_voxel_at_1_mm"], _ = bytes_per_voxel(pair)
    if not quick:
        many = hundred()
        names = {n: f"organ {n}" for n in range(1, 101)}
        pairs = [segmentation(labels, names) for labels in many]
        seconds["slice3d, 100 structures in one pass"] = best(lambda: evaluate(*pairs), 1)
        whole = whole_array(*masks)
        seconds["one structure, whole array, SciPy distance maps"] = whole
        out["hundred_structures_over_one_whole_array"] = round(
            seconds["slice3d, 100 structures in one pass"] / whole, 2
        )
    return out


def whole_array(a, b):
    """What one structure costs without cropping: erosion and a Euclidean distance map of the whole array, both ways."""
    start = time.perf_counter()
    edges = [m ^ ndimage.binary_erosion(m) for m in (a, b)]
    for one, other in (edges, edges[::-1]):
        ndimage.distance_transform_edt(~other, sampling=SPACING)[one].max()
    return round(time.perf_counter() - start, 3)


def machine():
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ("numpy", "scipy", "numba", "monai", "torch", "surface-distance", "SimpleITK", "scikit-image")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "ram_gib": round(memory),
        "python": platform.python_version(),
        **versions,
    }


def render(result, page):
    """Put the tables between the page's two marks."""
    where = result["machine"]
    lines = [
        f"`python benchmarks/metrics.py --docs`, on {where['cores']} cores of an {where['cpu']} with {where['ram_gib']} GB,",
        f"Python {where['python']}, MONAI {where['monai']}, surface-distance {where['surface-distance']}, "
        f"SimpleITK {where['SimpleITK']}. Errors in mm; the largest of",
        "each group, HD / MASD where both have an exact value.",
        "",
        "| shapes | spacing, mm | " + " | ".join(TOOLS) + " |",
        "|---|---|" + "---|" * len(TOOLS),
    ]
    groups = {}
    for row in result["conformance"]:
        name = row["shape"].split(",")[0]
        name = "equal spheres, 15 mm apart" if name.startswith("equal spheres") else name
        groups.setdefault((name, tuple(row["spacing_mm"])), []).append(row["error_mm"])
    for (name, spacing), errors in groups.items():
        cells = []
        for tool in TOOLS:
            worst = [max((e[tool][key] for e in errors), key=abs) for key in ("hd", "masd") if key in errors[0][tool]]
            cells.append(" / ".join(f"{value:+.2f}" for value in worst))
        lines.append(f"| {name} | {'×'.join(f'{s:g}' for s in spacing)} | {' | '.join(cells)} |")
    speed = result.get("speed")
    if speed is None:
        return put(lines, page)
    lines += [
        "",
        f"Speed, {'×'.join(map(str, speed['shape']))} voxels of {'×'.join(f'{s:g}' for s in speed['spacing_mm'])} mm with a "
        f"structure of {speed['liver_ml']} ml, best of several runs:",
        "",
        "| | seconds |",
        "|---|---|",
        *(f"| {name} | {value:.3f} |" for name, value in speed["seconds"].items()),
        "",
        f"That is {speed['times_faster_than_surface_distance']:.1f} times faster than surface-distance and "
        f"{speed['times_faster_than_monai']:.0f} times faster than MONAI. Peak memory beyond",
        f"the inputs: {speed['bytes_per_cropped_voxel_beyond_inputs']:.1f} bytes per voxel of the cropped pair.",
    ]
    if "bytes_per_cropped_voxel_at_1_mm" in speed:
        lines[-1] += f" At 1 mm: {speed['bytes_per_cropped_voxel_at_1_mm']:.1f}."
    if "hundred_structures_over_one_whole_array" in speed:
        lines[-1] += (
            f" A hundred structures in one pass cost {speed['hundred_structures_over_one_whole_array']:.2f} times"
            " what one costs on the whole array."
        )
    put(lines, page)


def put(lines, page):
    text = page.read_text(encoding="utf-8")
    start, end = "<!-- benchmarks/metrics.py -->", "<!-- end -->"
    before, after = text.split(start)[0], text.split(end)[1]
    page.write_text(before + start + "\n" + "\n".join(lines) + "\n" + end + after, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats, no 100-structure run")
    parser.add_argument("--part", choices=("all", "speed", "conformance"), default="all")
    parser.add_argument("--docs", action="store_true", help="also write the tables of docs/metrics.md")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "metrics.json")
    options = parser.parse_args()
    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    result["machine"] = machine()
    if options.part in ("all", "conformance"):
        result["conformance"] = conformance()
    if options.part in ("all", "speed"):
        result["speed"] = speed(options.quick)
    if options.docs:
        render(result, Path(__file__).parents[1] / "docs" / "metrics.md")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
