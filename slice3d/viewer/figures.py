"""Figures for papers with matplotlib: overlay montage, Bland–Altman, Dice by structure, distances on a surface.

Each returns a `matplotlib.figure.Figure` that belongs to the caller: `figure.savefig("fig1.pdf")`.
"""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slice3d.errors import InputError
from slice3d.mesh import Mesh
from slice3d.viewer.colors import fractions, structure_color
from slice3d.viewer.planes import PlaneName, hanging, voxels_by_slice, window
from slice3d.viewer.words import in_font, title_of
from slice3d.volume import Segmentation, Volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def montage(
    volume: Volume, segmentation: Segmentation, *, plane: PlaneName = "axial", slices: int = 12, columns: int = 4
) -> Figure:
    """Slices evenly spread over the labelled part, outlines in the structures' colours, radiological convention."""
    if not segmentation.grid.matches(volume.grid):
        raise InputError("segmentation and volume lie on different grids; expected the same; resample one of them")
    if slices < 1 or columns < 1:
        raise InputError(f"montage of {slices} slices in {columns} columns; expected at least one of each")
    how = hanging(volume.grid, plane)
    names = [segmentation.names[v] for v in sorted(segmentation.names)]
    counts = voxels_by_slice(segmentation)[how.axis]
    filled = np.flatnonzero(np.sum([counts[n] for n in names], axis=0)) if names else np.array([])
    first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, volume.grid.shape[how.axis] - 1)
    chosen = np.unique(np.linspace(first, last, slices).round().astype(int))
    rows = -(-len(chosen) // columns)
    sample = how.picture(volume.data, 0)
    ratio = sample.shape[0] * how.row_mm / (sample.shape[1] * how.column_mm)
    figure = _figure(2.4 * columns, 2.4 * rows * ratio + 0.3)
    low, high = window(volume, names)
    for number, index in enumerate(chosen):
        axes = figure.add_subplot(rows, columns, number + 1)
        picture = how.picture(volume.data, int(index))
        extent = (0, picture.shape[1] * how.column_mm, picture.shape[0] * how.row_mm, 0)
        axes.imshow(picture, cmap="gray", vmin=low, vmax=high, extent=extent, aspect="equal")
        labels = how.picture(segmentation.labels, int(index))
        for name in names:
            if counts[name][index]:
                framed = np.pad(np.isin(labels, segmentation.values(name)).astype(np.float32), 1)
                x = (np.arange(framed.shape[1]) - 0.5) * how.column_mm
                y = (np.arange(framed.shape[0]) - 0.5) * how.row_mm
                axes.contour(x, y, framed, levels=[0.5], colors=[fractions(structure_color(name))], linewidths=0.9)
        axes.set_xlim(extent[0], extent[1])
        axes.set_ylim(extent[2], extent[3])
        axes.set_axis_off()
    figure.subplots_adjust(left=0.005, right=0.995, top=0.995, bottom=0.005, wspace=0.02, hspace=0.02)
    return figure


def bland_altman(measured: ArrayLike, reference: ArrayLike, *, quantity: str = "Volume", unit: str = "ml") -> Figure:
    """Differences against means with bias and 95 % limits of agreement (Bland and Altman, Lancet 1986; 327: 307).

    measured, reference: (n,) paired values, n at least 2; pairs with NaN are left out and counted in the title.
    """
    a, b = np.asarray(measured, dtype=np.float64).ravel(), np.asarray(reference, dtype=np.float64).ravel()
    if a.shape != b.shape:
        raise InputError(f"got {len(a)} measured and {len(b)} reference values; expected pairs")
    good = np.isfinite(a) & np.isfinite(b)
    if good.sum() < 2:
        raise InputError(f"got {int(good.sum())} complete pairs; expected at least 2")
    mean, difference = (a[good] + b[good]) / 2, a[good] - b[good]
    bias, spread = float(difference.mean()), float(difference.std(ddof=1))
    figure = _figure(5.2, 3.8)
    axes = figure.add_subplot()
    axes.scatter(mean, difference, s=22, color="#0b5fa5", alpha=0.8, linewidths=0)
    for value, style, label in (
        (bias, "-", "bias"), (bias + 1.96 * spread, "--", "+1.96 SD"), (bias - 1.96 * spread, "--", "-1.96 SD"),
    ):  # fmt: skip
        axes.axhline(value, color="#444444", linestyle=style, linewidth=1)
        axes.annotate(f"{label} {value:.3g}", (1.0, value), xycoords=("axes fraction", "data"), fontsize=8, ha="right",
                      va="bottom", xytext=(-3, 2), textcoords="offset points")  # fmt: skip
    axes.margins(y=0.15)
    axes.set_xlabel(f"Mean of both, {unit}")
    axes.set_ylabel(f"{quantity}, measured minus reference, {unit}")
    left_out = len(a) - int(good.sum())
    axes.set_title(
        f"n = {int(good.sum())}" + (f", {left_out} incomplete pairs left out" if left_out else ""), fontsize=9
    )
    figure.tight_layout()
    return figure


def dice_by_structure(scores: Any, *, metric: str = "dice", structure: str = "structure") -> Figure:
    """Box plot of one metric by structure with every case as a point.

    scores: pandas table with one row per case and structure; the structure names in the column or index level
    `structure` (or the unnamed index that `evaluate` returns). A missing value is counted on the axis, never dropped
    without a word.
    """
    if metric not in scores.columns:
        raise InputError(f"the table has no column {metric!r}; it has: {', '.join(map(str, scores.columns))}")
    if structure in scores.columns:
        names = scores[structure].astype(str).to_numpy()
    elif structure in scores.index.names:
        names = scores.index.get_level_values(structure).astype(str).to_numpy()
    else:
        names = scores.index.astype(str).to_numpy()
    values = scores[metric].to_numpy(dtype=np.float64)
    order = list(dict.fromkeys(names))
    groups = [values[(names == name) & np.isfinite(values)] for name in order]
    missing = [int(np.count_nonzero((names == name) & ~np.isfinite(values))) for name in order]
    figure = _figure(1.6 + 0.62 * len(order), 4.0)
    axes = figure.add_subplot()
    boxes = axes.boxplot(groups, showfliers=False, patch_artist=True, widths=0.55, medianprops={"color": "black"})
    rng = np.random.default_rng(0)
    for number, (name, group) in enumerate(zip(order, groups, strict=True), start=1):
        boxes["boxes"][number - 1].set_facecolor((*fractions(structure_color(name)), 0.55))
        axes.scatter(
            number + rng.uniform(-0.12, 0.12, len(group)), group, s=12, color="#222222", zorder=3, linewidths=0
        )
    ticks = [
        in_font(title_of(name)) + (f"\n({lost} missing)" if lost else "")
        for name, lost in zip(order, missing, strict=True)
    ]
    axes.set_xticks(range(1, len(order) + 1), ticks, rotation=35, ha="right", parse_math=False)
    axes.set_ylabel({"dice": "Dice"}.get(metric, metric))
    if metric in ("dice", "jaccard", "surface_dice"):
        axes.set_ylim(min(0.5, *(float(g.min()) for g in groups if len(g)), 1.0) - 0.02, 1.01)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    figure.tight_layout()
    return figure


def distance_map(
    mesh: Mesh, scalar: str = "distance_mm", *, limit_mm: float | None = None, label: str = "Distance to reference, mm"
) -> Figure:
    """The surface from front and back, coloured by one of its per-vertex scalars, with a colour bar in mm.

    Signed values get a diverging map around zero. limit_mm: value at the ends of the bar, by default the 95th
    percentile of the absolute values; what lies beyond is clipped and the bar says so.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    from slice3d.viewer.surfaces import draw_colored

    if scalar not in mesh.scalars:
        raise InputError(f"the mesh has no scalar {scalar!r}; it has: {', '.join(mesh.scalars) or 'none'}")
    values = np.asarray(mesh.scalars[scalar], dtype=np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise InputError(f"scalar {scalar!r} holds no finite value; expected distances in mm")
    top = limit_mm or max(float(np.percentile(np.abs(finite), 95)), 1e-6)
    signed = bool((finite < 0).any())
    scale = Normalize(-top if signed else 0.0, top)
    colors = colormaps["RdBu_r" if signed else "viridis"]
    rgb = np.asarray(colors(scale(np.nan_to_num(values))))[:, :3]
    figure = _figure(7.4, 3.6)
    for number, (title, towards) in enumerate(
        (("from the front", (0.0, 1.0, 0.1)), ("from the back", (0.0, -1.0, 0.1)))
    ):
        axes = figure.add_axes((0.01 + 0.43 * number, 0.02, 0.42, 0.88))
        axes.imshow(draw_colored(mesh, rgb, size=(460, 420), towards_viewer=towards).pixels)
        axes.set_axis_off()
        axes.set_title(title, fontsize=9)
    bar = figure.colorbar(
        ScalarMappable(scale, colors), cax=figure.add_axes((0.88, 0.12, 0.02, 0.7)),
        extend="both" if signed else "max",
    )  # fmt: skip
    bar.set_label(label, fontsize=9)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150)
    FigureCanvasAgg(figure)
    # notebooks ask for this; else they show a figure only where somebody imported pyplot, which tells them how
    vars(figure)["_repr_png_"] = partial(_png, figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def middle_picture(
    volume: Volume, segmentation: Segmentation | None = None, *, opacity: float = 0.45
) -> NDArray[np.uint8]:
    """A small grey axial picture with coloured labels, (rows, columns, 3) uint8, for notebooks."""
    how = hanging(volume.grid, "axial")
    index = volume.grid.shape[how.axis] // 2
    if segmentation is not None and segmentation.labels.any():
        across = tuple(n for n in range(3) if n != how.axis)
        index = int(np.argmax(np.count_nonzero(segmentation.labels, axis=across)))
    low, high = window(volume, segmentation.structures if segmentation else ())
    grey = np.clip((how.picture(volume.data, index).astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    picture = np.repeat(np.nan_to_num(grey)[..., None], 3, axis=2)
    if segmentation is not None:
        labels = how.picture(segmentation.labels, index)
        for value, name in segmentation.names.items():
            here = labels == value
            picture[here] = (1 - opacity) * picture[here] + opacity * np.asarray(fractions(structure_color(name)))
    rows = max(1, round(picture.shape[0] * how.row_mm / how.column_mm))
    index_rows = np.minimum((np.arange(rows) * picture.shape[0] / rows).astype(int), picture.shape[0] - 1)
    out: NDArray[np.uint8] = np.rint(picture[index_rows] * 255).astype(np.uint8)
    return out
