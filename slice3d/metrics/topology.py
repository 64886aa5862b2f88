"""How many pieces a structure has."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def components(mask: NDArray[Any], *, connectivity: int = 26) -> int:
    """Number of connected pieces of a binary mask: 0 for an empty one. connectivity: 6 (faces), 18 (edges), 26 (corners)."""
    from scipy import ndimage

    mask = np.asarray(mask, dtype=bool)
    if not mask.any():
        return 0
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    structure = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    return int(ndimage.label(mask[box], structure)[1])
