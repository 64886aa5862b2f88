"""What super-resolution does to what users want: a structure segmented after it, against that of the original volume.

    python -m benchmarks.superres_structures [--protocols 4+1] [--methods tv pretrained] [--render docs/superres.md]

Thick slices are simulated from a volume with thin ones (as in `benchmarks.superres`) and segmented by a shipped model as
they are, and after each method. The reference is the same model's segmentation of the original: the figures say how much of
its own answer the model loses between the slices, not how right that answer is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.superres import PROTOCOLS, machine, simulate, truth_of
from slice3d.inference import Engine, InferenceSettings
from slice3d.metrics import assd_mm, dice, surface_distances
from slice3d.models import package
from slice3d.resample import resample_labels
from slice3d.superres import UpsampleSettings, upsample
from slice3d.volume import Segmentation, Volume

RESULTS = Path(__file__).parent / "results" / "superres-structures.json"
WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    "ct-lidc-0314": ("ct-torso", ("lung_left", "lung_right", "aorta", "bone")),
    "mr-t1-cptac-gbm": (
        "mr-brain", ("cerebral_cortex", "cerebral_white_matter", "ventricles", "cerebellum", "thalamus", "putamen", "hippocampus"),
    ),
}  # fmt: skip
"""Volume → model and structures that the model finds in it."""


def compare(found: Segmentation, reference: Segmentation, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Structure → Dice and average symmetric surface distance, on the original's grid."""
    out = {}
    for name in names:
        a, b = found.mask(name), reference.mask(name)
        if a.any() and b.any():
            out[name] = {
                "dice": round(float(dice(a, b)), 4),
                "assd_mm": round(float(assd_mm(surface_distances(a, b, reference.grid))), 3),
            }
        else:
            out[name] = {"dice": 0.0 if a.any() or b.any() else 1.0}
    return out


def run(case: str, protocol: str, methods: list[str]) -> dict[str, Any]:
    model, names = WITH[case]
    engine = Engine(package(model), InferenceSettings())
    truth = truth_of(case, quick=False)
    slices, kept = simulate(truth, *PROTOCOLS[protocol])
    original = Volume(kept, truth.grid.crop((0, 0, 0), kept.shape), truth.modality)
    reference = engine.predict(original, structures=names)
    thick = engine.predict(slices, structures=names)
    rows = {"thick slices as they are": compare(resample_labels(thick, grid=original.grid), reference, names)}
    for method in methods:
        fine = upsample(
            slices, spacing_mm=original.grid.spacing_mm[2], method=method,
            settings=UpsampleSettings(minutes=2.0, self_check=False),
        )  # fmt: skip
        rows[method] = compare(engine.predict(fine, structures=names), reference, names)
    for name, row in rows.items():
        print(f"{case} {protocol} {name}: mean Dice {mean(row, 'dice'):.3f}, {mean(row, 'assd_mm'):.2f} mm", flush=True)
    return rows


def mean(rows: dict[str, dict[str, float]], measure: str) -> float:
    return float(np.mean([row[measure] for row in rows.values() if measure in row]))


def table(cases: dict[str, Any]) -> str:
    lines = [
        "| volume, slices | segmented from | mean Dice | mean surface distance, mm | lowest Dice |",
        "|---|---|---|---|---|",
    ]
    for case, protocols in cases.items():
        for protocol, rows in protocols.items():
            for name, row in rows.items():
                worst = min(row, key=lambda n: row[n]["dice"])
                lines.append(
                    f"| {case}, {protocol} | {name} | {mean(row, 'dice'):.3f} | {mean(row, 'assd_mm'):.2f} | "
                    f"{worst} {row[worst]['dice']:.3f} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=WITH, default=list(WITH))
    parser.add_argument("--protocols", nargs="*", choices=PROTOCOLS, default=["4+1"])
    parser.add_argument("--methods", nargs="*", default=["bspline", "tv", "pretrained"])
    parser.add_argument("--render", type=Path, default=None, help="page whose table to replace")
    options = parser.parse_args()
    stored = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"cases": {}}
    stored["machine"] = machine()
    for case in options.cases:
        stored["model"] = {**stored.get("model", {}), case: package(WITH[case][0]).version}
        for protocol in options.protocols:
            stored["cases"].setdefault(case, {})[protocol] = run(case, protocol, options.methods)
            RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
    if options.render:
        head, rest = options.render.read_text().split("<!-- structures:begin -->")
        tail = rest.split("<!-- structures:end -->")[1]
        options.render.write_text(
            f"{head}<!-- structures:begin -->\n{table(stored['cases'])}\n<!-- structures:end -->{tail}"
        )


if __name__ == "__main__":
    main()
