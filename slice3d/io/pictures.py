"""A folder of PNG or TIFF slices (or one multi-page TIFF): pictures carry no geometry, so the spacing must be given."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.progress import Progress, silent
from slice3d.volume import Volume, freeze

SUFFIXES = (".png", ".tif", ".tiff")
MAX_PIXELS = 2**28


def load_pictures(path: Path, *, spacing_mm: tuple[float, float, float] | None, progress: Progress = silent) -> Volume:
    """Stack slices in natural order of their names.

    Columns are taken to run to the patient's left, rows to posterior, slices to superior, as in an axial study seen
    from the feet; the finding says that this is a convention and not a measurement.
    """
    if spacing_mm is None:
        raise InputError(
            f"{path.name} holds pictures without geometry; expected the voxel size; pass --spacing X,Y,Z in mm"
        )
    files = (
        sorted((p for p in path.iterdir() if p.suffix.lower() in SUFFIXES), key=natural) if path.is_dir() else [path]
    )
    slices: list[NDArray[Any]] = []
    for n, file in enumerate(files):
        slices.extend(_pages(file))
        progress("reading pictures", (n + 1) / len(files))
    shapes = {s.shape for s in slices}
    types = {s.dtype for s in slices}
    if len(shapes) != 1 or len(types) != 1:
        raise InputError(
            f"{path.name} holds pictures of {len(shapes)} sizes and {len(types)} types; expected one of each"
        )
    if len(slices) < 2:
        raise InputError(f"{path.name} is one picture; expected a folder of slices or a multi-page TIFF")
    stack = np.stack(slices)
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
    grid = Grid((stack.shape[2], stack.shape[1], stack.shape[0]), affine)
    finding = Finding(
        "no-orientation",
        "Pictures do not say how they lie in the patient: columns were taken to run left, rows posterior, slices "
        "superior "
        "in order of file name.",
        "warning",
        {"spacing_mm": list(spacing_mm)},
    )
    return Volume(freeze(stack.transpose(2, 1, 0)), grid, findings=(finding,))


def natural(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which `slice10` comes after `slice9`."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", path.name.lower()) if p)


def _pages(file: Path) -> list[NDArray[Any]]:
    from PIL import Image, ImageSequence

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(file) as image:
                if image.width * image.height * getattr(image, "n_frames", 1) > MAX_PIXELS * 16:
                    raise InputError(f"{file.name} has {image.width}×{image.height} pixels; expected a slice")
                pages = []
                for page in ImageSequence.Iterator(image):
                    if page.mode not in ("L", "I", "F", "1") and not page.mode.startswith("I;16"):
                        raise InputError(
                            f"{file.name} is a {page.mode} picture; expected grey values; convert it first"
                        )
                    values = np.array(page)
                    pages.append(values.astype(np.uint8) if values.dtype == np.bool_ else _narrow(values))
                return pages
    except InputError:
        raise
    except Exception as error:  # Pillow's plugins raise what their formats lead them into
        raise InputError(f"{file.name} is no readable picture ({type(error).__name__}); copy it again") from error


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    """Pillow reads 16-bit PNG as 32-bit integers in some versions."""
    if values.dtype == np.int32 and values.min() >= 0 and values.max() <= 65535:
        return values.astype(np.uint16)
    return values.astype(values.dtype.newbyteorder("="))
