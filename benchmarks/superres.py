"""Super-resolution against a known truth: thick slices are simulated from near-isotropic volumes and estimated again.

    python benchmarks/superres.py [--quick] [--cases NAME …] [--methods NAME …] [--protocols 4+1 …] [--minutes 4]
    python benchmarks/superres.py --stacks [--motion] …      axial, coronal and sagittal stacks joined
    python benchmarks/superres.py --speed [--methods …]      seconds for 256×256×180 voxels from 36 slices, nothing else

Slices: Gaussian profile, FWHM = thickness; `4+1` is 4 mm thick with a gap of 1 mm. Truth: the voxels of the volume
itself, at its own spacing. PSNR: 20·log10(range / RMSE) over the body mask, range = 0.1st to 99.9th percentile of the
truth in the mask. SSIM: Wang 2004, Gaussian window σ = 1.5 voxels, data range as for PSNR, mean over the mask. Body
mask: of the truth, `slice3d.superres.quality.body_mask`. False detail: see `slice3d.superres.quality.false_detail`.
Coverage: share of the mask in which the error is below twice the uncertainty. Structures: bone (above 250 HU) and
lung (below −500 HU in the body) by threshold, in the estimate against the truth. Results are merged into
benchmarks/results/superres.json by case.

Three stacks are simulated from the same volume along its three axes; gain is over the best of the three single-stack
B-splines. With `--motion` the anatomy is, before the coronal and the sagittal stack, shifted by 2 mm in a random
direction and turned by 3° about a random axis through the centre (cubic spline), and headers do not know: rows are the
result, the motion ignored, and the true motion given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from slice3d import io
from slice3d.grid import Grid
from slice3d.superres import SliceProfile, UpsampleSettings, slice_operator, upsample
from slice3d.superres.interpolate import BASELINES
from slice3d.superres.methods import JOINING, Learning
from slice3d.superres.methods import METHODS as KNOWN
from slice3d.superres.profile import fine_positions
from slice3d.superres.quality import body_mask, false_detail
from slice3d.superres.scene import rigid
from slice3d.superres.several import by_variation, prepare
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
# Seeds of the motion of the coronal and the sagittal stack.
SEEDS = (0, 1)
# `pretrained` without its 3D network, to see what that one is worth; no method that users can name
PLANES = "pretrained, planes alone"
KNOWN[PLANES] = lambda: Learning(PLANES, shipped=True, trains=False, mends=False)
METHODS = ("linear", "bspline", "lanczos", "tv", PLANES, "pretrained", "selftrain", "pretrained+selftrain", "implicit")


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


def truth_of(name: str, quick: bool) -> Volume:
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
    return Volume(data, grid, modality)


def run(name: str, protocol: str, methods: list[str], minutes: float, quick: bool) -> dict:
    truth = truth_of(name, quick)
    grid, modality = truth.grid, truth.modality
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
            "volume_weights_sha256": facts.get("volume_weights_sha256"),
        }
        if modality == "CT":
            row["structures"] = structures(result.data, kept, mask, result.grid)
        rows[method] = row
        print(
            f"{name} {protocol} {method}: {row['psnr_db']:.2f} dB, gain {row['gain_db']:+.2f}, {seconds:.0f} s",
            flush=True,
        )
    return {"shape": list(kept.shape), "spacing_mm": list(grid.spacing_mm), "quick": quick, "methods": rows}


def stack_along(truth: Volume, axis: int, thickness: float, gap: float, pose: np.ndarray, centre: np.ndarray) -> Volume:
    """Thick slices of `truth` along one of its axes; its header does not know the pose."""
    from scipy import ndimage

    grid, step = truth.grid, thickness + gap
    h = grid.spacing_mm[axis]
    data = np.asarray(truth.data, dtype=np.float32)
    if pose.any():
        index = np.linalg.inv(grid.affine) @ rigid(pose, centre) @ grid.affine
        data = ndimage.affine_transform(
            data, index[:3, :3], offset=index[:3, 3], order=3, mode="nearest", output=np.float32
        )
    first = int(np.ceil(step / 2 / h))
    positions = (np.arange(grid.shape[axis]) - first) * h
    centres = np.arange(int((positions[-1] - step / 2) // step) + 1) * step
    operator = slice_operator(centres, positions, SliceProfile("gaussian", thickness))
    thick = np.ascontiguousarray(np.moveaxis(operator.forward(np.moveaxis(data, axis, -1)), -1, axis))
    affine = grid.affine.copy()
    affine[:3, 3] = grid.to_world(np.eye(3)[axis] * first)
    affine[:3, axis] = grid.directions[:, axis] * step
    return Volume(thick, Grid(thick.shape, affine), truth.modality, {"SliceThickness": thickness})


def random_pose(seed: int, shift_mm: float = 2.0, turn_deg: float = 3.0) -> np.ndarray:
    a, b = np.random.default_rng(seed).normal(size=(2, 3))
    return np.concatenate([np.deg2rad(turn_deg) * a / np.linalg.norm(a), shift_mm * b / np.linalg.norm(b)])


def pose_error(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_rotvec(found[:3]) * Rotation.from_rotvec(true[:3]).inv()
    return {"mm": float(np.linalg.norm(found[3:] - true[3:])), "deg": float(np.rad2deg(turn.magnitude()))}


def run_stacks(name: str, protocol: str, methods: list[str], minutes: float, quick: bool, motion: bool) -> dict:
    truth = truth_of(name, quick)
    thickness, gap = PROTOCOLS[protocol]
    axial, kept = simulate(truth, thickness, gap)
    h, step = truth.grid.spacing_mm[2], thickness + gap
    mask = body_mask(kept, ct=truth.modality == "CT")
    fine = upsample(axial, spacing_mm=h, method="linear").grid
    centre = fine.to_world((np.array(fine.shape) - 1) / 2)
    poses = [np.zeros(6), *(random_pose(seed) if motion else np.zeros(6) for seed in SEEDS)]
    stacks = [
        axial,
        *(stack_along(truth, a, thickness, gap, p, centre) for a, p in zip((1, 0), poses[1:], strict=True)),
    ]
    start = round(float(truth.grid.to_index(fine.origin_mm)[2]))
    bases = []
    for axis, pose in zip((2, 1, 0), np.zeros((3, 6)), strict=True):
        still = stack_along(truth, axis, thickness, gap, pose, centre)
        first = np.round(truth.grid.to_index(still.grid.origin_mm)[axis]) * truth.grid.spacing_mm[axis]
        positions = np.arange(truth.grid.shape[axis]) * truth.grid.spacing_mm[axis] - first
        weights = BASELINES["bspline"](np.arange(still.grid.shape[axis]) * step, positions).astype(np.float32)
        spline = np.moveaxis(np.moveaxis(still.data, axis, -1) @ weights.T, -1, axis)
        bases.append(scores(spline[..., start : start + kept.shape[2]], kept, mask, h, step))
    base = max(bases, key=lambda row: row["psnr_db"])
    label = "three stacks, moved" if motion else "three stacks"
    rows = {f"bspline without consistency, best of {label}": base}

    def add(what: str, data: np.ndarray, **more: object) -> None:
        row = scores(data, kept, mask, h, step)
        rows[f"{what}, {label}"] = {**row, "gain_db": row["psnr_db"] - base["psnr_db"], **more}
        print(f"{name} {protocol} {what}, {label}: gain {row['psnr_db'] - base['psnr_db']:+.2f}", more, flush=True)

    for method in methods:
        begin = time.perf_counter()
        result = upsample(stacks, spacing_mm=h, method=method, settings=UpsampleSettings(minutes=minutes))
        seconds = round(time.perf_counter() - begin, 1)
        facts = next(f.details for f in result.findings if f.code == "superres")
        error = np.abs(result.data - kept)[mask]
        found = [{k: row[k] for k in ("moved_mm", "turned_deg", "consistency_rms")} for row in facts["stacks"]]
        coverage = float(np.mean(error < 2 * result.uncertainty[mask]))
        more = {"structures": structures(result.data, kept, mask, result.grid)} if truth.modality == "CT" else {}
        add(method, result.data, seconds=seconds, coverage=coverage, stacks=found, **more)
    if motion:
        scene = prepare(stacks, spacing_mm=h, profile=None, settings=UpsampleSettings())
        errors = [pose_error(view.pose, pose) for view, pose in zip(scene.views[1:], poses[1:], strict=True)]
        rows[f"{methods[0]}, {label}"]["pose_errors"] = errors
        for what, given in (("tv, motion ignored", np.zeros((3, 6))), ("tv, true motion given", poses)):
            views = [replace(view, pose=pose) for view, pose in zip(scene.views, given, strict=True)]
            add(what, by_variation(replace(scene, views=views)))
        print(errors, flush=True)
    return {"shape": list(kept.shape), "spacing_mm": list(truth.grid.spacing_mm), "quick": quick, "methods": rows}


def speed(methods: list[str], minutes: float) -> dict[str, float]:
    """Method → seconds for an output of 256×256×180 voxels; 36 slices of the chest, mirrored at its border."""
    truth = truth_of("ct-lidc-0314", quick=False)
    size = [(0, max(0, n - m)) for n, m in zip((256, 256, 180), truth.grid.shape, strict=True)]
    data = np.pad(np.asarray(truth.data, dtype=np.float32), size, mode="symmetric")
    slices = slice_operator(np.arange(36) * 5.0 + 2.0, np.arange(180.0), SliceProfile("gaussian", 4.0)).forward(data)
    volume = Volume(slices, Grid.from_spacing(slices.shape, (0.78, 0.78, 5.0)), "CT", {"SliceThickness": 4.0})
    out = {}
    for method in methods:
        begin = time.perf_counter()
        fine = upsample(volume, method=method, settings=UpsampleSettings(minutes=minutes, self_check=False))
        out[method] = round(time.perf_counter() - begin, 1)
        print(method, fine.grid.shape, out[method], "s", flush=True)
    return out


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
    parser.add_argument("--stacks", action="store_true", help="join three stacks (methods: tv, implicit)")
    parser.add_argument("--motion", action="store_true", help="with --stacks: move the second and the third")
    parser.add_argument("--speed", action="store_true", help="only time the methods on one large output")
    parser.add_argument("--untimed", action="store_true", help="leave out the seconds: the machine is busy")
    parser.add_argument("--note", default="", help="what else was running on the machine")
    arguments = parser.parse_args()
    cases = arguments.cases or (list(CASES)[:2] if arguments.quick else list(CASES))
    protocols = arguments.protocols or (["4+1"] if arguments.quick else list(PROTOCOLS))
    minutes = arguments.minutes or (0.5 if arguments.quick else 4.0)
    target = RESULTS.with_name("superres-quick.json") if arguments.quick else RESULTS
    stored = json.loads(target.read_text()) if target.is_file() else {"cases": {}}
    stored["machine"] = machine()
    if arguments.speed:
        stored["seconds, 256×256×180"] = {
            **stored.get("seconds, 256×256×180", {}), **speed(arguments.methods, minutes)
        }  # fmt: skip
        target.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
        return
    for case in cases:
        for protocol in protocols:
            if arguments.stacks:
                joining = [m for m in arguments.methods if m in JOINING]
                fresh = run_stacks(case, protocol, joining, minutes, arguments.quick, arguments.motion)
            else:
                fresh = run(case, protocol, arguments.methods, minutes, arguments.quick)
            if arguments.untimed:
                fresh["methods"] = {
                    name: {k: v for k, v in row.items() if k != "seconds"} for name, row in fresh["methods"].items()
                }
            old = stored["cases"].setdefault(case, {}).get(protocol, {"methods": {}})
            fresh["note"] = arguments.note or old.get("note", "")
            fresh["methods"] = {**old["methods"], **fresh["methods"]}
            stored["cases"][case][protocol] = fresh
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
