"""Super-resolution against a known truth: thick slices are simulated from near-isotropic volumes and estimated again.

    python benchmarks/superres.py [--quick] [--cases NAME …] [--methods NAME …] [--protocols 4+1 …] [--minutes 4]

Slices: Gaussian profile, FWHM = thickness; `4+1` is 4 mm thick with a gap of 1 mm. Truth: the voxels of the volume
itself, at its own spacing. PSNR: 20·log10(range / RMSE) over the body mask, range = 0.1st to 99.9th percentile of the
truth in the mask. SSIM: Wang 2004, Gaussian window σ = 1.5 voxels, data range as for PSNR, mean over the mask. Body
mask: of the truth, `slice3d.superres.quality.body_mask`. False detail: see `slice3d.superres.quality.false_detail`.
Coverage: share of the mask in which the error is below twice the uncertainty. Structures: bone (above 250 HU) and
lung (below −500 HU in the body) by threshold, in the estimate against the truth. Results are merged into
benchmarks/results/superres.json by case.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np

from slice3d import io
from slice3d.grid import Grid
from slice3d.superres import SliceProfile, UpsampleSettings, slice_operator, upsample
from slice3d.superres.interpolate import BASELINES
from slice3d.superres.profile import fine_positions
from slice3d.superres.quality import body_mask, false_detail
from slice3d.volume import Volume

DATA = Path(os.environ.get("SLICE3D_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
RESULTS = Path(os.environ.get("SLICE3D_RESULTS", Path(__file__).parent / "results")) / "superres.json"
# none of them is among what the shipped weights were trained on
CASES = {
    "ct-lidc-0314": ("superres/ct-lidc-0314.nii.gz", "CT"),
    "mr-t1-cptac-gbm": ("superres/mr-t1-cptac-gbm.nii.gz", "MR"),
    "ct-s0009": ("ct-torso/labelled/s0009/ct.nii.gz", "CT"),
}
PROTOCOLS = {"4+1": (4.0, 1.0), "4+0": (4.0, 0.0), "5+1": (5.0, 1.0), "5+0": (5.0, 0.0)}
METHODS = ("linear", "bspline", "lanczos", "pretrained", "selftrain", "pretrained+selftrain")


def simulate(truth: Volume, thickness: float, gap: float) -> tuple[Volume, np.ndarray]:
    """Thick axial slices of `truth`, and the truth on the grid that `upsample` will make."""
    h, step = truth.grid.spacing_mm[2], thickness + gap
    first = int(np.ceil(step / 2 / h))
    positions = (np.arange(truth.grid.shape[2]) - first) * h
    count = int((positions[-1] - step / 2) // step) + 1
    centres = np.arange(count) * step
    profile = SliceProfile("gaussian", thickness)
    data = slice_operator(centres, positions, profile).forward(np.asarray(truth.data, dtype=np.float32))
    affine = truth.grid.affine.copy()
    affine[:3, 3] = truth.grid.to_world((0, 0, first))
    affine[:3, 2] = truth.grid.directions[:, 2] * step
    fine = fine_positions(count, step, h)
    start = first + round(fine[0] / h)
    kept = np.asarray(truth.data[..., start : start + len(fine)], dtype=np.float32)
    slices = Volume(data, Grid(data.shape, affine), truth.modality, {"SliceThickness": thickness})
    return slices, kept


def scores(
    estimate: np.ndarray, truth: np.ndarray, mask: np.ndarray, step: float, slice_step: float
) -> dict[str, float]:
    from skimage.metrics import structural_similarity

    low, high = np.percentile(truth[mask], [0.1, 99.9])
    scale = float(high - low)
    rmse = float(np.sqrt(np.mean((estimate - truth)[mask] ** 2)))
    _, local = structural_similarity(
        truth, estimate, data_range=scale, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    return {
        "psnr_db": 20 * np.log10(scale / rmse),
        "ssim": float(local[mask].mean()),
        "rmse": rmse,
        "false_detail": false_detail(estimate, truth, step, slice_step),
    }


def structures(estimate: np.ndarray, truth: np.ndarray, mask: np.ndarray, grid: Grid) -> dict[str, dict]:
    from slice3d.metrics import assd_mm, dice, surface_distances

    out = {}
    for name, chosen in (("bone", lambda x: (x > 250) & mask), ("lung", lambda x: (x < -500) & mask)):
        reference, found = chosen(truth), chosen(estimate)
        if reference.sum() > 5000 and found.any():
            out[name] = {
                "dice": float(dice(found, reference)),
                "assd_mm": float(assd_mm(surface_distances(found, reference, grid))),
            }
    return out


def run(name: str, protocol: str, methods: list[str], minutes: float, quick: bool) -> dict:
    path, modality = CASES[name]
    volume = io.load(DATA / path)
    data = np.asarray(volume.data)
    grid = volume.grid
    if quick:
        middle = [n // 2 for n in data.shape[:2]]
        start = [max(0, m - 60) for m in middle]
        stop = [min(n, m + 60) for n, m in zip(data.shape[:2], middle, strict=True)]
        data = data[start[0] : stop[0], start[1] : stop[1]]
        grid = grid.crop((*start, 0), (*stop, data.shape[2]))
    truth = Volume(data, grid, modality)
    thickness, gap = PROTOCOLS[protocol]
    slices, kept = simulate(truth, thickness, gap)
    h, step = grid.spacing_mm[2], thickness + gap
    mask = body_mask(kept, ct=modality == "CT")
    spline = slices.data @ BASELINES["bspline"](
        np.arange(slices.grid.shape[2]) * step, fine_positions(slices.grid.shape[2], step, h)
    ).T.astype(np.float32)
    base = scores(spline, kept, mask, h, step)
    rows = {"bspline without consistency": base}
    for method in methods:
        begin = time.perf_counter()
        settings = UpsampleSettings(minutes=minutes, self_check=False)
        result = upsample(slices, spacing_mm=h, method=method, settings=settings)
        seconds = time.perf_counter() - begin
        row = scores(result.data, kept, mask, h, step)
        facts = next(f.details for f in result.findings if f.code == "superres")
        error = np.abs(result.data - kept)[mask]
        row |= {
            "gain_db": row["psnr_db"] - base["psnr_db"],
            "seconds": round(seconds, 1),
            "consistency_rms": facts["consistency_rms"],
            "sharpness_ratio": facts.get("sharpness_ratio"),
            "coverage": float(np.mean(error < 2 * result.uncertainty[mask]))
            if result.uncertainty is not None
            else None,
            "training_steps": facts.get("training_steps"),
            "weights_sha256": facts.get("weights_sha256"),
        }
        if modality == "CT":
            row["structures"] = structures(result.data, kept, mask, result.grid)
        rows[method] = row
        print(
            f"{name} {protocol} {method}: {row['psnr_db']:.2f} dB, gain {row['gain_db']:+.2f}, {seconds:.0f} s",
            flush=True,
        )
    return {"shape": list(kept.shape), "spacing_mm": list(grid.spacing_mm), "quick": quick, "methods": rows}


def machine() -> dict[str, object]:
    import torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = found[0] if found else model
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one CT and one MR crop, 4+1 only, half a minute each")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=None)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--protocols", nargs="*", choices=PROTOCOLS, default=None)
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--note", default="", help="what else was running on the machine")
    arguments = parser.parse_args()
    cases = arguments.cases or (list(CASES)[:2] if arguments.quick else list(CASES))
    protocols = arguments.protocols or (["4+1"] if arguments.quick else list(PROTOCOLS))
    minutes = arguments.minutes or (0.5 if arguments.quick else 4.0)
    target = RESULTS.with_name("superres-quick.json") if arguments.quick else RESULTS
    stored = json.loads(target.read_text()) if target.is_file() else {"cases": {}}
    stored["machine"] = machine()
    for case in cases:
        for protocol in protocols:
            fresh = run(case, protocol, arguments.methods, minutes, arguments.quick)
            fresh["note"] = arguments.note
            old = stored["cases"].setdefault(case, {}).get(protocol, {"methods": {}})
            fresh["methods"] = {**old["methods"], **fresh["methods"]}
            stored["cases"][case][protocol] = fresh
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
