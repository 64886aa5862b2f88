"""Small foreign models on disk: an nnU-Net v2 results folder and a MONAI bundle, untrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

CONVOLUTION = "torch.nn.modules.conv.Conv3d"


def plans(kind: str = "PlainConvUNet", **changes: Any) -> dict[str, Any]:
    repeats = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
    configuration: dict[str, Any] = {
        "patch_size": [16, 16, 16],
        "spacing": [3.0, 3.0, 3.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [4, 8],
                "conv_op": CONVOLUTION,
                "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
                "strides": [[1, 1, 1], [2, 2, 2]],
                repeats: [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        **changes,
    }
    return {
        "dataset_name": "Dataset900_Tiny",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 0.0, "std": 200.0, "percentile_00_5": -900.0, "percentile_99_5": 400.0}
        },
    }


DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "Left Kidney": 2},
    "licence": "CC-BY-NC-4.0",
    "file_ending": ".nii.gz",
}


def nnunet_folder(
    root: Path, *, kind: str = "PlainConvUNet", folds: int = 1, dataset: dict[str, Any] | None = None, **changes: Any
) -> Path:
    """`root/Dataset900_Tiny/nnUNetTrainer__nnUNetPlans__3d_fullres` as nnU-Net v2 writes it; returns `root`."""
    from slice3d.models.loading import build_network
    from slice3d.models.nnunet import _configuration, _network

    folder = root / "Dataset900_Tiny" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    folder.mkdir(parents=True)
    described, dataset = plans(kind, **changes), dataset or DATASET
    (folder / "plans.json").write_text(json.dumps(described))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    heads = len([n for n in dataset["labels"] if n != "background"]) + (0 if "regions_class_order" in dataset else 1)
    network = _network(_configuration(described, "3d_fullres"), len(dataset["channel_names"]), heads)
    for fold in range(folds):
        torch.manual_seed(fold)
        state = build_network(network["class"], network["arguments"]).state_dict()
        checkpoint = {
            "network_weights": state,
            "optimizer_state": {"state": {}, "param_groups": []},
            "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.25)]},
            "_best_ema": np.float64(0.5),
            "init_args": {"configuration": "3d_fullres", "fold": fold, "device": torch.device("cpu")},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return root


def bundle_folder(root: Path, *, network: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A MONAI bundle as the model zoo lays it out; returns its folder."""
    from monai.networks.nets import UNet

    folder = root / "spleen_tiny"
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    definition = network or {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8],
        "strides": [2],
        "norm": "batch",
    }
    inference = {
        "imports": ["$import os"],
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "spacing": [2.0, 2.0, 3.0],
        "network_def": definition,
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
                {"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing", "mode": "bilinear"},
                {
                    "_target_": "ScaleIntensityRanged", "keys": "image",
                    "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1, "clip": True,
                },
                {"_target_": "EnsureTyped", "keys": "image"},
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 4, "overlap": 0.5},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {"_target_": "AsDiscreted", "keys": ["pred"], "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$@bundle_root + '/eval'"},
            ],
        },
        **changes,
    }  # fmt: skip
    metadata = {
        "version": "0.1.0",
        "task": "spleen",
        "network_data_format": {
            "inputs": {"image": {"num_channels": 1, "modality": "CT", "spatial_shape": [16, 16, 16]}},
            "outputs": {"pred": {"channel_def": {"0": "background", "1": "spleen"}}},
        },
    }
    (folder / "configs" / "inference.json").write_text(json.dumps(inference))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "LICENSE").write_text("Apache License\nVersion 2.0")
    torch.manual_seed(0)
    torch.save(UNet(3, 1, 2, (4, 8), (2,), norm="batch").state_dict(), folder / "models" / "model.pt")
    return folder
