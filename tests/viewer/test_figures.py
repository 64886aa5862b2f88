from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from slice3d.errors import InputError
from slice3d.viewer.figures import bland_altman, dice_by_structure, distance_map, montage
from tests.viewer.study import study


def _pixels(figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def test_montage_covers_the_labelled_slices() -> None:
    volume, segmentation, _ = study()
    figure = montage(volume, segmentation, slices=6, columns=3)
    assert len(figure.axes) == 6
    assert _pixels(figure).std() > 20
    assert len(montage(volume, segmentation, plane="coronal", slices=2).axes) == 2
    with pytest.raises(InputError, match="0 slices"):
        montage(volume, segmentation, slices=0)


def test_bland_altman_shows_bias_and_limits() -> None:
    rng = np.random.default_rng(0)
    reference = rng.uniform(100, 200, 40)
    measured = reference + rng.normal(5, 2, 40)
    figure = bland_altman([*measured, np.nan], [*reference, 3.0])
    axes = figure.axes[0]
    lines = sorted(float(line.get_ydata()[0]) for line in axes.lines)
    difference = measured - reference
    bias, spread = difference.mean(), difference.std(ddof=1)
    assert lines == pytest.approx([bias - 1.96 * spread, bias, bias + 1.96 * spread])
    assert axes.get_title() == "n = 40, 1 incomplete pairs left out"
    with pytest.raises(InputError, match="expected pairs"):
        bland_altman([1, 2], [1])
    with pytest.raises(InputError, match="at least 2"):
        bland_altman([1, np.nan], [1, 2])


def test_a_notebook_shows_a_figure_without_pyplot() -> None:
    code = """
import pickle, sys
from IPython.core.formatters import DisplayFormatter
from slice3d.viewer.figures import bland_altman
figure = bland_altman([1, 2, 3], [1, 2, 4])
pictures = [DisplayFormatter().format(f)[0] for f in (figure, pickle.loads(pickle.dumps(figure)))]
print(all(p["image/png"] for p in pictures), "matplotlib.pyplot" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["True", "False"]


def test_dice_box_plot_counts_what_is_missing() -> None:
    table = pd.DataFrame(
        {"structure": ["liver", "liver", "spleen", "spleen"], "dice": [0.9, 0.95, 0.8, np.nan], "case": list("abab")}
    )
    figure = dice_by_structure(table)
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["Liver", "Spleen\n(1 missing)"]
    assert _pixels(figure).std() > 5
    by_index = table.set_index("structure")[["dice"]]
    assert len(dice_by_structure(by_index).axes[0].get_xticklabels()) == 2
    with pytest.raises(InputError, match="no column 'hd95_mm'"):
        dice_by_structure(table, metric="hd95_mm")


def test_distance_map_colours_the_surface() -> None:
    _, _, meshes = study()
    box = meshes["liver"]
    front = box.vertices[:, 1] > box.vertices[:, 1].mean()
    signed = replace(box, scalars={"distance_mm": np.where(front, 2.0, -2.0)})
    image = _pixels(distance_map(signed))
    half = image.shape[1] * 43 // 100
    first, second = image[60:-20, :half], image[60:-20, half : 2 * half]
    red, blue = (first[..., 0] > first[..., 2] + 60).sum(), (first[..., 2] > first[..., 0] + 60).sum()
    assert red > 5 * max(blue, 1)  # the front lies outside: red
    assert (second[..., 2] > second[..., 0] + 60).sum() > 5 * (second[..., 0] > second[..., 2] + 60).sum()
    with pytest.raises(InputError, match="no scalar 'distance_mm'; it has: none"):
        distance_map(box)
