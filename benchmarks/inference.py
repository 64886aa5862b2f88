"""Time, memory and agreement of the inference engine against other runners on the same weights.

    python benchmarks/inference.py --model 3mm-118 [--quick] [--peer-python PATH] [--out results.json]

Weights are random (time does not depend on values). Peers: MONAI's plain sliding window in this interpreter; with
`--peer-python`, nnU-Net's own predictor in an environment that has `nnunetv2`, on the very same checkpoint.
Each contender runs in its own process, so that peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CASES: dict[str, dict[str, Any]] = {
    # sizes of TotalSegmentator's published 3 mm and 1.5 mm configurations
    "3mm-118": {"spacing": 3.0, "classes": 118, "patch": [112, 112, 128], "features": [32, 64, 128, 256, 320]},
    "1.5mm-25": {"spacing": 1.5, "classes": 25, "patch": [128, 128, 128], "features": [32, 64, 128, 256, 320, 320]},
}


def model_folder(root: Path, case: dict[str, Any], quick: bool) -> Path:
    """An nnU-Net v2 results folder of the case's architecture with fixed random weights."""
    import torch

    from slice3d.models.loading import build_network

    features = case["features"][:3] if quick else case["features"]
    patch = [64, 64, 64] if quick else case["patch"]
    stages = len(features)
    arguments = {
        "n_stages": stages, "features_per_stage": features, "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages, "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    resampling = {"order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": patch, "spacing": [case["spacing"]] * 3, "median_image_size_in_voxels": patch,
        "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False], "batch_dice": True,
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": {**resampling, "is_seg": False},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "is_seg": False, "order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arguments, "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }  # fmt: skip
    plans = {
        "dataset_name": "Dataset999_Benchmark", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 0.0, "std": 300.0, "percentile_00_5": -1000.0, "percentile_99_5": 1000.0}
        },
    }  # fmt: skip
    labels = {"background": 0, **{f"structure_{n}": n for n in range(1, case["classes"])}}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 1}
    folder = root / "Dataset999_Benchmark" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    torch.manual_seed(0)
    described = {**arguments, "input_channels": 1, "num_classes": case["classes"], "deep_supervision": False}
    state: dict[str, Any] = {}
    for key, value in build_network("slice3d.models.unets.PlainConvUNet", described).state_dict().items():
        # the reference implementation registers every layer under two names, and the encoder twice
        kind = {"conv": "0", "norm": "1"}.get(key.split(".")[-2], "")
        names = [key]
        if ".convs." in key and kind:
            names.append(key.replace(f".{key.split('.')[-2]}.", f".all_modules.{kind}."))
        for name in names:
            state[name] = value
            if name.startswith("encoder."):
                state[f"decoder.{name}"] = value
    torch.save(
        {"network_weights": state, "init_args": {"configuration": "3d_fullres"}, "trainer_name": "nnUNetTrainer",
         "inference_allowed_mirroring_axes": None},
        folder / "fold_0" / "checkpoint_final.pth",
    )  # fmt: skip
    return folder


def study(quick: bool) -> Any:
    """A 512×512×300 CT of 0.75 × 0.75 × 1 mm: air, a body, an organ, noise. Quick: a quarter of it per axis."""
    from slice3d.grid import Grid
    from slice3d.volume import Volume, freeze

    shape = (128, 128, 75) if quick else (512, 512, 300)
    rng = np.random.default_rng(0)
    spacing = [0.75 * 512 / shape[0], 0.75 * 512 / shape[1], 300 / shape[2]]
    x, y = (np.linspace(-1, 1, n) for n in shape[:2])
    body = (x[:, None] / 0.85) ** 2 + (y[None] / 0.6) ** 2 < 1
    organ = ((x[:, None] - 0.3) / 0.35) ** 2 + (y[None] / 0.3) ** 2 < 1
    plane = np.where(organ, 110, np.where(body, 40, -1000))
    data = np.empty(shape, np.int16, order="F")
    for k in range(shape[2]):
        data[:, :, k] = plane + rng.normal(0, 15, plane.shape)
    return Volume(freeze(data), Grid.from_spacing(shape, spacing), modality="CT")


