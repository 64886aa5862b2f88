"""nnU-Net v2 results folders as model packages: `plans.json`, `dataset.json`, `fold_N/checkpoint_final.pth`.

What the plans say is translated once, when the model is added, into a `model.json`; running it needs no nnU-Net.
Formats and rules: nnU-Net v2 (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slice3d import anatomy
from slice3d.errors import ModelError

_SCHEMES = {
    "CTNormalization": "clip_zscore",
    "ZScoreNormalization": "zscore",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale_range",
    "RGBTo01Normalization": "rescale_rgb",
}
_RESAMPLING = {
    "resample_data_or_seg_to_shape": "nnunet",
    "resample_torch_fornnunet": "torch",
    "resample_torch_simple": "torch",
    "no_resampling_data_or_seg_to_shape": "none",
}
_NETWORKS = {
    "PlainConvUNet": "slice3d.models.unets.PlainConvUNet",
    "ResidualEncoderUNet": "slice3d.models.unets.ResidualEncoderUNet",
}
_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")


@dataclass(frozen=True)
class Foreign:
    """A foreign model translated: `description` lacks only the weights; checkpoints: one file per fold."""

    description: dict[str, Any]
    checkpoints: tuple[Path, ...]


def find(folder: Path) -> list[Path]:
    """Folders below `folder` that hold a trained nnU-Net v2 configuration."""
    return sorted(
        path.parent
        for path in folder.rglob("plans.json")
        if (path.parent / "dataset.json").is_file() and _folds(path.parent)
    )


def choose(folders: list[Path], configuration: str | None) -> Path:
    """The configuration to use: the one named, else 3d_fullres, else the only one. Raises `ModelError`."""
    by_name = {folder.name.rpartition("__")[2] or folder.name: folder for folder in folders}
    if configuration is not None:
        if configuration not in by_name:
            raise ModelError(f"no configuration {configuration!r} in this model; it has {', '.join(by_name)}")
        return by_name[configuration]
    if len(folders) == 1:
        return folders[0]
    fullres = [folder for folder in folders if folder.name.endswith("3d_fullres")]
    if len(fullres) == 1:
        return fullres[0]
    names = ", ".join(sorted(by_name))
    raise ModelError(f"the archive holds several trained models ({names}); name one with --configuration")


def translate(folder: Path, *, name: str, folds: tuple[int, ...] | None = None) -> Foreign:
    """Read a configuration's folder. Raises `ModelError` for what is missing, damaged or not supported."""
    from slice3d.models.unpickle import load_checkpoint

    plans, dataset = _json(folder / "plans.json"), _json(folder / "dataset.json")
    checkpoints = _checkpoints(folder, folds)
    first = load_checkpoint(checkpoints[0])
    if "network_weights" not in first:
        raise ModelError(f"{checkpoints[0].name} is not an nnU-Net v2 checkpoint: it has no network_weights")
    wanted = (first.get("init_args") or {}).get("configuration") or folder.name.rpartition("__")[2]
    configuration = _configuration(plans, str(wanted))
    labels, groups, regions, region_values = _labels(dataset)
    channels = [str(v) for _, v in sorted(dataset.get("channel_names", {}).items(), key=lambda item: int(item[0]))]
    if not channels:
        raise ModelError("dataset.json names no input channels; expected `channel_names`; the model folder is damaged")
    description: dict[str, Any] = {
        "format": "slice3d-model/1",
        "name": name,
        "origin": "nnunet",
        "version": str(plans.get("plans_name", "nnUNetPlans")),
        "licence": str(dataset.get("licence", dataset.get("license", "not stated"))),
        "modality": _modality(channels),
        "channels": channels,
        "labels": {str(v): n for v, n in labels.items()},
        "groups": {**_derived_groups(labels), **groups},
        "spacing_mm": [float(s) for s in configuration["spacing"]],
        "orientation": "native",
        "transpose": [int(n) for n in plans.get("transpose_forward", [0, 1, 2])],
        "patch_size": [int(n) for n in configuration["patch_size"]],
        "intensity": _intensity(configuration, plans, len(channels)),
        "network": _network(configuration, len(channels), len(regions) if regions else max(labels) + 1),
        "activation": "sigmoid" if regions else "softmax",
        "sampling": _sampling(configuration, first.get("inference_allowed_mirroring_axes")),
        "training": {
            "dataset": str(plans.get("dataset_name", "")),
            "trainer": str(first.get("trainer_name", "")),
            "configuration": str(wanted),
        },
        "scores": {},
        "reliability": {},
    }
    if regions:
        description["regions"] = regions
        description["region_values"] = region_values
    if _from_totalsegmentator(description["training"]["dataset"]):
        description["orientation"] = "SAR"  # its images are turned to RAS+ and read as (z, y, x)
    return Foreign(description, checkpoints)


