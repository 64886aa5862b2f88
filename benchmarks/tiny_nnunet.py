"""nnU-Net v2 results folders made here: of published sizes with random weights, or tiny and trained on phantoms.

`results_folder` writes what nnU-Net's training leaves behind; `trained_state` gives weights whose output has structure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CLIP, MEAN, STD = (-200.0, 300.0), 50.0, 100.0
PATIENTS = 4
"""Phantoms that a tiny network is trained on; half as many more for each of several folds."""

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Plan:
    """What differs between the configurations made here. Axes as nnU-Net's arrays have them: z, y, x."""

    spacing: tuple[float, float, float]
    patch: tuple[int, int, int]
    features: tuple[int, ...]
    classes: int
    kind: str = "PlainConvUNet"
    coarse_stages: int = 0  # first stages that neither look nor pool along z
    repeats: int = 2
    mirror: tuple[int, ...] | None = None
    dataset: str = "Dataset999_Benchmark"
    trainer: str = "nnUNetTrainer"


def arguments(plan: Plan) -> dict[str, Any]:
    """The network as `plans.json` describes it."""
    stages = len(plan.features)
    flat = [[1, 3, 3]] * plan.coarse_stages
    pool = [[1, 2, 2]] * plan.coarse_stages
    repeats = "n_conv_per_stage" if plan.kind == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "n_stages": stages, "features_per_stage": list(plan.features), "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": flat + [[3, 3, 3]] * (stages - plan.coarse_stages),
        "strides": ([[1, 1, 1]] + pool + [[2, 2, 2]] * stages)[:stages],
        repeats: [plan.repeats] * stages, "n_conv_per_stage_decoder": [plan.repeats] * (stages - 1), "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip


def plans_json(plan: Plan) -> dict[str, Any]:
    order = {"order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": list(plan.patch), "spacing": list(plan.spacing), "median_image_size_in_voxels": list(plan.patch),
        "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False], "batch_dice": True,
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": {**order, "is_seg": False},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**order, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**order, "is_seg": False, "order": 1},
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{plan.kind}",
            "arch_kwargs": arguments(plan), "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }  # fmt: skip
    statistics = {"mean": MEAN, "std": STD, "percentile_00_5": CLIP[0], "percentile_99_5": CLIP[1]}
    return {
        "dataset_name": plan.dataset, "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {"0": statistics},
    }  # fmt: skip


def dataset_json(plan: Plan, names: Mapping[int, str] | None = None) -> dict[str, Any]:
    labels = {names[n] if names else f"structure_{n}": n for n in range(1, plan.classes)}
    return {
        "channel_names": {"0": "CT"}, "labels": {"background": 0, **labels}, "file_ending": ".nii.gz",
        "numTraining": 1, "licence": "CC0-1.0",
    }  # fmt: skip


def results_folder(root: Path, plan: Plan, states: Sequence[Mapping[str, Any]]) -> Path:
    """`root/DATASET/TRAINER__PLANS__CONFIGURATION` with one fold per state; returns it."""
    import torch

    folder = root / plan.dataset / f"{plan.trainer}__nnUNetPlans__3d_fullres"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans_json(plan)))
    (folder / "dataset.json").write_text(json.dumps(dataset_json(plan)))
    for fold, state in enumerate(states):
        (folder / f"fold_{fold}").mkdir()
        checkpoint = {
            "network_weights": with_second_names(state), "trainer_name": plan.trainer,
            "init_args": {"configuration": "3d_fullres", "fold": fold},
            "inference_allowed_mirroring_axes": plan.mirror,
        }  # fmt: skip
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def with_second_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """nnU-Net registers every layer twice, and the encoder once more in the decoder; its checkpoints hold all."""
    out: dict[str, Any] = {}
    for key, value in state.items():
        layer = key.split(".")[-2]
        place = {"conv": "0", "norm": "1"}.get(layer)
        names = [key]
        if place and not layer.isdigit():
            names.append(key.replace(f".{layer}.", f".all_modules.{place}."))
        for name in names:
            out[name] = value
            if name.startswith("encoder."):
                out[f"decoder.{name}"] = value
    return out


def random_state(plan: Plan, seed: int = 0) -> dict[str, Any]:
    """Untrained weights of the plan's network."""
    import torch

    torch.manual_seed(seed)
    return dict(_network(plan).state_dict())


