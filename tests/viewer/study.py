"""A tiny labelled study with surfaces, for the tests of pictures and pages."""

from __future__ import annotations

import numpy as np

from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.mesh import Mesh
from slice3d.volume import Segmentation, Volume

HOSTILE = "<script>window.hit=1</script></title><img src=x onerror=window.hit=2> \"'& $x$ \u202etxt"


def box(low: tuple[float, float, float], high: tuple[float, float, float], name: str) -> Mesh:
    """A closed box of 12 triangles, outward."""
    corner = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    faces = [(0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1),
             (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3)]  # fmt: skip
    return Mesh(np.asarray(low) + corner * (np.asarray(high) - low), np.array(faces), name)


def study() -> tuple[Volume, Segmentation, dict[str, Mesh]]:
    """CT on an anisotropic LPS grid with a liver that holds a tumour, a spleen, and a structure with a hostile name."""
    grid = Grid((40, 30, 12), np.array([[-1.5, 0, 0, 30], [0, -2, 0, 20], [0, 0, 5, -10], [0, 0, 0, 1.0]]))
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[5:15, 8:20, 3:7] = 1
    labels[8:11, 10:14, 4:6] = 4
    labels[25:35, 5:12, 6:11] = 7
    labels[22:24, 20:25, 2:5] = 9
    rng = np.random.default_rng(0)
    data = (rng.normal(-20, 10, grid.shape) + 100 * (labels > 0)).astype(np.int16)
    data[:3] = -1000
    names = {1: "liver", 4: "liver_tumor", 7: "spleen", 9: HOSTILE}
    segmentation = Segmentation(
        labels, grid, names, groups={"liver": (1, 4)},
        findings=(Finding("hostile", HOSTILE), Finding("cut", "The spleen touches the edge.", "info")),
    )  # fmt: skip
    meshes = {name: _box_of(segmentation, name) for name in ("liver", "liver_tumor", "spleen")}
    return Volume(data, grid, modality="CT"), segmentation, meshes


def _box_of(segmentation: Segmentation, name: str) -> Mesh:
    index = np.argwhere(segmentation.mask(name))
    corners = segmentation.grid.to_world(np.stack([index.min(axis=0) - 0.5, index.max(axis=0) + 0.5]))
    low, high = corners.min(axis=0), corners.max(axis=0)
    return box(tuple(low), tuple(high), name)
