"""Recompute the accuracy figures of the shipped `mr-brain` from its weights: synthetic MR of held-out label maps.

    python -m benchmarks.accuracy --model mr-brain --data ../shared/data [--quick] [--write] [--pictures docs/pictures]

The images are painted by MR signal equations, with slices, noise and coil shading of their own: none of it was used in
training, whose contrasts are random. Maps are held out entirely. There is no real image with labels in the data, so
nothing here is a score on a patient. `--write` stores scores and the reliability calibration in the package.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slice3d.grid import Grid
from slice3d.inference import Engine, InferenceSettings
from slice3d.inference.reliability import calibrate
from slice3d.io import load
from slice3d.models.package import read_package
from slice3d.resample import reorient
from slice3d.samples.mr_signal import SEQUENCES, TISSUES, signal
from slice3d.training import cases
from slice3d.training.brain import FOLDER, HELD_OUT, NAMES, card_text
from slice3d.training.brain_labels import LABELS, VALUES, class_table, left_of
from slice3d.volume import Segmentation, Volume, freeze

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "slice3d" / "models" / "packages" / "mr-brain"
RESULTS = ROOT / "benchmarks" / "results"
TISSUE_OF: dict[int, str] = {
    2: "white", 7: "white", 28: "white", 25: "grey", 30: "vessel", 3: "grey", 8: "grey", 17: "grey", 18: "grey",
    10: "thalamus", 11: "striatum", 12: "striatum", 26: "striatum", 13: "pallidum", 16: "brainstem", 85: "white",
    **dict.fromkeys((4, 5, 14, 15, 24, 72), "fluid"), 136: "grey", 137: "grey", 512: "white", 506: "fluid",
    507: "fat", 511: "skin", 515: "bone", 516: "marrow", 514: "vessel", 502: "muscle", 508: "white", 509: "cartilage",
    530: "vessel",
}  # fmt: skip
"""Label of the maps (left one of a pair) → tissue."""


@dataclass(frozen=True)
class Setting:
    """One kind of test image. coarse_mm: slice distance along axis (RAS: 0 sagittal, 1 coronal, 2 axial), 0: 1 mm."""

    sequence: str
    axis: int = 2
    coarse_mm: float = 0.0
    stripped: bool = False


SETTINGS: dict[str, Setting] = {
    "T1 1 mm": Setting("t1"),
    "T2 1 mm": Setting("t2"),
    "FLAIR 1 mm": Setting("flair"),
    "T1 1 mm, skull-stripped": Setting("t1", stripped=True),
    "T1 5 mm sagittal": Setting("t1", 0, 5.0),
    "T2 6 mm axial": Setting("t2", 2, 6.0),
    "T2 8 mm coronal": Setting("t2", 1, 8.0),
}
ORDER = ("09", "19", "04", "14")
"""The held-out maps, the smallest first."""
QUICK = ("T1 1 mm", "T2 6 mm axial")
REAL = Path("superres") / "mr-t1-cptac-gbm.nii.gz"
"""A head without reference labels, to look at."""
PICTURED = ("T1 1 mm", "FLAIR 1 mm", "T2 8 mm coronal")


def made_image(data: Path, name: str, setting: Setting, *, seed: int) -> tuple[Volume, np.ndarray]:
    """A study and its truth (classes) on the study's grid, axes growing to R, A, S."""
    from scipy import ndimage

    rng = np.random.default_rng([seed, 77])
    numbers, grid = cases.read(data / FOLDER / f"training_seg_{name}.nii.gz")
    numbers = numbers.astype(np.int32)
    truth = class_table()[numbers]
    table = np.zeros(1024, np.float32)
    for number in np.unique(numbers):
        if number:
            tissue = TISSUES[TISSUE_OF[left_of(int(number))]]
            table[number] = signal(tissue, SEQUENCES[setting.sequence])
    image = table[numbers]
    # half fat, half muscle: the maps do not tell them apart
    soft = (numbers == 507) & (ndimage.gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), 4) > 0)
    image[soft] = signal(TISSUES["muscle"], SEQUENCES[setting.sequence])
    if setting.stripped:
        image[truth == 0] = 0
    image *= 1 + 0.03 * ndimage.gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), 1) * 5
    image = ndimage.gaussian_filter(image, 0.5)
    image *= _coil(image.shape, rng)
    spacing = list(grid.spacing_mm)
    if setting.coarse_mm:
        old = tuple(spacing)
        spacing[setting.axis] = setting.coarse_mm
        image = _slices(image, setting.axis, setting.coarse_mm / old[setting.axis])
        truth = cases.respaced_labels(truth, old, tuple(spacing))
    noise = 0.02 * float(np.percentile(image, 99))
    real = image + noise * rng.standard_normal(image.shape, dtype=np.float32)
    image = np.hypot(real, noise * rng.standard_normal(image.shape, dtype=np.float32))
    if setting.stripped:
        image[ndimage.binary_dilation(truth > 0) == 0] = 0
    values = np.rint(1000 * image / image.max()).astype(np.int16)
    return Volume(freeze(values), Grid(values.shape, np.diag([*spacing, 1.0])), modality="MR"), truth


