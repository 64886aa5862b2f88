"""Recompute the accuracy figures of a shipped model from its weights, case by case; `ct-torso` unless `--model` says so.

    python -m benchmarks.accuracy [--model mr-brain] --data ../shared/data [--quick] [--write] [--pictures docs/pictures]

Each held-out case is segmented by the one network of the package that was never trained on it; the phantom, a stylised
study with analytic truth, by all of them. `--quick` runs the phantom at a coarser grid and
the smallest held-out case only. No real liver tumour is in the data: lesions of the kind that training puts into livers are
put into the held-out livers, with seeds of their own, and looked for. The held-out studies are also made worse in six ways
(`degraded.py`) and segmented again. `--write` stores scores and the reliability calibration in the package's model.json and
README.md; the calibration is a line through the held-out studies, as they are and made worse.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from benchmarks.degraded import variants
from slice3d.inference import Engine, InferenceSettings
from slice3d.inference.reliability import calibrate
from slice3d.metrics import dice, lesion_scores
from slice3d.models.package import ModelPackage, read_package
from slice3d.resample import apply_moves, axis_moves, undo_moves
from slice3d.training import cases, rules
from slice3d.training.card import UNTESTED, card_text
from slice3d.training.lesions import insert_lesions
from slice3d.training.structures import CONTEXT, IGNORE, LABELS, VALUES
from slice3d.volume import Segmentation, Volume

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "slice3d" / "models" / "packages" / "ct-torso"
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "models.md"
TABLES = ("scores", "lesions", "degraded")
ELSEWHERE = {
    "mr-brain": "benchmarks.accuracy_brain",
    "mr-hippocampus": "benchmarks.accuracy_folds",
    "mr-sarcoma": "benchmarks.accuracy_folds",
}
"""Models whose figures another script recomputes, with the same options."""
UNSCORED = {"spl": ("bone", "body", "liver_tumor"), "s0009": ("lung_left", "lung_right", "liver_tumor")}
"""The SPL atlas labels single vertebrae and ribs, not the skeleton of the field of view."""


def held_out(data: Path, name: str) -> tuple[Volume, np.ndarray]:
    """The study on its own grid, and its truth there: classes, 255 where nobody knows."""
    from slice3d.grid import Grid
    from slice3d.io import load

    source = cases.LABELLED[name]
    volume = load(data / source.image)
    if source.spacing_mm is not None:
        affine = volume.grid.affine.copy()
        affine[:3, :3] = volume.grid.directions * np.array(source.spacing_mm)
        volume = replace(volume, grid=Grid(volume.grid.shape, affine), source=None)
    values = np.asarray(load(data / source.labels).data).astype(np.int32)
    classes = cases.mapped(values, source.scheme)
    moves = axis_moves(volume.grid, "RAS")  # the rules tell left from right by the array's axes
    spacing = tuple(volume.grid.spacing_mm[axis] for axis in moves[0])
    ruled = undo_moves(rules.label(np.ascontiguousarray(apply_moves(volume.data, *moves)), spacing), *moves)
    truth = rules.with_body(classes, ruled)
    if name == "spl":
        truth = rules.with_lungs(truth, classes, ruled)
    return volume, truth


def phantom(quick: bool) -> tuple[Volume, np.ndarray]:
    from slice3d.samples.torso import torso

    made = torso(seed=0, spacing_mm=(4.0, 4.0, 5.0) if quick else (2.3, 2.3, 3.0))
    table = np.zeros(256, np.uint8)
    for value, name in made.segmentation.names.items():
        table[value] = VALUES[name]
    return made.volume, table[made.segmentation.labels]


def score(result: Segmentation, truth: np.ndarray, skip: tuple[str, ...]) -> dict[str, dict[str, float]]:
    known = truth != IGNORE
    out: dict[str, dict[str, float]] = {}
    measured = result.metadata.get("reliability", {})
    for name in LABELS.values():
        # a liver holds its tumour, a body everything, in the prediction as in the truth
        values = {"liver": (1, 10), "body": (*LABELS, *CONTEXT)}.get(name, (VALUES[name],))
        b = np.isin(truth, values)
        if name in skip or not b.any():
            continue
        a = result.mask(name) & known
        both = np.count_nonzero(a) + np.count_nonzero(b)
        row = {
            "dice": round(2 * np.count_nonzero(a & b) / both, 4),
            "reference_ml": round(float(np.count_nonzero(b)) * result.grid.voxel_volume_mm3 / 1000, 1),
            "volume_ml": round(float(np.count_nonzero(a)) * result.grid.voxel_volume_mm3 / 1000, 1),
        }
        own = measured.get(name, {}).get("soft_dice")
        out[name] = row | ({"soft_dice": own} if own is not None else {})
    return out


SOLID = ("liver", "spleen", "kidney_left", "kidney_right")
FAT_HU = -100.0


def past_the_edge(volume: Volume, result: Segmentation, truth: np.ndarray) -> dict[str, dict[str, float]]:
    """How much of each reference outline lies past the organ's visible edge, and what becomes of Dice without that.

    Past the edge: darker than halfway from the organ's own HU (median 3 voxels deep) to fat's. `best` is the Dice that an
    outline along the visible edge has with the reference, `dice` and `dice_within` those of the result with the reference
    and with its part within the edge.
    """
    out = {}
    for name in SOLID:
        reference = np.isin(truth, (1, 10) if name == "liver" else (VALUES[name],))
        deep = ndimage.binary_erosion(reference, iterations=3)
        if not deep.any():
            continue
        within = reference & (volume.data > (float(np.median(volume.data[deep])) + FAT_HU) / 2)
        found = result.mask(name) & (truth != IGNORE)
        out[name] = {
            "past_edge": round(float(1 - np.count_nonzero(within) / np.count_nonzero(reference)), 4),
            "best": round(dice(within, reference), 4),
            "dice": round(dice(found, reference), 4),
            "dice_within": round(dice(found, within), 4),
        }
    return out


LESION_DRAWS = 8
"""How often lesions are put into each held-out liver, one to three each time."""
LEAST_LESION_ML = 0.27
"""A ball of 4 mm radius, the least that is put; less of one is a sliver at the organ's edge or beside another lesion."""


