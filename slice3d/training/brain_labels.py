"""The classes of `mr-brain` and how FreeSurfer's numbers map to them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PAIRED: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "cerebral_white_matter": ((2, 25), (41, 57)),
    "cerebral_cortex": ((3,), (42,)),
    "lateral_ventricle": ((4, 5, 136, 137), (43, 44, 163, 164)),
    "cerebellum": ((7, 8), (46, 47)),
    "thalamus": ((10,), (49,)),
    "caudate": ((11,), (50,)),
    "putamen": ((12,), (51,)),
    "pallidum": ((13,), (52,)),
    "hippocampus": ((17,), (53,)),
    "amygdala": ((18,), (54,)),
    "accumbens": ((26,), (58,)),
    "ventral_diencephalon": ((28,), (60,)),
}
"""Structure → FreeSurfer numbers (left, right). 25, 57: lesions; 136, 137, 163, 164: beside the
ventricles, named so by the maps' own table."""
SINGLE: dict[str, tuple[int, ...]] = {"third_ventricle": (14,), "fourth_ventricle": (15,), "brainstem": (16,)}

LABELS: dict[int, str] = {}
for _name in PAIRED:
    LABELS[len(LABELS) + 1] = f"{_name}_left"
    LABELS[len(LABELS) + 1] = f"{_name}_right"
for _name in SINGLE:
    LABELS[len(LABELS) + 1] = _name
VALUES: dict[str, int] = {name: value for value, name in LABELS.items()}

GROUPS: dict[str, tuple[int, ...]] = {
    "brain": tuple(LABELS),
    "ventricles": tuple(VALUES[n] for n in ("lateral_ventricle_left", "lateral_ventricle_right", *list(SINGLE)[:2])),
    **{name: (VALUES[f"{name}_left"], VALUES[f"{name}_right"]) for name in PAIRED},
}

KEEP_LARGEST: tuple[dict[str, Any], ...] = (
    {"independent": False},
    {"labels": [VALUES[f"{n}_{s}"] for n in list(PAIRED)[3:] for s in ("left", "right")] + [VALUES["brainstem"]]},
)
"""Of all that was found the largest piece is the head's brain; each compact structure is one piece."""

_TISSUES: dict[str, tuple[str, ...]] = {
    "white matter": ("cerebral_white_matter",), "grey matter": ("cerebral_cortex", "hippocampus", "amygdala"),
    "fluid": ("lateral_ventricle", "third_ventricle", "fourth_ventricle"), "cerebellum": ("cerebellum",),
    "thalamus": ("thalamus",), "striatum": ("caudate", "putamen", "accumbens"), "pallidum": ("pallidum",),
    "stem": ("brainstem", "ventral_diencephalon"),
}  # fmt: skip
_MIXED = {"cerebellum": 2}
TISSUES: tuple[dict[str, Any], ...] = (
    {"name": "background", "labels": [0], "components": 4},
    *(
        {
            "name": tissue,
            "labels": [v for v, n in LABELS.items() if n.removesuffix("_left").removesuffix("_right") in names],
            "components": _MIXED.get(tissue, 1),
        }
        for tissue, names in _TISSUES.items()
    ),
)
"""What looks alike in one image, whatever the sequence; the cerebellum is grey and white matter in one."""

_WHITE, _GREY, _FLUID = 1, 2, 3
_FAMILY: dict[int, tuple[int, int, float]] = {
    2: (_WHITE, _WHITE, 0), 7: (_WHITE, _WHITE, 0), 16: (_WHITE, _GREY, 0.4), 28: (_WHITE, _GREY, 0.5),
    3: (_GREY, _GREY, 0), 8: (_GREY, _GREY, 0), 10: (_GREY, _WHITE, 0.8), 11: (_GREY, _GREY, 0),
    12: (_GREY, _WHITE, 0.3), 13: (_GREY, _WHITE, 1.0), 17: (_GREY, _GREY, 0), 18: (_GREY, _GREY, 0),
    26: (_GREY, _GREY, 0), 4: (_FLUID, _FLUID, 0), 24: (_FLUID, _FLUID, 0), 14: (_FLUID, _FLUID, 0),
    15: (_FLUID, _FLUID, 0), 5: (_FLUID, _FLUID, 0), 136: (_FLUID, _GREY, 0.5), 137: (_FLUID, _GREY, 0.5),
}  # fmt: skip
"""FreeSurfer number (of the left one of a pair) → (family, family, greatest share of the second)."""


ORDERS = ((_FLUID, _GREY, _WHITE), (_FLUID, _GREY, _WHITE), (_WHITE, _GREY, _FLUID), (_FLUID, _WHITE, _GREY))
"""Families from dark to bright: as in T1 (twice), T2 and FLAIR."""


def left_of(number: int) -> int:
    """The number of the same tissue on the left."""
    return _RIGHT_TO_LEFT.get(number, number)


_RIGHT_TO_LEFT: dict[int, int] = {
    41: 2, 42: 3, 43: 4, 44: 5, 46: 7, 47: 8, 49: 10, 50: 11, 51: 12, 52: 13, 53: 17, 54: 18, 57: 25, 58: 26, 60: 28,
    62: 30, 163: 136, 164: 137,
}  # fmt: skip


def class_table(size: int = 1024) -> NDArray[Any]:
    """FreeSurfer number → class of `LABELS` (0: not to be found)."""
    table = np.zeros(size, np.uint8)
    for name, (left, right) in PAIRED.items():
        table[list(left)], table[list(right)] = VALUES[f"{name}_left"], VALUES[f"{name}_right"]
    for name, numbers in SINGLE.items():
        table[list(numbers)] = VALUES[name]
    return table


def families(tissues: dict[int, int]) -> dict[int, tuple[int, int, float]]:
    """Families by tissue number. tissues: FreeSurfer number (left) → tissue number."""
    return {tissues[number]: entry for number, entry in _FAMILY.items() if number in tissues}