def _coil(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Receive field of a surface coil: brightest at a random point of the border, quadratic fall to about a half."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij", sparse=True)
    place = rng.normal(size=3)
    place = place / np.linalg.norm(place)
    distance = sum((a - p) ** 2 for a, p in zip(axes, place, strict=True))
    out: np.ndarray = 1 / (1 + 0.2 * distance)
    return out


def _slices(image: np.ndarray, axis: int, ratio: float) -> np.ndarray:
    """Means over slabs of `ratio` voxels: a rectangular slice profile, where training used Gaussian ones."""
    n = image.shape[axis]
    count = int(np.ceil(n / ratio - 1e-3))
    edges = np.arange(count + 1) * ratio
    voxels = np.arange(n)
    share = np.clip(np.minimum(voxels[None] + 1, edges[1:, None]) - np.maximum(voxels[None], edges[:-1, None]), 0, 1)
    share = (share / share.sum(axis=1, keepdims=True)).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(np.tensordot(share, image, axes=(1, axis)), 0, axis))


def score(result: Segmentation, truth: np.ndarray) -> dict[str, dict[str, float]]:
    measured = result.metadata.get("reliability", {})
    out: dict[str, dict[str, float]] = {}
    for name, value in [*VALUES.items(), ("brain", 0)]:
        a, b = (result.labels > 0, truth > 0) if name == "brain" else (result.labels == value, truth == value)
        both = np.count_nonzero(a) + np.count_nonzero(b)
        if not b.any():
            continue
        unit = result.grid.voxel_volume_mm3 / 1000
        row = {
            "dice": round(2 * float(np.count_nonzero(a & b)) / both, 4),
            "reference_ml": round(float(np.count_nonzero(b)) * unit, 2),
            "volume_ml": round(float(np.count_nonzero(a)) * unit, 2),
        }
        own = measured.get(name, {}).get("soft_dice")
        out[name] = row | ({"soft_dice": own} if own is not None else {})
    return out


def recompute(options: argparse.Namespace) -> None:
    """Score, print, and store what the options ask for (those of `benchmarks.accuracy`)."""
    package = read_package(PACKAGE)
    engine = Engine(package)
    scores: dict[str, Any] = {}
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / ("accuracy-brain-quick.json" if options.quick else "accuracy-brain.json")
    for name in ORDER[:1] if options.quick else ORDER:
        for number, (label, setting) in enumerate(SETTINGS.items()):
            if options.quick and label not in QUICK:
                continue
            volume, truth = made_image(options.data, name, setting, seed=100 * int(name) + number)
            started = time.perf_counter()
            result = engine.predict(volume, settings=InferenceSettings())
            case = f"{name} {label}"
            scores[case] = score(result, truth)
            document = {"model": package.version, "sha256": package.sha256, "scores": scores}
            target.write_text(json.dumps(document, indent=1) + "\n")
            print(f"{case:<28} mean Dice {mean(scores[case]):.3f}, {time.perf_counter() - started:.1f} s", flush=True)
            if options.pictures and (options.quick or label in PICTURED):
                slug = case.replace(",", "").replace(" ", "-").lower()
                picture(volume, result, truth, options.pictures / f"mr-brain-{slug}.png")
    if options.pictures:
        real = reorient(load(options.data / REAL))
        picture(real, engine.predict(real), None, options.pictures / "mr-brain-real.png")
    print(table(scores))
    if options.write and not options.quick:
        write(scores)


