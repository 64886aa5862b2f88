"""Many cases: one table per case, and a summary in which no case can hide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError, Slice3DError
from slice3d.metrics.distance import Convention
from slice3d.metrics.table import OnGrid, expected_structures, listed, score
from slice3d.progress import Progress, silent
from slice3d.volume import Segmentation

if TYPE_CHECKING:
    import pandas as pd

Read = Callable[[], Segmentation]

_HIGHER = ("dice", "jaccard", "sensitivity", "precision", "volume_similarity", "nsd", "boundary_iou")


@dataclass(frozen=True)
class CaseSettings:
    """How cases are scored: see `slice3d.evaluate` for the fields."""

    structures: tuple[str, ...] | None = None
    tolerance_mm: float | Mapping[str, float] = 2.0
    convention: str | Convention = "mesh"
    on_grid: OnGrid = "refuse"


def evaluate_cases(
    cases: Mapping[str, tuple[Read | None, Read]],
    *,
    settings: CaseSettings | None = None,
    progress: Progress = silent,
) -> pd.DataFrame:
    """Score many cases. Each is read when its turn comes, so that only one is in memory.

    cases: name → (function that reads the prediction, function that reads the reference). None instead of a prediction
    is a missing one: every structure of the reference that has voxels is missed. Every structure that any reference
    names is scored in every case; where a reference does not name it, it is empty there. Returns the rows of
    `evaluate`, indexed by (case, structure), and the diagonal of the field of view in `field_of_view_mm`.
    """
    import pandas as pd

    if not cases:
        raise InputError("no cases to evaluate; give at least one reference")
    settings = settings or CaseSettings()
    tables: dict[str, pd.DataFrame] = {}
    known: dict[str, None] = {}
    for n, case in enumerate(cases):
        with _named(case if len(cases) > 1 else ""):
            prediction, reference = _read(*cases[case])
            if reference.structures or len(cases) == 1:
                expected = expected_structures(prediction, reference)
                known |= dict.fromkeys(reference.structures)
                if names := [name for name in settings.structures or expected if name in reference.structures]:
                    tables[case] = _scored(prediction, reference, names, settings)
        progress("evaluate", (n + 1) / len(cases))
    wanted = list(settings.structures or known)
    if missing := [name for name in wanted if name not in known]:
        raise InputError(f"no structure {missing[0]!r} in the reference; it holds: {listed(known)}")
    if not wanted:
        raise InputError("no reference names a structure (empty masks?); expected at least one; check the files")
    for case in cases:  # what other references name is empty in this one, and may have been invented there
        done = tables.get(case)
        left = wanted if done is None else [name for name in wanted if name not in done.index]
        if left:
            with _named(case):
                more = _scored(*_read(*cases[case]), left, settings)
            tables[case] = (more if done is None else pd.concat([done, more])).loc[wanted]
    return pd.concat({case: tables[case] for case in cases}, names=["case", "structure"])


@contextmanager
def _named(case: str) -> Iterator[None]:
    try:
        yield
    except Slice3DError as error:
        if case:
            error.args = (f"case {case}: {error}",)
        raise


def _read(read_prediction: Read | None, read_reference: Read) -> tuple[Segmentation, Segmentation]:
    reference = read_reference()
    return read_prediction() if read_prediction else _nothing(reference), reference


def _scored(
    prediction: Segmentation, reference: Segmentation, names: list[str], settings: CaseSettings
) -> pd.DataFrame:
    table = score(
        prediction, reference, names, tolerance_mm=settings.tolerance_mm, convention=settings.convention,
        on_grid=settings.on_grid,
    )  # fmt: skip
    table["field_of_view_mm"] = float(np.linalg.norm(reference.grid.size_mm))
    return table


def _nothing(reference: Segmentation) -> Segmentation:
    labels = np.zeros(reference.labels.shape, np.uint8)
    return Segmentation(labels, reference.grid, reference.names, groups=reference.groups)


def summarise(scores: pd.DataFrame, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Per structure and metric: mean with a bootstrap interval by case, median, and how many cases were what.

    A missed or invented structure enters with the worst value, 0 for ratios and the diagonal of the case's field of
    view (the largest distance that the image could hold) for distances, so that leaving a structure out never improves
    a mean. Cases where both masks are empty have nothing to measure and stay out; `both_empty` counts them. `undefined`
    counts values that are missing for any other reason. The interval is the percentile bootstrap over cases
    (Efron, Annals of Statistics 7 (1979) 1–26).

    scores: as `evaluate_cases` returns. Returns a table indexed by (structure, metric) with `mean`, `low`, `high`,
    `median`, `cases`, `missed`, `invented`, `both_empty`, `undefined`.
    """
    import pandas as pd

    if not 0 < confidence < 1 or resamples < 1:
        raise InputError(f"confidence is {confidence}, resamples {resamples}; expected between 0 and 1, at least 1")
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for structure, table in scores.groupby(level="structure", sort=False):
        counts = {
            name: int((table["status"] == status).sum())
            for name, status in (("missed", "missed"), ("invented", "invented"), ("both_empty", "both empty"))
        }
        measurable = table[table["status"] != "both empty"]
        for metric in metric_columns(table):
            values = penalised(measurable, metric)
            known = values[~np.isnan(values)]
            low, high = _interval(known, resamples, confidence, seed)
            rows[str(structure), metric] = {
                "mean": float(known.mean()) if len(known) else math.nan,
                "low": low,
                "high": high,
                "median": float(np.median(known)) if len(known) else math.nan,
                "cases": len(table),
                **counts,
                "undefined": len(values) - len(known),
            }
    index = pd.MultiIndex.from_tuples(rows, names=["structure", "metric"])
    return pd.DataFrame(list(rows.values()), index=index)