def blobby_state(plan: Plan, seed: int = 0, background: float = 0.0) -> dict[str, Any]:
    """Untrained weights with the fine skip connections cut.

    Labels still change from voxel to voxel: the most work for whoever interpolates scores, no matter for who does not.
    background: added to its score; the more, the fewer voxels are anything else.
    """
    state = random_state(plan, seed)
    for stage in range(max(1, len(plan.features) - 4), len(plan.features) - 1):
        weight = state[f"decoder.stages.{stage}.convs.0.conv.weight"]
        weight[:, weight.shape[1] // 2 :] = 0
    last = max(
        (key for key in state if ".seg_layers." in key and key.endswith(".bias")), key=lambda k: int(k.split(".")[-2])
    )
    state[last][0] += background
    return state


def trained_states(plan: Plan, *, folds: int, iterations: int, seed: int = 0) -> list[dict[str, Any]]:
    """Weights after a short training on phantoms; each fold goes on alone, on patients that the others have not seen.

    Rounded to what float16 holds, so that they are the same wherever they are stored.
    """
    import torch

    torch.manual_seed(seed)
    network = _network(plan).train()
    _train(network, [_phantom(plan, seed + n) for n in range(PATIENTS)], plan, iterations, seed)
    base = {key: value.clone() for key, value in network.state_dict().items()}
    out = []
    for fold in range(folds):
        network.load_state_dict(base)
        if folds > 1:
            own = [_phantom(plan, seed + 100 * (fold + 1) + n) for n in range(PATIENTS // 2)]
            _train(network, own, plan, iterations // 5, seed + fold)
        out.append({key: value.detach().half().float().clone() for key, value in network.state_dict().items()})
    return out


def _network(plan: Plan) -> Any:
    from slice3d.models.loading import build_network

    described = {**arguments(plan), "input_channels": 1, "num_classes": plan.classes, "deep_supervision": False}
    return build_network(f"slice3d.models.unets.{plan.kind}", described)


def _phantom(plan: Plan, seed: int) -> Pair:
    """Normalised image and labels (z, y, x) of one patient's abdomen at the plan's spacing."""
    from slice3d.grid import Grid
    from slice3d.samples import TorsoPhantom, torso

    z, y, x = plan.spacing
    shape = (int(360 / x), int(240 / y), int(330 / z))
    affine = np.diag([-x, -y, z, 1.0])
    affine[:3, 3] = (180, 50, -180)
    found = torso(TorsoPhantom.random(seed) if seed else TorsoPhantom(), seed=seed, grid=Grid(shape, affine))
    image = (np.clip(found.volume.data, *CLIP) - MEAN) / STD
    labels = np.minimum(found.segmentation.labels, plan.classes - 1)
    return image.transpose(2, 1, 0).astype(np.float32), labels.transpose(2, 1, 0).astype(np.int64)


def _train(network: Any, pairs: Sequence[Pair], plan: Plan, iterations: int, seed: int) -> None:
    """Two crops at a time, as nnU-Net does."""
    import torch

    rng = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=iterations)
    weight = torch.ones(plan.classes)
    weight[0] = weight[-1] = 0.2  # background and the rest of the body are most of the voxels
    organs = [np.argwhere((labels > 0) & (labels < plan.classes - 1)) for _, labels in pairs]
    size = [max(p // 2, min(p, 32)) for p in plan.patch]

    def crop(case: int) -> list[torch.Tensor]:
        # around a voxel of some organ: elsewhere there is little to learn
        middle = organs[case][rng.integers(len(organs[case]))] + rng.integers(-8, 9, 3)
        shape = pairs[case][0].shape
        start = [int(np.clip(m - p // 2, 0, max(0, n - p))) for m, n, p in zip(middle, shape, size, strict=True)]
        cut = tuple(slice(s, s + p) for s, p in zip(start, size, strict=True))
        return [torch.from_numpy(array[cut].copy()) for array in pairs[case]]

    for _ in range(iterations):
        crops = [crop(int(case)) for case in rng.integers(len(pairs), size=2)]
        scores = network(torch.stack([image[None] for image, _ in crops]))
        loss = torch.nn.functional.cross_entropy(scores, torch.stack([labels for _, labels in crops]), weight)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