def mean(rows: dict[str, dict[str, float]]) -> float:
    """Mean Dice over the structures, whole brain left out."""
    return float(np.mean([row["dice"] for name, row in rows.items() if name != "brain"]))


def write(scores: dict[str, Any]) -> None:
    """Scores and calibration into the package, the table into docs/models.md."""
    description = json.loads((PACKAGE / "model.json").read_text())
    names = [*LABELS.values()]
    pairs = {
        n: [(r[n]["soft_dice"], r[n]["dice"]) for r in scores.values() if n in r and "soft_dice" in r[n]] for n in names
    }
    description["scores"] = scores
    description["reliability"] = {
        "measure": "soft_dice",
        "images": "synthetic, of held-out label maps",
        "default": calibrate([p for n in names for p in pairs[n]]),
        "structures": {n: calibrate(pairs[n]) for n in names if len(pairs[n]) >= 10},
    }
    (PACKAGE / "model.json").write_text(json.dumps(description, indent=1) + "\n")
    page = ROOT / "docs" / "models.md"
    head, rest = page.read_text().split("<!-- brain-scores:begin -->")
    tail = rest.split("<!-- brain-scores:end -->")[1]
    page.write_text(f"{head}<!-- brain-scores:begin -->\n{table(scores)}\n<!-- brain-scores:end -->{tail}")
    training = [n for n in NAMES if n not in HELD_OUT]
    (PACKAGE / "README.md").write_text(card_text(training, HELD_OUT, scores))


COLUMNS = ("cerebral_white_matter", "cerebral_cortex", "lateral_ventricle", "cerebellum", "thalamus", "caudate",
           "putamen", "pallidum", "hippocampus", "amygdala", "accumbens", "ventral_diencephalon")  # fmt: skip
SINGLE = ("third_ventricle", "fourth_ventricle", "brainstem", "brain")


def table(scores: dict[str, Any]) -> str:
    """Markdown: a row per image; left and right of a pair averaged (both are in the package's model.json)."""
    heads = [*COLUMNS, *SINGLE]
    lines = ["| map, image | mean | " + " | ".join(h.replace("_", " ") for h in heads) + " |"]
    lines.append("|---|" + "---|" * (len(heads) + 1))
    for case, rows in scores.items():
        cells = []
        for head in heads:
            found = [rows[n]["dice"] for n in (head, f"{head}_left", f"{head}_right") if n in rows]
            cells.append(f"{np.mean(found):.2f}" if found else "–")
        lines.append(f"| {case} | {mean(rows):.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(volume: Volume, result: Segmentation, truth: np.ndarray | None, path: Path) -> None:
    """Image, reference (if any) and prediction in an axial, a coronal and a sagittal plane through the thalami."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image, spacing = np.asarray(volume.data, float), volume.grid.spacing_mm
    grey = np.clip(image / max(1e-6, np.percentile(image, 99.5)), 0, 1)
    centre = [
        int(np.median(w)) for w in np.nonzero(np.isin(result.labels if truth is None else truth, (9, 10, 17, 18)))
    ]
    centre[0] -= round(12 / spacing[0])
    colors = np.random.default_rng(4).uniform(0.15, 1, (len(LABELS) + 1, 3))
    layers = [None, result.labels] if truth is None else [None, truth, result.labels]
    figure = Figure(figsize=(9, 3 * len(layers)), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(layers), 3)
    for row, classes in enumerate(layers):
        for column, axis in enumerate((2, 1, 0)):
            plane = np.take(grey, centre[axis], axis=axis).T
            rgb = np.stack([plane] * 3, axis=-1)
            if classes is not None:
                cut = np.take(classes, centre[axis], axis=axis).T
                rgb = np.where((cut > 0)[..., None], 0.45 * rgb + 0.55 * colors[cut], rgb)
            a, b = (n for n in range(3) if n != axis)
            axes[row, column].imshow(rgb, origin="lower", aspect=spacing[b] / spacing[a])
    for axis in axes.ravel():
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=55)