def lesions(
    package: ModelPackage, volume: Volume, truth: np.ndarray, folds: tuple[int, ...], path: Path | None
) -> dict[str, Any]:
    """What is found of lesions put into a liver that has none, and what is called a lesion as the scan is.

    Found: the best partner overlaps by more than a tenth (IoU). path: for a picture of the largest lesion of each draw.
    """
    planes = []
    engine = Engine(package, InferenceSettings(folds=folds))
    clean = engine.predict(volume, structures=["liver_tumor"]).mask("liver_tumor")
    voxel_ml = volume.grid.voxel_volume_mm3 / 1000
    rows, invented = [], 0
    for draw in range(LESION_DRAWS):
        hu = volume.data.astype(np.float32)
        classes = (truth == VALUES["liver"]).astype(np.uint8)
        rng = np.random.default_rng([draw, 77, 1])
        insert_lesions(hu, classes, 1, VALUES["liver_tumor"], volume.grid.spacing_mm, rng)
        put = classes == VALUES["liver_tumor"]
        changed = replace(volume, data=np.rint(hu).astype(np.int16))
        found = engine.predict(changed, structures=["liver_tumor"]).mask("liver_tumor")
        scored = lesion_scores(found, put, min_iou=0.1, min_voxels=int(np.ceil(LEAST_LESION_ML / voxel_ml)))
        invented += scored.invented
        planes.append(_through_largest(changed, put, found))
        parts, count = ndimage.label(put, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel(), minlength=count + 1) * voxel_ml
        counted = [n for n in range(1, count + 1) if sizes[n] >= LEAST_LESION_ML]
        pairs = {pair[1]: pair[3] for pair in scored.matched}
        for place, number in enumerate(counted, start=1):
            offset = float(np.median((hu - volume.data)[parts == number]))
            row = {"ml": round(float(sizes[number]), 2), "hu": round(offset), "dice": round(pairs.get(place, 0.0), 3)}
            rows.append(row)
    if path is not None:
        lesion_picture(planes, path)
    return {"as_it_is_ml": round(float(np.count_nonzero(clean)) * voxel_ml, 2), "invented": invented, "put": rows}


