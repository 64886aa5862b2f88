"""Pictures of scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slice3d.metrics.cases import rank

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def ranking_plot(methods: Mapping[str, pd.DataFrame], *, metric: str = "dice", seed: int = 0) -> Figure:
    """How often each method takes each rank over bootstrap samples of the cases (a blob plot), best method first.

    A method whose blobs spread over several ranks is not clearly better or worse than its neighbours.
    Reference: Wiesenfarth et al., Scientific Reports 11 (2021) 2369.
    """
    from matplotlib.figure import Figure

    ranks = rank(methods, metric=metric)
    by_case = ranks.groupby(level="case").mean()
    order = by_case.mean().sort_values().index
    values = by_case[order].to_numpy()
    draws = np.random.default_rng(seed).integers(0, len(values), (1000, len(values)))
    means = values[draws].mean(axis=1)
    placed = (means[:, :, None] > means[:, None, :]).sum(axis=2) + 1
    figure = Figure(figsize=(1.5 + 0.9 * len(order), 1.5 + 0.7 * len(order)), layout="constrained")
    axes = figure.subplots()
    for column in range(len(order)):
        place, count = np.unique(placed[:, column], return_counts=True)
        axes.scatter(np.full(len(place), column), place, s=900 * count / len(placed), alpha=0.7)
        axes.plot(column, values[:, column].mean(), "kx")
    axes.set_xticks(range(len(order)), order, rotation=30, ha="right")
    axes.set_yticks(range(1, len(order) + 1))
    axes.set_ylim(len(order) + 0.6, 0.4)
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.set_ylabel(f"rank by {metric} (1 is best)")
    axes.set_title(f"{len(values)} cases, 1000 bootstrap samples\n× mean rank", fontsize=9)
    return figure


def save_ranking_plot(methods: Mapping[str, pd.DataFrame], path: Path, *, metric: str = "dice") -> None:
    """Write `ranking_plot` as a picture; the extension says which kind."""
    ranking_plot(methods, metric=metric).savefig(path, dpi=150, metadata={"Software": None})
