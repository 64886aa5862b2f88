"""The total-variation prior as a weighted Laplacian; compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled_loosely

Array = NDArray[np.float32]


@compiled_loosely
def edge_weights(image: Array, scale: Array, eps: float, out: Array, first: int, last: int) -> None:
    """out = 1 / sqrt(|gradient|² + eps²) by forward differences, each multiplied by its axis' `scale`."""
    n0, n1, n2 = image.shape
    small = np.float32(eps * eps)
    for i in range(first, last):
        i1 = min(i + 1, n0 - 1)
        for j in range(n1):
            here, below, right = image[i, j], image[i1, j], image[i, min(j + 1, n1 - 1)]
            for k in range(n2):
                a = (below[k] - here[k]) * scale[0]
                b = (right[k] - here[k]) * scale[1]
                c = (here[min(k + 1, n2 - 1)] - here[k]) * scale[2]
                out[i, j, k] = np.float32(1.0) / np.sqrt(a * a + b * b + c * c + small)


@compiled_loosely
def laplacian(image: Array, weight: Array, scale: Array, out: Array, first: int, last: int) -> None:
    """out = the transpose of the gradient applied to weight · gradient: symmetric, not negative, free borders."""
    n0, n1, n2 = image.shape
    s0, s1, s2 = scale[0] * scale[0], scale[1] * scale[1], scale[2] * scale[2]
    for i in range(first, last):
        for j in range(n1):
            for k in range(n2):
                here, own = image[i, j, k], weight[i, j, k]
                total = np.float32(0.0)
                if i + 1 < n0:
                    total += s0 * own * (here - image[i + 1, j, k])
                if i > 0:
                    total += s0 * weight[i - 1, j, k] * (here - image[i - 1, j, k])
                if j + 1 < n1:
                    total += s1 * own * (here - image[i, j + 1, k])
                if j > 0:
                    total += s1 * weight[i, j - 1, k] * (here - image[i, j - 1, k])
                if k + 1 < n2:
                    total += s2 * own * (here - image[i, j, k + 1])
                if k > 0:
                    total += s2 * weight[i, j, k - 1] * (here - image[i, j, k - 1])
                out[i, j, k] = total
