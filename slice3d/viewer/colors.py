"""Colours of structures on a screen."""

from __future__ import annotations

from zlib import crc32

from slice3d import anatomy

# Okabe & Ito's colour-blind-safe set without black, and lighter variants.
_PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (250, 200, 110), (150, 215, 250), (100, 210, 175), (245, 155, 90), (235, 175, 210),
)  # fmt: skip


def structure_color(name: str) -> tuple[int, int, int]:
    """The structure's own RGB 0…255; for unknown names one of a fixed palette, always the same for the same name."""
    if anatomy.canonical(name) in {**anatomy.STRUCTURES, **anatomy.GROUPS}:
        return anatomy.color(name)
    return _PALETTE[crc32(name.encode("utf-8")) % len(_PALETTE)]


def fractions(color: tuple[int, int, int]) -> tuple[float, float, float]:
    """RGB 0…255 as 0…1."""
    r, g, b = color
    return r / 255, g / 255, b / 255
