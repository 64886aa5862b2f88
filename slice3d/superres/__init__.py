"""Inter-slice super-resolution that agrees with the acquired slices and marks what it synthesised."""

from __future__ import annotations

from slice3d.superres.methods import METHODS, Superres, UpsampleSettings
from slice3d.superres.profile import SliceOperator, SliceProfile, estimate_profile, slice_operator
from slice3d.superres.upsampling import upsample

__all__ = [
    "METHODS",
    "SliceOperator",
    "SliceProfile",
    "Superres",
    "UpsampleSettings",
    "estimate_profile",
    "slice_operator",
    "upsample",
]