def weights_of(checkpoint: Path) -> dict[str, Any]:
    """The tensors of one fold, without the second names that shared layers have."""
    from slice3d.models.unpickle import load_checkpoint, tensors_of

    state = tensors_of(load_checkpoint(checkpoint).get("network_weights"), checkpoint)
    return {key: value for key, value in state.items() if not re.search(r"^decoder\.encoder\.|\.all_modules\.", key)}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path.name} of the model cannot be read; expected nnU-Net v2's JSON; copy it again"
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path.name} of the model holds {type(found).__name__}; expected an object")
    return found


def _folds(folder: Path) -> dict[str, Path]:
    """Fold name → checkpoint, the final one where there is one."""
    out = {}
    for fold in sorted(folder.glob("fold_*")):
        present = [fold / name for name in _CHECKPOINTS if (fold / name).is_file()]
        if present:
            out[fold.name.removeprefix("fold_")] = present[0]
    return out


def _checkpoints(folder: Path, folds: tuple[int, ...] | None) -> tuple[Path, ...]:
    found = _folds(folder)
    if folds is not None:
        missing = [n for n in folds if str(n) not in found]
        if missing:
            raise ModelError(f"fold {missing[0]} is not in this model; it has fold {', '.join(found) or 'none'}")
        return tuple(found[str(n)] for n in folds)
    present = {path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir()}
    unfinished = sorted(fold for fold in present - set(found) if fold.isdecimal())
    if unfinished:
        raise ModelError(
            f"fold {unfinished[0]} is missing: its folder has no {_CHECKPOINTS[0]}; copy it, or choose others with --folds "
            f"(there is fold {', '.join(found)})"
        )
    # nnU-Net's own rule: numbered folds are an ensemble, fold_all stands alone
    numbered = [path for fold, path in found.items() if fold.isdecimal()]
    if not numbered and "all" in found:
        return (found["all"],)
    if not numbered:
        raise ModelError("the model folder has no fold_N/checkpoint_final.pth; expected at least one trained fold")
    gaps = [n for n in range(max(int(f) for f in found if f.isdecimal()) + 1) if str(n) not in found]
    if gaps and len(numbered) > 1:
        raise ModelError(
            f"fold {gaps[0]} is missing between the others ({', '.join(found)}); copy it, or choose with --folds"
        )
    return tuple(numbered)


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    known = plans.get("configurations")
    if not isinstance(known, dict) or name not in known:
        raise ModelError(f"plans.json has no configuration {name!r}; expected nnU-Net v2 plans with its configurations")
    entry = dict(known[name])
    for _ in range(len(known)):
        parent = entry.pop("inherits_from", None)
        if parent is None:
            break
        if parent not in known:
            raise ModelError(f"configuration {name!r} inherits from {parent!r}, which plans.json lacks")
        entry = {**known[parent], **entry}
    if entry.get("previous_stage"):
        raise ModelError(
            f"configuration {name!r} is the second stage of a cascade and needs the first one's result; "
            "use the 3d_fullres or 3d_lowres configuration"
        )
    for field in ("spacing", "patch_size", "normalization_schemes"):
        if not isinstance(entry.get(field), list):
            raise ModelError(f"configuration {name!r} of plans.json lacks {field!r}; the plans are damaged")
    if len(entry["patch_size"]) != 3:
        raise ModelError(f"configuration {name!r} is two-dimensional; expected a 3-D one, e.g. 3d_fullres")
    return entry


def _labels(
    dataset: Mapping[str, Any],
) -> tuple[dict[int, str], dict[str, list[int]], list[int], list[list[int]]]:
    """Label value → name, groups (regions), and for region-based models the writing order and each region's values."""
    raw = dataset.get("labels")
    if not isinstance(raw, dict) or not raw:
        raise ModelError("dataset.json has no labels; expected names with label values; the model folder is damaged")
    raw = {name: value for name, value in raw.items() if name != "ignore" and value not in (0, [0])}
    if not any(isinstance(value, list) and len(value) > 1 for value in raw.values()):
        labels = {int(v[0] if isinstance(v, list) else v): anatomy.label_name(n) for n, v in raw.items()}
        return dict(sorted(labels.items())), {}, [], []
    order = [int(v) for v in dataset.get("regions_class_order") or ()]
    values = [sorted(int(x) for x in (v if isinstance(v, list) else [v])) for v in raw.values()]
    if len(order) != len(values):
        raise ModelError(
            "dataset.json has region labels but no matching regions_class_order; the model folder is damaged"
        )
    labels, groups = {}, {}
    for (region, _), members, value in zip(raw.items(), values, order, strict=True):
        if members == [value]:
            labels[value] = anatomy.label_name(region)
        else:
            labels[value] = f"{anatomy.label_name(region)}_rest"
            groups[anatomy.label_name(region)] = members
    for value in {x for members in values for x in members} - set(labels):
        labels[value] = f"label_{value}"
    return dict(sorted(labels.items())), groups, order, values


def _derived_groups(labels: Mapping[int, str]) -> dict[str, list[int]]:
    """Organs that a model knows only in parts, under the names people use."""
    known = set(labels.values())
    out = {}
    for name, (starts, end) in _PARTS.items():
        values = [value for value, label in labels.items() if label.startswith(starts) and label.endswith(end)]
        if values and name not in known:
            out[name] = values
    return out


