"""Values that people type: sizes of memory, lists of millimetres."""

from __future__ import annotations

import re
from typing import Literal

from slice3d.errors import InputError

OnIrregular = Literal["resample", "refuse"]

_UNITS = {"": 1.0, "GIB": 1.0, "G": 1.0, "GB": 1e9 / 2**30, "MIB": 1 / 1024, "M": 1 / 1024, "MB": 1e6 / 2**30}


def gib(text: str | None) -> float | None:
    """`8GiB`, `8`, `500MB` → GiB. Raises `InputError` for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise InputError(f"--memory is {text!r}; expected a size such as 8GiB or 500MB")
    return float(match[1]) * _UNITS[match[2].upper()]


def millimetres(text: str | None) -> tuple[float, float, float] | None:
    """`0.8,0.8,3` → three numbers. Raises `InputError` for anything else."""
    if text is None:
        return None
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--spacing is {text!r}; expected three numbers in mm, e.g. 0.8,0.8,3") from error
    return x, y, z