def lesion_table(found: dict[str, dict[str, Any]]) -> str:
    """How many lesions of each size were found, and how much was called a lesion where none was put."""
    lines = ["| lesions put into | called a lesion before | found of those under 1 ml | 1 to 10 ml | above 10 ml | mean Dice of those found | invented beside them |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for case, row in found.items():
        cells = []
        for low, high in ((0, 1), (1, 10), (10, np.inf)):
            these = [r["dice"] > 0 for r in row["put"] if low <= r["ml"] < high]
            cells.append(f"{sum(these)} of {len(these)}")
        dice = [r["dice"] for r in row["put"] if r["dice"] > 0]
        mean = f"{np.mean(dice):.2f}" if dice else "–"
        lines.append(
            f"| {case} | {row['as_it_is_ml']:.1f} ml | {' | '.join(cells)} | {mean} | {row['invented']} in {LESION_DRAWS} draws |"
        )
    return "\n".join(lines)


def swapped_ml(result: Segmentation, truth: np.ndarray) -> float:
    """Millilitres of a left kidney or lung called the right one, or the other way round."""
    pairs = [
        (f"{organ}_{a}", f"{organ}_{b}")
        for organ in ("kidney", "lung")
        for a, b in (("left", "right"), ("right", "left"))
    ]
    wrong = sum(np.count_nonzero(result.mask(mine) & (truth == VALUES[other])) for mine, other in pairs)
    return round(float(wrong) * result.grid.voxel_volume_mm3 / 1000, 2)


def degraded(
    package: ModelPackage, volume: Volume, truth: np.ndarray, name: str, folds: tuple[int, ...]
) -> dict[str, Any]:
    """Scores of the study made worse in each way, and of it as it is first."""
    engine = Engine(package, InferenceSettings(folds=folds))
    rows: dict[str, Any] = {}
    for how, worse, labels in [("as it is", volume, truth), *variants(volume, truth)]:
        result = engine.predict(worse)
        scored = score(result, labels, UNSCORED[name])
        # what was not found has no expected Dice
        own = {k: row["soft_dice"] for k, row in scored.items() if "soft_dice" in row and row["volume_ml"] > 0}
        dice = {k: row["dice"] for k, row in scored.items()}
        # groups of two or four slices often end in a tie, and ties are left open
        ties = any(round(b / a) % 2 == 0 for a, b in zip(volume.grid.spacing_mm, worse.grid.spacing_mm, strict=True))
        rows[how] = {
            "dice": dice,
            "soft_dice": own,
            "swapped_ml": swapped_ml(result, labels),
            "border_spared": ties,
        }
    return rows


def degraded_table(found: dict[str, dict[str, Any]]) -> str:
    """Dice of each held-out study as it is and made worse."""
    names = [
        n
        for n in LABELS.values()
        if n != "body" and any(n in v["dice"] for rows in found.values() for v in rows.values())
    ]
    lines = ["| case | " + " | ".join(names) + " | left for right, ml |", "|---|" + "---|" * (len(names) + 1)]
    for case, rows in found.items():
        for how, row in rows.items():
            cells = [f"{row['dice'][n]:.3f}" if n in row["dice"] else "–" for n in names]
            lines.append(f"| {case}, {how} | {' | '.join(cells)} | {row['swapped_ml']:g} |")
    return "\n".join(lines)


def expected_dice(worse: dict[str, dict[str, Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    """The line from a structure's own soft Dice to Dice, and how far off it is: one line for all structures.

    Through every held-out study as it is and made worse, but where the truth was left open at borders: Dice is too good
    there. A line through all studies but one is tried on that one: rms and worst error, with how often it says 0.05 more
    than there is; what is written to the package is one more line, through all. With a single study nothing is tried.
    """
    left_out = {"body", *UNTESTED}
    pairs = {
        case: [
            (own, row["dice"][n])
            for row in rows.values()
            for n, own in row["soft_dice"].items()
            if n not in left_out and not row["border_spared"]
        ]
        for case, rows in worse.items()
    }
    tried = {}
    for case, own in pairs.items() if len(pairs) > 1 else ():
        if not own:
            continue
        line = calibrate([p for other, these in pairs.items() if other != case for p in these])
        off = np.array([np.clip(line["intercept"] + line["slope"] * x, 0, 1) - y for x, y in own])
        tried[case] = {
            "results": len(off), "rms": round(float(np.sqrt(np.mean(off**2))), 3), "worst": round(float(abs(off).max()), 3),
            "too_high_by_0.05": int(np.count_nonzero(off > 0.05)),
        }  # fmt: skip
    return calibrate([p for these in pairs.values() for p in these]), tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("ct-torso", *ELSEWHERE), default="ct-torso")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    if options.model in ELSEWHERE:
        importlib.import_module(ELSEWHERE[options.model]).recompute(options)
        return
    filled(PAGE.read_text(), dict.fromkeys(TABLES, ""))  # before minutes of work, not after
    package = read_package(PACKAGE)
    held = [
        (case, (fold,))
        for fold, left in enumerate(package.description["training"]["held_out_by_fold"])
        for case in left
    ]
    scores: dict[str, Any] = {}
    put: dict[str, Any] = {}
    worse: dict[str, Any] = {}
    outlines: dict[str, Any] = {}
    for name, folds in [*(held[:1] if options.quick else held), ("phantom", None)]:
        volume, truth = phantom(options.quick) if name == "phantom" else held_out(options.data, name)
        started = time.perf_counter()
        result = Engine(package, InferenceSettings(folds=folds)).predict(volume)
        scores[name] = score(result, truth, UNSCORED.get(name, ()))
        print(f"\n{name}: {volume!r}, {time.perf_counter() - started:.1f} s")
        for structure, row in scores[name].items():
            print(
                f"  {structure:<14} Dice {row['dice']:.3f}   {row['volume_ml']:>8.1f} of {row['reference_ml']:.1f} ml"
            )
        if folds is not None:
            path = options.pictures / f"lesions-{name}.png" if options.pictures else None
            put[name] = lesions(package, volume, truth, folds, path)
            worse[name] = degraded(package, volume, truth, name, folds)
            outlines[name] = past_the_edge(volume, result, truth)
            print(f"  reference past the visible edge: {outlines[name]}")
        if options.pictures:
            picture(volume, result, truth, options.pictures / f"accuracy-{name}.png")
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / ("accuracy-quick.json" if options.quick else "accuracy.json")
    line, tried = expected_dice(worse)
    print("expected Dice, tried on", tried)
    found = {"scores": scores, "past_the_edge": outlines, "lesions": put, "degraded": worse, "expected_dice": tried}
    target.write_text(json.dumps({"model": package.version, "sha256": package.sha256, **found}, indent=1) + "\n")
    tables = dict(zip(TABLES, (table(scores), lesion_table(put), degraded_table(worse)), strict=True))
    print("\n\n".join(tables.values()))
    if options.write and not options.quick:
        write(scores, tables, line)


def filled(page: str, tables: dict[str, str]) -> str:
    """The page with each table between its marks. Raises `ValueError` where a mark is missing."""
    for mark, lines in tables.items():
        begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"{PAGE} lacks {begin} … {end}")
        head, rest = page.split(begin)
        page = f"{head}{begin}\n{lines}\n{end}{rest.split(end)[1]}"
    return page


def write(scores: dict[str, Any], tables: dict[str, str], line: dict[str, float]) -> None:
    """Scores and calibration into the package, tables into docs/models.md."""
    page = filled(PAGE.read_text(), tables)
    description = json.loads((PACKAGE / "model.json").read_text())
    description["scores"] = scores
    description["reliability"] = {"measure": "soft_dice", "default": line, "structures": {}, "untested": UNTESTED}
    (PACKAGE / "model.json").write_text(json.dumps(description, indent=1) + "\n")
    PAGE.write_text(page)
    training = description["training"]
    held = [case for left in training["held_out_by_fold"] for case in left]
    (PACKAGE / "README.md").write_text(card_text(held, scores, training.get("begun_with")))


def table(scores: dict[str, Any]) -> str:
    """The Markdown table of docs/models.md: scores on cases that the scored network was not trained on."""
    names = [n for n in LABELS.values() if any(n in rows for rows in scores.values())]
    lines = ["| case | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for case, rows in scores.items():
        lines.append(f"| {case} | " + " | ".join(f"{rows[n]['dice']:.3f}" if n in rows else "–" for n in names) + " |")
    return "\n".join(lines)


COLORS = {1: (221, 60, 60),
          2: (157, 108, 255), 3: (255, 230, 0), 4: (0, 220, 255), 5: (80, 160, 255), 6: (80, 255, 160),
          7: (255, 200, 120), 8: (255, 0, 0), 10: (0, 255, 0)}  # fmt: skip


def picture(volume: Volume, result: Segmentation, truth: np.ndarray, path: Path) -> None:
    """Reference above, prediction below: four axial planes and one coronal, the patient's right on the left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    moves = axis_moves(volume.grid, "LPS")
    image, labels, reference = (np.asarray(apply_moves(a, *moves)) for a in (volume.data, result.labels, truth))
    spacing = np.array(volume.grid.spacing_mm)[list(moves[0])]
    figure = Figure(figsize=(12, 5), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 5)
    for row, classes in enumerate((reference, labels)):
        for column, share in enumerate((0.2, 0.4, 0.6, 0.8)):
            k = int(share * image.shape[2])
            axes[row, column].imshow(_colored(image[:, :, k].T, classes[:, :, k].T), aspect=spacing[1] / spacing[0])
        j = image.shape[1] // 2
        axes[row, 4].imshow(_colored(image[:, j].T, classes[:, j].T), aspect=spacing[2] / spacing[0], origin="lower")
    for axis in axes.ravel():
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=60)


def _through_largest(volume: Volume, put: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, ...]:
    """The axial plane with most of what was put: image, put, found, seen from below."""
    moves = axis_moves(volume.grid, "LPS")
    image, there, seen = (np.asarray(apply_moves(a, *moves)) for a in (volume.data, put, found))
    k = int(there.sum(axis=(0, 1)).argmax())
    return image[:, :, k].T, there[:, :, k].T, seen[:, :, k].T


def lesion_picture(planes: list[tuple[np.ndarray, ...]], path: Path) -> None:
    """Each draw's plane: what was put outlined in green, what was found in red."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    for axis, (image, put, found) in zip(figure.subplots(2, 4).ravel(), planes, strict=True):
        axis.imshow(image, cmap="gray", vmin=-60, vmax=220)
        for mask, color in ((put, "lime"), (found, "red")):
            if mask.any():
                axis.contour(mask, [0.5], colors=color, linewidths=0.8)
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=60)


def _colored(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    grey = np.clip((image.astype(float) + 160) / 400, 0, 1)
    out = np.stack([grey] * 3, axis=-1)
    for value, color in COLORS.items():
        mask = classes == value
        out[mask] = 0.55 * out[mask] + 0.45 * np.array(color) / 255
    return out


if __name__ == "__main__":
    main()
