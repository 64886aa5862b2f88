"""Agreement with nnU-Net's own predictor on real CT; called by `benchmarks/inference.py --part parity`.

Tiny networks (plain and residual encoder, isotropic and anisotropic plans) are trained on phantoms for some minutes each, so
that their output has structure; one and five folds; the checkpoint nnU-Net's predictor reads is the one added here.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tiny_nnunet import Plan, dataset_json, plans_json, results_folder, trained_states

CLASSES = 11
ISOTROPIC: dict[str, Any] = {"spacing": (3.0, 3.0, 3.0), "patch": (48, 64, 64)}
ANISOTROPIC: dict[str, Any] = {"spacing": (5.0, 1.5, 1.5), "patch": (16, 128, 128), "coarse_stages": 1}
PLANS = {
    "plain-isotropic": Plan(**ISOTROPIC, features=(8, 16, 32), classes=CLASSES),
    "plain-anisotropic": Plan(**ANISOTROPIC, features=(8, 16, 32), classes=CLASSES, mirror=(2,)),
    "residual-isotropic": Plan(
        **ISOTROPIC, features=(8, 16, 32), classes=CLASSES, kind="ResidualEncoderUNet", repeats=1, mirror=(1,)
    ),
    "residual-anisotropic": Plan(
        **ANISOTROPIC, features=(8, 16, 32), classes=CLASSES, kind="ResidualEncoderUNet", repeats=1
    ),
}
ITERATIONS = 1200
SUMS = ("float16", "float32")
# stored with the tests: name → plan, folds
SMALL = {
    "plain-isotropic": (Plan((6.0, 6.0, 6.0), (24, 32, 32), (4, 8, 16), CLASSES), 1),
    "residual-anisotropic": (
        Plan((10.0, 3.0, 3.0), (8, 48, 48), (4, 8, 16), CLASSES, kind="ResidualEncoderUNet", repeats=1,
             coarse_stages=1, mirror=(0, 2)),
        2,
    ),
}  # fmt: skip

_PEER = """
import json, sys
import numpy as np, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
jobs = json.loads(sys.argv[1])
torch.set_num_threads(int(sys.argv[2]))
if sys.argv[3] == "float32":
    torch.half = torch.float32  # the predictor adds tiles up in this type
