"""Draws docs/pictures/metrics-*.png: python docs/pictures/metrics.py."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

from slice3d.metrics import mask_surface

HERE = Path(__file__).parent
x, y = np.meshgrid(np.arange(24), np.arange(24), indexing="ij")
reference = ((x - 11) / 8) ** 2 + ((y - 11) / 6) ** 2 <= 1
prediction = ((x - 13) / 7.5) ** 2 + ((y - 11.5) / 7) ** 2 <= 1


def contour(mask, axes, **style):
    """Draw the contour that the metrics see, and return its points."""
    surface = mask_surface(mask[:, :, None], np.eye(3), flat_axes=(2,))
    low = surface.points[:, 2] < 0
    for face in surface.faces:
        side = [v for v in face if low[v]]
        if len(side) == 2:
            axes.plot(*surface.points[side, :2].T, **style)
    return surface.points[low, :2]


figure = Figure(figsize=(9.6, 3.4), layout="constrained")
left, middle, right = figure.subplots(1, 3)
for axes, title in zip(
    (left, middle, right), ("overlap", "surfaces and distances", "voxel borders (other tools)"), strict=True
):
    axes.set(title=title, xticks=[], yticks=[], aspect="equal", xlim=(1, 22), ylim=(2, 21))
both = prediction & reference
for mask, color in ((both, "0.45"), (prediction & ~both, "tab:orange"), (reference & ~both, "tab:blue")):
    left.scatter(*np.argwhere(mask).T, s=26, marker="s", c=color)
a = contour(prediction, middle, color="tab:orange", lw=1.8)
b = contour(reference, middle, color="tab:blue", lw=1.8)
far = np.linalg.norm(a[:, None] - b[None], axis=2).min(axis=1).argmax()
near = b[np.linalg.norm(b - a[far], axis=1).argmin()]
middle.annotate("", near, a[far], arrowprops={"arrowstyle": "<->"})
middle.text(*(a[far] + (-1, 1.6)), "d", ha="center")
for mask, color in ((prediction, "tab:orange"), (reference, "tab:blue")):
    contour(mask, right, color=color, lw=0.8)
    rim = mask & ~ndimage.binary_erosion(mask)
    right.scatter(*np.argwhere(rim).T, s=22, marker="s", c=color, alpha=0.5)
figure.savefig(HERE / "metrics-definitions.png", dpi=90)