_BONES = ("vertebrae_", "rib_", "sacrum", "hip_left", "hip_right", "femur_", "humerus_", "scapula_", "clavicula_",
          "sternum", "skull")  # fmt: skip

# organ → how the names of its parts start and end
_PARTS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "lung_left": (("lung_upper_lobe", "lung_middle_lobe", "lung_lower_lobe"), "_left"),
    "lung_right": (("lung_upper_lobe", "lung_middle_lobe", "lung_lower_lobe"), "_right"),
    "bone": (_BONES, ""),
}


def _modality(channels: list[str]) -> list[str]:
    text = " ".join(channels).upper()
    if re.search(r"\bCT\b", text):
        return ["CT"]
    if re.search(r"\b(MRI?|T1\w*|T2\w*|FLAIR|DWI|ADC)\b", text):
        return ["MR"]
    return ["PT"] if re.search(r"\b(PET|PT)\b", text) else []


def _intensity(configuration: Mapping[str, Any], plans: Mapping[str, Any], channels: int) -> list[dict[str, Any]]:
    names = configuration["normalization_schemes"]
    masked = configuration.get("use_mask_for_norm", [False] * len(names))
    properties = plans.get("foreground_intensity_properties_per_channel", {})
    if len(names) != channels or len(masked) != channels:
        raise ModelError(f"plans.json normalises {len(names)} channels, dataset.json names {channels}")
    out: list[dict[str, Any]] = []
    for n, (scheme, mask) in enumerate(zip(names, masked, strict=True)):
        if scheme not in _SCHEMES:
            raise ModelError(f"normalisation {scheme!r} is not known; expected one of {', '.join(_SCHEMES)}")
        entry: dict[str, Any] = {"scheme": _SCHEMES[scheme]}
        if entry["scheme"] == "zscore" and mask:
            entry["scheme"] = "zscore_nonzero"
        if entry["scheme"] == "clip_zscore":
            found = properties.get(str(n), {})
            try:
                entry["clip"] = [float(found["percentile_00_5"]), float(found["percentile_99_5"])]
                entry["mean"], entry["std"] = float(found["mean"]), float(found["std"])
            except (KeyError, TypeError, ValueError) as error:
                raise ModelError(
                    f"plans.json lacks the intensity statistics of channel {n}; the plans are damaged"
                ) from error
        out.append(entry)
    return out


def _network(configuration: Mapping[str, Any], inputs: int, outputs: int) -> dict[str, Any]:
    architecture = configuration.get("architecture")
    if architecture is None:
        architecture = _old_architecture(configuration)
    path = str(architecture.get("network_class_name", ""))
    kind = path.rpartition(".")[2]
    if kind not in _NETWORKS:
        raise ModelError(f"network {kind!r} is not supported; expected {' or '.join(_NETWORKS)}")
    arguments = dict(architecture.get("arch_kwargs", {}))
    arguments.update(input_channels=inputs, num_classes=outputs, deep_supervision=False)
    return {"class": _NETWORKS[kind], "arguments": arguments}


def _old_architecture(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Plans before nnU-Net 2.3 describe the network by a few numbers (TotalSegmentator's do)."""
    try:
        kind = configuration["UNet_class_name"]
        encoder = configuration["n_conv_per_stage_encoder"]
        base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
        repeats = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
        return {
            "network_class_name": kind,
            "arch_kwargs": {
                "n_stages": len(encoder),
                "features_per_stage": [min(base * 2**n, most) for n in range(len(encoder))],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": configuration["conv_kernel_sizes"],
                "strides": configuration["pool_op_kernel_sizes"],
                repeats: encoder,
                "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
        }
    except (KeyError, TypeError) as error:
        raise ModelError(f"plans.json does not describe the network ({error}); expected nnU-Net v2 plans") from error


def _sampling(configuration: Mapping[str, Any], mirror: Any) -> dict[str, Any]:
    sampling: dict[str, Any] = {"pad": "zero", "overlap": 0.5, "crop_nonzero": True}
    for ours, theirs, default in (
        ("resampling", "resampling_fn_data", 3),
        ("scores", "resampling_fn_probabilities", 1),
    ):
        rule = configuration.get(theirs, "resample_data_or_seg_to_shape")
        if rule not in _RESAMPLING:
            raise ModelError(f"resampling {rule!r} is not known; expected one of {', '.join(_RESAMPLING)}")
        sampling[ours] = _RESAMPLING[rule]
        details = configuration.get(f"{theirs}_kwargs") or {}
        sampling[f"{ours}_order"] = int(details.get("order", default)) if sampling[ours] == "nnunet" else 1
        sampling[f"{ours}_order_coarse"] = int(details.get("order_z", 0)) if sampling[ours] == "nnunet" else 0
        sampling[f"{ours}_split"] = details.get("force_separate_z")
    sampling["mirror_axes"] = [int(axis) for axis in mirror or ()]
    return sampling


def _from_totalsegmentator(dataset: str) -> bool:
    return "TotalSegmentator" in dataset or bool(re.search(r"_(1559|1532|1139|1204|1259|248)subj", dataset))