def contender(name: str, folder: Path, quick: bool, memory_gib: float | None) -> dict[str, Any]:
    """Run one contender twice in this process and report."""
    from slice3d.inference import Engine, InferenceSettings
    from slice3d.models.install import AddSettings, add

    volume = study(quick)
    if name == "slice3d":
        package = add(folder.parent.parent, settings=AddSettings(folder=folder.parent.parent / "cache", replace=True))
        settings = InferenceSettings(memory_gib=memory_gib)
        start = time.perf_counter()
        engine = Engine(package, settings)
        loaded = time.perf_counter() - start
        runs = []
        for _ in range(2):
            start = time.perf_counter()
            result = engine.predict(volume)
            runs.append({"seconds": time.perf_counter() - start, **dict(result.metadata["timings_s"])})
        about = {k: result.metadata[k] for k in ("precision", "threads", "tiles", "memory_planned_gib")}
        report: dict[str, Any] = {"load_s": loaded, "first": runs[0], "second": runs[1], **about}
    else:
        report = monai_window(folder, volume)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    return {"contender": name, "peak_gib": round(peak, 3), **report}


def monai_window(folder: Path, volume: Any) -> dict[str, Any]:
    """MONAI's sliding window with whole-volume float32 scores, resampled to the study and reduced: the usual script."""
    import torch
    from monai.inferers import sliding_window_inference
    from scipy import ndimage

    from slice3d.models.loading import build_network
    from slice3d.models.nnunet import translate, weights_of

    foreign = translate(folder, name="peer")
    network = build_network(foreign.description["network"]["class"], foreign.description["network"]["arguments"]).eval()
    network.load_state_dict(weights_of(foreign.checkpoints[0]))
    start = time.perf_counter()
    target = np.array(foreign.description["spacing_mm"])
    zoom = np.array(volume.grid.spacing_mm) / target
    image = ndimage.zoom(volume.data.astype(np.float32), zoom, order=1, mode="nearest", grid_mode=True)
    tensor = torch.from_numpy(np.clip(image, -1000, 1000) / 300)[None, None]
    with torch.inference_mode():
        scores = sliding_window_inference(tensor, foreign.description["patch_size"], 1, network, 0.5, mode="gaussian")
        labels = torch.nn.functional.interpolate(scores, volume.grid.shape, mode="trilinear").argmax(1)
    return {"seconds": time.perf_counter() - start, "classes_found": int(labels.unique().numel())}


_NNUNET = """
import json, resource, sys, time
import numpy as np, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
folder, array, spacing = sys.argv[1], np.load(sys.argv[2]), json.loads(sys.argv[3])
start = time.perf_counter()
predictor = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(folder, (0,), "checkpoint_final.pth")
loaded = time.perf_counter()
predictor.predict_single_npy_array(array[None].astype(np.float32), {"spacing": spacing}, None, None, False)
print(json.dumps({"contender": "nnunetv2", "load_s": loaded - start, "seconds": time.perf_counter() - loaded,
                  "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2}))
"""


def nnunet(python: str, folder: Path, quick: bool) -> dict[str, Any]:
    """nnU-Net's predictor in its own environment."""
    volume = study(quick)
    with tempfile.TemporaryDirectory() as scratch:
        array = Path(scratch) / "ct.npy"
        np.save(array, volume.data.transpose(2, 1, 0))
        spacing = json.dumps(list(volume.grid.spacing_mm[::-1]))
        command = [python, "-W", "ignore", "-c", _NNUNET, str(folder), str(array), spacing]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CASES, default="3mm-118")
    parser.add_argument("--quick", action="store_true", help="small study and network: does it run at all")
    parser.add_argument("--memory", type=float, help="memory budget of slice3d in GiB")
    parser.add_argument("--peer-python", help="interpreter of an environment with nnunetv2")
    parser.add_argument("--no-monai", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", nargs=2, metavar=("CONTENDER", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        name, folder = options.run
        print(json.dumps(contender(name, Path(folder), options.quick, options.memory)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(Path(scratch), CASES[options.model], options.quick)
        for name in ("slice3d", *(() if options.no_monai else ("monai",))):
            command = [sys.executable, __file__, "--run", name, str(folder)]
            command += ["--quick"] if options.quick else []
            command += ["--memory", str(options.memory)] if options.memory else []
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            rows.append(json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else
                        {"contender": name, "failed": done.stderr.strip().splitlines()[-1:]})  # fmt: skip
        if options.peer_python:
            rows.append(nnunet(options.peer_python, folder, options.quick))
    for row in rows:
        print(json.dumps(row))
    if options.out:
        options.out.write_text(json.dumps({"model": options.model, "quick": options.quick, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