def metric_columns(table: pd.DataFrame) -> list[str]:
    """The columns of a score table that can be averaged over cases."""
    return [
        name
        for name in table.columns
        if name in _HIGHER
        or name in ("volume_difference_ml", "volume_difference_percent", "assd_mm", "masd_mm")
        or (name.startswith("hd") and name.endswith("_mm"))
    ]


def penalised(table: pd.DataFrame, metric: str) -> NDArray[np.float64]:
    """One value per case: the measured one, or the field-of-view diagonal instead of an infinite distance."""
    values = table[metric].to_numpy(dtype=np.float64, copy=True)
    infinite = np.isinf(values)
    values[infinite] = table["field_of_view_mm"].to_numpy(dtype=np.float64)[infinite]
    return values


def _interval(values: NDArray[np.float64], resamples: int, confidence: float, seed: int) -> tuple[float, float]:
    if not len(values):
        return math.nan, math.nan
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def rank(methods: Mapping[str, pd.DataFrame], *, metric: str = "dice") -> pd.DataFrame:
    """Rank methods on the same cases: in every (case, structure) the best gets rank 1, ties share the mean rank.

    A method that missed or invented the structure, or has no row for it, is last; one that rightly found nothing where
    another invented something is first; where all found nothing the row does not count. Returns a table of ranks, one
    column per method, rows (case, structure).
    Reference: rank-then-aggregate as in Wiesenfarth et al., Scientific Reports 11 (2021) 2369.
    """
    import pandas as pd

    if len(methods) < 2:
        raise InputError(f"{len(methods)} method to rank; expected at least two")
    worst = -np.inf if metric in _HIGHER else np.inf
    columns, counted = {}, []
    for name, scores in methods.items():
        if metric not in scores.columns:
            raise InputError(
                f"no metric {metric!r} in the scores of {name}; it has: {', '.join(metric_columns(scores))}"
            )
        values = pd.Series(penalised(scores, metric), index=scores.index)
        values = values.abs() if metric.startswith("volume_difference") else values
        right, wrong = scores["status"] == "both empty", scores["status"].isin(["missed", "invented"])
        columns[name] = values.mask(right, -worst).mask(wrong, worst)
        counted.append(right.index[~right])
    rows = counted[0].append(counted[1:]).unique()
    table = pd.DataFrame(columns).reindex(rows).fillna(worst)
    return table.rank(axis=1, ascending=metric not in _HIGHER, method="average")


def pair_names(predictions: Iterable[str], references: Iterable[str]) -> tuple[dict[str, str | None], list[str]]:
    """Match file names without their extension: reference → prediction or None, and predictions without a reference."""
    predicted = {stem(name): name for name in predictions}
    wanted = {stem(name): name for name in references}
    pairs = {name: predicted.get(key) for key, name in wanted.items()}
    return pairs, [name for key, name in predicted.items() if key not in wanted]


def stem(name: str) -> str:
    """A file name without its (double) extension: `case_01.seg.nrrd` and `case_01.nii.gz` both give `case_01`."""
    for suffix in (".nii.gz", ".seg.nrrd", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name
