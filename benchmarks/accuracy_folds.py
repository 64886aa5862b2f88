"""Cross-validated packages (`mr-hippocampus`, `mr-sarcoma`) scored again from the weights that ship.

Every fold's network is in the package, so each case is segmented by the one network that never saw it. What cannot be
recomputed is the score of the average of all networks, which is what runs by default: every case is known to most of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slice3d.inference import Engine, InferenceSettings
from slice3d.io import load, load_segmentation
from slice3d.models.package import ModelPackage, read_package
from slice3d.training import crossval, hippocampus, sarcoma
from slice3d.training.dataset import Dataset

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
READERS: dict[str, Callable[[Path], Dataset]] = {"mr-hippocampus": hippocampus.read, "mr-sarcoma": sarcoma.read}
TARGETS = {"hippocampus_anterior": 0.90, "hippocampus_posterior": 0.89}
"""Published five-fold mean Dice of nnU-Net on this data set."""


def recompute(options: argparse.Namespace) -> None:
    """What `python -m benchmarks.accuracy --model NAME` does for these models."""
    run(options.model, options.data, quick=options.quick, write=options.write, pictures=options.pictures)


def run(name: str, data: Path, *, quick: bool, write: bool, pictures: Path | None) -> dict[str, Any]:
    """Score, print, store as JSON, compare with what the package's card says; optionally rewrite the page's table."""
    package = read_package(ROOT / "slice3d" / "models" / "packages" / name)
    dataset = READERS[name](data)
    folds = package.description["training"]["held_out_by_fold"]
    some = [held[:2] for held in folds] if quick else folds
    scores = crossval.score_folds(package, dataset.pairs, some, lesions=name == "mr-sarcoma")
    stored = package.description["scores"]
    apart = max(
        (
            abs(row["dice"] - stored[case][structure]["dice"])
            for case, table in scores.items()
            for structure, row in table.items()
            if structure in stored.get(case, {})
        ),
        default=float("nan"),
    )
    found = crossval.summary(scores)
    for structure, row in found.items():
        target = f", target {TARGETS[structure]:.2f}" if structure in TARGETS else ""
        print(f"{name} {structure}: Dice {row['mean']:.4f} ± {row['sd']:.4f}, {row['cases']} held-out cases{target}")
    print(f"largest difference from the Dice in the package's card: {apart:.4f}")
    results = {
        "model": package.version, "sha256": package.sha256, "summary": found, "largest_difference": apart,
        "expected_dice": calibration_error(scores, package.reliability), "scores": scores,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    target_file = RESULTS / f"accuracy-{name}{'-quick' if quick else ''}.json"
    target_file.write_text(json.dumps(results, indent=1) + "\n")
    if write and not quick:
        rows = sarcoma.case_rows(scores, folds) if name == "mr-sarcoma" else table(scores, folds)
        fill(ROOT / "docs" / "models.md", name, "\n".join(rows))
    if pictures is not None:
        draw_extremes(package, dataset, folds, scores, pictures)
    return results


def calibration_error(scores: Mapping[str, Any], reliability: Mapping[str, Any]) -> dict[str, float]:
    """Per structure: root mean square of expected minus true Dice; each structure with a line fitted to the other folds
    would differ little, with this many cases.
    """
    out = {}
    for name, line in reliability.get("structures", {}).items():
        pairs = [(t[name]["soft_dice"], t[name]["dice"]) for t in scores.values() if "soft_dice" in t.get(name, {})]
        own, true = np.array(pairs).T
        out[name] = round(float(np.sqrt(np.mean((line["intercept"] + line["slope"] * own - true) ** 2))), 4)
    return out


def table(scores: Mapping[str, Any], folds: list[list[str]]) -> list[str]:
    """Summary, then every case, as Markdown."""
    lines = ["| structure | Dice, mean ± sd | median | lowest | highest | HD95, mm | cases |", "|---|" + "---|" * 6]
    far = crossval.summary(scores, "hd95_mm")
    for name, row in crossval.summary(scores).items():
        lines.append(
            f"| {name} | {row['mean']:.3f} ± {row['sd']:.3f} | {row['median']:.3f} | {row['min']:.3f} | {row['max']:.3f} | "
            f"{far[name]['mean']:.2f} | {row['cases']} |"
        )
    return [
        *lines,
        "",
        "<details><summary>Every case</summary>",
        "",
        *crossval.case_table(scores, folds),
        "",
        "</details>",
    ]


def fill(page: Path, name: str, text: str) -> None:
    """Replace what lies between the page's markers for this model."""
    head, rest = page.read_text().split(f"<!-- {name}:begin -->")
    tail = rest.split(f"<!-- {name}:end -->")[1]
    page.write_text(f"{head}<!-- {name}:begin -->\n{text}\n<!-- {name}:end -->{tail}")


def draw_extremes(
    package: ModelPackage, dataset: Dataset, folds: list[list[str]], scores: Mapping[str, Any], folder: Path
) -> None:
    """The best and the worst case by mean Dice of the structures: three planes, reference above, prediction below."""
    means = {case: float(np.mean([row["dice"] for row in t.values()])) for case, t in scores.items()}
    pairs = {pair.name: pair for pair in dataset.pairs}
    for word, case in (("best", max(means, key=means.__getitem__)), ("worst", min(means, key=means.__getitem__))):
        fold = next(n for n, held in enumerate(folds) if case in held)
        volume = load(pairs[case].image)
        result = Engine(package, InferenceSettings(folds=(fold,))).predict(volume)
        truth = load_segmentation(pairs[case].labels, names=dict(package.labels), reference=volume)
        title = f"{case}, {word} of {len(scores)}: mean Dice {means[case]:.3f}"
        planes(
            volume.data,
            truth.labels,
            result.labels,
            volume.grid.spacing_mm,
            folder / f"{package.name}-{word}.png",
            title,
        )


COLORS = {1: (255, 120, 80), 2: (80, 200, 255)}


def planes(image: Any, truth: Any, found: Any, spacing: tuple[float, ...], path: Path, title: str) -> None:
    """One plane across each array axis through the middle of the reference."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    low, high = np.percentile(image, (0.5, 99.5))
    grey = np.clip((np.asarray(image, float) - low) / max(high - low, 1e-6), 0, 1)
    middle = np.rint(np.argwhere(truth > 0).mean(axis=0)).astype(int)
    figure = Figure(figsize=(9, 6.4), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color="white", fontsize=11)
    axes = figure.subplots(2, 3)
    for row, (what, labels) in enumerate((("reference", truth), ("prediction", found))):
        for axis in range(3):
            p, q = (n for n in range(3) if n != axis)
            flat, mask = (np.take(a, middle[axis], axis=axis).T for a in (grey, labels))
            view = np.stack([flat] * 3, -1)
            for value, color in COLORS.items():
                view[mask == value] = 0.5 * view[mask == value] + 0.5 * np.array(color) / 255
            place = axes[row, axis]
            place.imshow(view, origin="lower", aspect=spacing[q] / spacing[p], interpolation="nearest")
            place.set(xticks=[], yticks=[])
            if axis == 0:
                place.set_ylabel(what, color="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)
