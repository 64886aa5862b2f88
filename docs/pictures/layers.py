"""Draws docs/pictures/layers.svg from the import rule that tests/test_layers.py enforces: python docs/pictures/layers.py.

A part lies above everything it may import; an arrow is left out where another path says the same.
"""

import sys
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.test_layers import ALLOWED, TOP, VALUES  # noqa: E402

WORDS = {
    "values": "errors · findings · progress · grid\nanatomy · volume · mesh",
    "resample": "resample\nGrid → Grid",
    "io": "io\nevery foreign format",
    "surface": "surface\nmeshes, print gate",
    "metrics": "metrics\nscores",
    "viewer": "viewer\npictures, pages",
    "samples": "samples\nphantoms",
    "models": "models\npackages",
    "inference": "inference\ntiles, memory",
    "superres": "superres\nbetween slices",
    "training": "training\nmaking models",
    "reuse": "reuse\nwhat is not done twice",
    "output": "output\nall or nothing",
    "pipeline": "pipeline\nstudy → results",
    "cohort": "cohort\nmany studies",
    "pacs": "pacs\nDICOMweb",
    "cli": "cli\npeople at a shell",
}


def rule() -> dict[str, set[str]]:
    """Part → parts it may import, the values as one part."""
    parts = {name: {i for i in allowed if i not in VALUES} for name, allowed in ALLOWED.items() if name not in VALUES}
    parts = {name: needs | {"values"} for name, needs in parts.items()} | {"values": set()}
    below = set(parts)
    parts["pipeline"] = below
    return parts | {name: below | {"pipeline"} for name in sorted(TOP - {"pipeline", "__init__"})}


def described(parts: dict[str, set[str]]) -> str:
    """The rule in a line, kept in the picture so that a test sees when it is out of date."""
    return "; ".join(f"{name}: {' '.join(sorted(needs))}" for name, needs in sorted(parts.items()))


def height(name: str, parts: dict[str, set[str]]) -> int:
    """Length of the longest way down."""
    return 1 + max((height(n, parts) for n in parts[name]), default=-1)


def main() -> None:
    """Draw the parts in rows by height."""
    parts = rule()
    rows: dict[int, list[str]] = {}
    for name in [*(n for n in WORDS if n in parts), *sorted(set(parts) - set(WORDS))]:
        rows.setdefault(height(name, parts), []).append(name)
    place = {name: (n - (len(row) - 1) / 2, float(y)) for y, row in rows.items() for n, name in enumerate(row)}
    figure = Figure(figsize=(8.2, 1.05 * len(rows) + 0.2))
    figure.patch.set_facecolor("white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-2.7, 2.7), ylim=(-0.55, len(rows) - 0.45))
    axes.set_axis_off()
    for name, needs in parts.items():
        for other in needs - {n for need in needs for n in parts[need]}:
            axes.annotate(
                "", _edge(place[other], 0.27), _edge(place[name], -0.27),
                arrowprops={"arrowstyle": "-|>", "color": "#8a99a8", "lw": 0.8, "shrinkA": 0, "shrinkB": 0},
            )  # fmt: skip
    for name, (x, y) in place.items():
        style = {"boxstyle": "round,pad=0.45", "facecolor": _color(name), "edgecolor": "#37474f", "linewidth": 0.8}
        axes.text(x, y, WORDS.get(name, name), ha="center", va="center", fontsize=8.5, bbox=style, color="#102027")
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "slice3d", "font.family": "DejaVu Sans"}):
        figure.savefig(HERE / "layers.svg", metadata={"Date": None, "Description": described(parts)})


def _edge(point: tuple[float, float], by: float) -> tuple[float, float]:
    return point[0], point[1] + by


def _color(name: str) -> str:
    if name in ("values", "resample"):
        return "#eceff1"
    if name in ("models", "inference", "superres", "training"):
        return "#d7eef0"
    return "#fbe9c9" if name in ("pipeline", "cohort", "pacs", "cli", "output") else "#e3ebf7"


if __name__ == "__main__":
    main()