for job in jobs:
    predictor = nnUNetPredictor(use_mirroring=True, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(job["folder"], tuple(range(job["folds"])), "checkpoint_final.pth")
    for source, target in job["cases"]:
        image, properties = SimpleITKIO().read_images([source])
        labels = predictor.predict_single_npy_array(image, properties, None, None, False)
        np.save(target, np.asarray(labels).astype(np.uint8))
"""


def _ask(python: str, root: Path, jobs: list[dict[str, Any]], threads: int, sums: str = "float16") -> None:
    """Have nnU-Net's predictor label files. sums: number format that it adds tiles up in; float16 is its own."""
    scratch = {n: str(root) for n in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    subprocess.run(
        [python, "-W", "ignore", "-c", _PEER, json.dumps(jobs), str(threads), sums], check=True,
        env={**os.environ, **scratch}, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def cases(data: Path) -> dict[str, Path]:
    """Real CTs: an abdomen at 3 mm (30 slices), another patient's at 1.5 mm, an upper abdomen of other orientation."""
    return {
        "abdomen-3mm": data / "ct-torso/ts-example/ct_30slices.nii.gz",
        "abdomen-1.5mm": data / "ct-torso/labelled/s0009/ct.nii.gz",
        "upper-abdomen-0.9mm": data / "ct-torso/labelled/spl/ct.nii.gz",
    }


def trained_folder(root: Path, name: str, folds: int) -> Path:
    """The results folder of a plan, trained once and kept below `root`."""
    folder = root / f"{name}-{folds}"
    found = sorted(folder.glob("*/*/plans.json"))
    if found and len(list(found[0].parent.glob("fold_*/checkpoint_final.pth"))) == folds:
        return found[0].parent
    states = trained_states(PLANS[name], folds=5, iterations=ITERATIONS)
    for count in (1, 5):
        results_folder(root / f"{name}-{count}", PLANS[name], states[:count])
    return trained_folder(root, name, folds)


def run(python: str, data: Path, root: Path, threads: int, most: int) -> Iterator[dict[str, Any]]:
    """One row per model and CT (the first `most` of them), as soon as it is known.

    Agreement in float32 and bfloat16, over all voxels and over what either labels, with the predictor as it is (it adds
    tiles up in float16) and with its sums in float32.
    """
    chosen = dict(list(cases(data).items())[:most])
    for folds in (1, 5):
        folders = {name: trained_folder(root, name, folds) for name in PLANS}
        for sums in SUMS:
            jobs = []
            for name, folder in folders.items():
                targets = [[str(chosen[c]), str(_target(root, name, folds, c, sums))] for c in chosen]
                todo = [pair for pair in targets if not Path(pair[1]).exists()]
                if todo:
                    jobs.append({"folder": str(folder), "folds": folds, "cases": todo})
            if jobs:
                _ask(python, root, jobs, threads, sums)
        for name, folder in folders.items():
            for case, source in chosen.items():
                theirs = {sums: np.load(_target(root, name, folds, case, sums)) for sums in SUMS}
                yield _compare(name, folds, folder, case, source, theirs, threads)


def _target(root: Path, name: str, folds: int, case: str, sums: str) -> Path:
    return root / f"{name}-{folds}-{case}-{sums}.npy"


def _compare(
    name: str, folds: int, folder: Path, case: str, source: Path, theirs: dict[str, np.ndarray], threads: int
) -> dict[str, Any]:
    from slice3d import load
    from slice3d.inference import Engine, InferenceSettings
    from slice3d.models.install import AddSettings, add

    package = add(
        folder, settings=AddSettings(name=f"{name}-{folds}", folder=folder.parents[2] / "cache", replace=True)
    )
    own = theirs["float16"]
    volume = load(source)
    row: dict[str, Any] = {"model": name, "folds": folds, "case": case, "voxels": int(own.size)}
    row["labels_found"] = len(np.unique(own))
    row["nnunet_with_float32_sums_agreement"] = round(float((theirs["float32"] == own).mean()), 6)
    for precision in ("float32", "bfloat16"):
        settings = InferenceSettings(
            device="cpu", precision=precision, threads=threads, allow_unexpected_input=True  # type: ignore[arg-type]
        )  # fmt: skip
        ours = Engine(package, settings).predict(volume).labels.transpose(2, 1, 0)
        either = (ours > 0) | (own > 0)
        row[f"{precision}_agreement"] = round(float((ours == own).mean()), 6)
        row[f"{precision}_agreement_of_labelled"] = round(float((ours == own)[either].mean()), 6)
        row[f"{precision}_agreement_with_float32_sums"] = round(float((ours == theirs["float32"]).mean()), 6)
    return row


def write_reference(python: str, target: Path) -> None:
    """What nnU-Net's predictor makes of a small phantom, stored for the test suite: image, weights, labels."""
    import nibabel as nib

    from slice3d.grid import Grid
    from slice3d.samples import TorsoPhantom, torso

    affine = np.diag([-4.0, -3.5, 7.0, 1.0])
    affine[:3, 3] = (150, -20, -130)
    volume = torso(TorsoPhantom(), grid=Grid((72, 60, 40), affine), noise_hu=0.0).volume
    target.mkdir(exist_ok=True)
    for name, (plan, folds) in SMALL.items():
        states = trained_states(plan, folds=folds, iterations=400)
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            folder = results_folder(root, plan, states)
            nib.save(nib.Nifti1Image(volume.data, volume.grid.affine), root / "ct.nii.gz")
            labels = {}
            for sums in SUMS:
                cases = [[str(root / "ct.nii.gz"), str(root / f"{sums}.npy")]]
                _ask(python, root, [{"folder": str(folder), "folds": folds, "cases": cases}], 1, sums)
                labels[f"labels_{sums}"] = np.load(root / f"{sums}.npy").transpose(2, 1, 0).astype(np.uint8)
        weights = {f"{n}/{key}": value.half().numpy() for n, state in enumerate(states) for key, value in state.items()}
        np.savez_compressed(
            target / f"{name}.npz", image=volume.data, affine=volume.grid.affine, **labels,
            plans=json.dumps(plans_json(plan)), dataset=json.dumps(dataset_json(plan)),
            mirror=np.array(plan.mirror or (), int), **weights,
        )  # fmt: skip
        found, count = np.unique(labels["labels_float32"], return_counts=True)
        print(name, dict(zip(found.tolist(), count.tolist(), strict=True)))
