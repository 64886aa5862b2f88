"""Learning curves as a picture, from the history that the loop writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The rows of `history.jsonl` in order; empty where there is none."""
    path = folder / "history.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw_curves(folder: Path, picture: Path) -> None:
    """Training loss (running mean) and the Dice of each validated structure, averaged over cases, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_history(folder)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    if losses:
        steps, values = (np.array(column, float) for column in zip(*losses, strict=True))
        width = max(1, min(50, len(values) // 5))
        left.plot(steps, values, color="0.85", linewidth=0.6)
        left.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"), color="C0")
    left.set(xlabel="step", ylabel="loss (Dice + cross-entropy)", ylim=(0, None))
    for name, points in sorted(_by_structure(rows).items()):
        right.plot(*zip(*points, strict=True), marker=".", label=name)
    right.set(xlabel="step", ylabel="Dice, held-out cases", ylim=(0, 1))
    if right.lines:
        right.legend(fontsize=6, ncols=2)
    figure.savefig(picture, dpi=110)


def draw_stages(folders: Sequence[Path], picture: Path) -> None:
    """Several runs in one picture: running mean of the loss, and the mean held-out Dice over cases and structures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for number, folder in enumerate(folders):
        rows = read_history(folder)
        losses = np.array([(row["step"], row["loss"]) for row in rows if "loss" in row], float).reshape(-1, 2)
        width = max(1, min(50, len(losses) // 5))
        if len(losses):
            smooth = np.convolve(losses[:, 1], np.ones(width) / width, "valid")
            left.plot(losses[width - 1 :, 0], smooth, color=f"C{number % 10}", linewidth=0.9, label=folder.name)
        points: dict[float, list[float]] = {}
        for values in _by_structure(rows).values():
            for step, dice in values:
                points.setdefault(step, []).append(dice)
        steps = sorted(points)
        if steps:
            means = [float(np.mean(points[s])) for s in steps]
            right.plot(steps, means, marker=".", color=f"C{number % 10}", label=folder.name)
    left.set(xlabel="step of the stage", ylabel="loss (Dice + cross-entropy)", ylim=(0, None))
    right.set(xlabel="step of the stage", ylabel="mean Dice, cases held out", ylim=(0, 1))
    left.legend(fontsize=6, ncols=2)
    if right.lines:
        right.legend(fontsize=6, ncols=2, loc="lower right")  # Dice is high where it is good
    else:
        right.remove()  # no case was held out, or none was looked at while training
    figure.savefig(picture, dpi=110, bbox_inches="tight")


def _by_structure(rows: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    out: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        scores: dict[str, list[float]] = {}
        for key, value in row.items():
            if "/" in key:
                scores.setdefault(key.split("/", 1)[1], []).append(float(value))
        for name, values in scores.items():
            out.setdefault(name, []).append((float(row["step"]), float(np.mean(values))))
    return out
