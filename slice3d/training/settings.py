"""What a training run is made of: plain values, written beside the weights; a run goes on with the same ones only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from slice3d.errors import InputError

Triple = tuple[int, int, int]

AUGMENTATION = 2
"""What `AugmentSettings` mean: up to 1 crops were tilted about, and scaled along, their first axis alone."""


@dataclass(frozen=True)
class IntensitySettings:
    """`clip_zscore`: clip to `clip`, subtract `mean`, divide by `std` (HU for CT). `zscore`: each image by its own.

    `percentiles`: each image's 0.5th and 99.5th percentile become 0 and 1.
    """

    scheme: str = "clip_zscore"
    clip: tuple[float, float] = (-900.0, 600.0)
    mean: float = -50.0
    std: float = 220.0


@dataclass(frozen=True)
class AugmentSettings:
    """How strongly crops are varied: angles in degrees, scales as fractions, intensities in normalised units."""

    rotate_deg: float = 8.0
    """About each axis; less where voxels are much longer than wide."""
    turn_deg: float = 0.0
    """About the patient's long axis, where it is more than `rotate_deg`: few lie on their side, many a little."""
    scale: float = 0.15
    """Along each axis on its own."""
    deform_mm: float = 0.0
    """How far at most tissue is moved along each axis, in half of the crops, by a field that varies over 50 mm or more."""
    noise: float = 0.15
    shift: float = 0.10
    gain: float = 0.10
    blur: float = 0.8
    gamma: float = 0.2
    low_resolution: float = 0.25
    cut_field_of_view: float = 0.25
    flip_axes: tuple[int, ...] = ()
    organs: Mapping[int, float] = field(default_factory=dict)
    """Label → standard deviation of a shift of its intensity, drawn for half of the crops: another contrast phase."""
    lesions: Mapping[int, int] = field(default_factory=dict)
    """Label of an organ → label of lesions to be put into it, in crops of CT that have none."""
    lesion_share: float = 0.4
    marrow: Mapping[int, float] = field(default_factory=dict)
    """Label of bone → share of the crops of CT in which its marrow is turned to fat in patches."""


@dataclass(frozen=True)
class TrainSettings:
    """One run: network, patch, schedule and seed. Learning rate warms up, then falls as half a cosine to `lr_end`.

    context: classes behind `labels` that are learned too and not exported. deep_supervision: add auxiliary heads to a
    MONAI `UNet` or a `SubpixelUNet`; networks with their own (DynUNet) say so in `arguments`. class_weights: label →
    how often its voxels count in the cross-entropy, 1 for what is not named.
    """

    network: str
    arguments: Mapping[str, Any]
    labels: Mapping[int, str]
    patch_size: Triple
    spacing_mm: tuple[float, float, float]
    steps: int
    context: Mapping[int, str] = field(default_factory=dict)
    intensity: IntensitySettings = field(default_factory=IntensitySettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    batch_size: int = 1
    lr: float = 1.5e-3
    lr_end: float = 1e-5
    warmup: int = 50
    weight_decay: float = 1e-4
    ema: float = 0.99
    clip_gradient: float = 1.0
    deep_supervision: bool = False
    class_weights: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    validate_every: int = 200
    save_every: int = 50
    workers: int = 0
    threads: int = 2
    precision: str = "bf16-mixed"

    @property
    def classes(self) -> int:
        """How many classes are told apart while training, background included."""
        return 1 + len(self.labels) + len(self.context)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        out = asdict(self)
        out["labels"] = {str(k): v for k, v in self.labels.items()}
        out["context"] = {str(k): v for k, v in self.context.items()}
        out["class_weights"] = {str(k): v for k, v in self.class_weights.items()}
        out["augmentation"] = AUGMENTATION
        out["augment"]["lesions"] = {str(k): v for k, v in self.augment.lesions.items()}
        out["augment"]["marrow"] = {str(k): v for k, v in self.augment.marrow.items()}
        out["augment"]["organs"] = {str(k): v for k, v in self.augment.organs.items()}
        return out


def check_hounsfield(augment: AugmentSettings, intensity: IntensitySettings) -> None:
    """Raise `InputError` when something is to be drawn in Hounsfield units that this image is not in."""
    for name in ("lesions", "marrow"):
        if getattr(augment, name) and intensity.scheme != "clip_zscore":
            raise InputError(
                f"augment.{name} is set and intensities are {intensity.scheme!r}; expected Hounsfield units "
                "('clip_zscore'), in which they are drawn"
            )
