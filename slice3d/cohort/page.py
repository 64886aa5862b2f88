"""The cohort's page: one HTML file without scripts or anything from elsewhere; every text in it is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slice3d import anatomy

if TYPE_CHECKING:
    import pandas as pd

# Iglewicz & Hoaglin, How to Detect and Handle Outliers (1993): |0.6745 (x − median) / MAD| above 3.5
_OUTLIER = 3.5
_WIDTH, _HEIGHT = 420, 90
# beyond this the page lists the worst and says how many more the table holds
_MAX_LISTED = 500

_COUNTS = (("cases", "studies"), ("done", "done"), ("failed", "failed"))

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --mark: #2a6f97; --odd: #c1121f; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 2rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; }
section { margin-bottom: 2rem; } svg { max-width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: 1.5rem; }
.note { opacity: .8; }
"""


@dataclass(frozen=True)
class Distribution:
    """Volumes of one structure over the cohort, ml; odd: modified z-scores beyond 3.5 or implausible for an adult."""

    structure: str
    volumes_ml: NDArray[np.float64]
    cases: tuple[str, ...]
    scores: NDArray[np.float64]
    odd: NDArray[np.bool_]


def distributions(frame: pd.DataFrame) -> list[Distribution]:
    """One distribution per structure that has volumes, in alphabetical order."""
    if frame.empty or "volume_ml" not in frame:
        return []
    known = frame[(frame["status"] == "done") & frame["volume_ml"].notna() & (frame["structure"] != "")]
    found: list[Distribution] = []
    for name, part in known.groupby("structure", sort=True):
        volumes = part["volume_ml"].to_numpy(dtype=np.float64)
        scores = modified_z_scores(volumes)
        low, high = _plausible(str(name))
        odd = (np.abs(scores) > _OUTLIER) | (volumes < low) | (volumes > high)
        found.append(Distribution(str(name), volumes, tuple(map(str, part["case"])), scores, odd))
    return found


def modified_z_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """0.6745 (x − median) / MAD; with a MAD of 0 the mean absolute deviation takes its place, as the authors advise."""
    centre = np.median(values)
    spread = np.median(np.abs(values - centre))
    if spread > 0:
        return np.asarray(0.6745 * (values - centre) / spread)
    spread = np.mean(np.abs(values - centre))
    if spread > 0:
        return np.asarray((values - centre) / (1.253314 * spread))
    return np.zeros_like(values)


def _plausible(name: str) -> tuple[float, float]:
    structure = anatomy.STRUCTURES.get(name)
    return structure.volume_ml if structure is not None and structure.volume_ml is not None else (0.0, np.inf)


def page(frame: pd.DataFrame, summary: Mapping[str, Any]) -> str:
    """The page as text. frame: the cohort's table; summary: counts."""
    found = distributions(frame)
    body = "\n".join(
        [*_head(summary), *_charts(found), *_outliers(found), *_failures(frame), *_cases(frame)],
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">'
        f"<title>slice3d cohort</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _head(summary: Mapping[str, Any]) -> Iterator[str]:
    yield "<h1>Cohort</h1>"
    counts = [
        f"{summary.get('cases', 0)} studies",
        f"{summary.get('done', 0)} done",
        f"{summary.get('failed', 0)} failed",
    ]
    if summary.get("not_reached"):
        counts.append(f"{summary['not_reached']} not reached: run it again to go on")
    yield f"<p>{escape(', '.join(counts))}. slice3d {escape(str(summary.get('slice3d', '')))}.</p>"
    yield (
        '<p class="note">Volumes are estimates of a network. slice3d is not a medical device. '
        'The whole table: <a href="cohort.csv">cohort.csv</a>, <a href="cohort.parquet">cohort.parquet</a>.</p>'
    )


def _charts(found: Sequence[Distribution]) -> Iterator[str]:
    if not found:
        return
    yield '<h2>Volumes</h2><div class="cards">'
    for one in found:
        median, n = float(np.median(one.volumes_ml)), len(one.volumes_ml)
        low, high = np.percentile(one.volumes_ml, [2.5, 97.5])
        text = f"median {median:.1f} ml, 95 % within {low:.1f}–{high:.1f} ml, {n} cases, {int(one.odd.sum())} odd"
        yield f"<section><h3>{escape(one.structure)}</h3><p>{escape(text)}</p>{_histogram(one)}</section>"
    yield "</div>"


def _histogram(one: Distribution) -> str:
    low, high = float(one.volumes_ml.min()), float(one.volumes_ml.max())
    if high <= low:
        low, high = low - 0.5, high + 0.5
    bins = int(np.clip(np.sqrt(len(one.volumes_ml)) * 2, 5, 40))
    counts, edges = np.histogram(one.volumes_ml, bins=bins, range=(low, high))
    scale = (_HEIGHT - 24) / max(int(counts.max()), 1)
    width = _WIDTH / bins
    bars = "".join(
        f'<rect x="{n * width:.1f}" y="{_HEIGHT - 16 - c * scale:.1f}" width="{max(width - 1, 1):.1f}" '
        f'height="{c * scale:.1f}" fill="var(--mark)"><title>{edges[n]:.1f}–{edges[n + 1]:.1f} ml: {c}</title></rect>'
        for n, c in enumerate(counts)
        if c
    )
    ticks = "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_HEIGHT - 16}" y2="{_HEIGHT - 8}" stroke="var(--odd)" stroke-width="2"/>'
        for x in (one.volumes_ml[one.odd] - low) / (high - low) * _WIDTH
    )
    label = f"Histogram of the volume of {one.structure}, {low:.1f} to {high:.1f} ml"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">{bars}{ticks}'
        f'<text x="0" y="{_HEIGHT - 2}">{low:.1f} ml</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 2}" text-anchor="end">{high:.1f} ml</text></svg>'
    )


def _outliers(found: Sequence[Distribution]) -> Iterator[str]:
    rows = [
        (abs(float(score)), one.structure, case, float(volume), float(score))
        for one in found
        for case, volume, score, odd in zip(one.cases, one.volumes_ml, one.scores, one.odd, strict=True)
        if odd
    ]
    if not rows:
        return
    rows.sort(reverse=True)
    yield "<h2>Odd volumes</h2>"
    yield "<p>Far from the cohort's median (modified z-score beyond 3.5), or implausible for an adult.</p>"
    yield '<table><tr><th>case</th><th>structure</th><th class="n">volume, ml</th><th class="n">z</th></tr>'
    for _, name, case, volume, score in rows[:_MAX_LISTED]:
        numbers = f'<td class="n">{volume:.1f}</td><td class="n">{score:+.1f}</td>'
        yield f"<tr><td>{_link(case)}</td><td>{escape(name)}</td>{numbers}</tr>"
    yield f"</table>{_more(len(rows))}"


def _failures(frame: pd.DataFrame) -> Iterator[str]:
    failed = frame[frame["status"] == "failed"] if "status" in frame else frame
    if failed.empty:
        return
    yield '<h2>Failed</h2><table><tr><th class="n">no.</th><th>case</th><th>kind</th><th>reason</th></tr>'
    for row in failed.head(_MAX_LISTED).to_dict("records"):
        cells = "".join(f"<td>{escape(str(row[name]))}</td>" for name in ("case", "kind", "reason"))
        yield f'<tr><td class="n">{int(row["number"])}</td>{cells}</tr>'
    yield f"</table>{_more(len(failed))}"


def _cases(frame: pd.DataFrame) -> Iterator[str]:
    done = frame[frame["status"] == "done"] if "status" in frame else frame
    if done.empty:
        return
    yield '<h2>Done</h2><table><tr><th class="n">no.</th><th>case</th><th>structures, ml</th><th>findings</th>'
    yield '<th class="n">s</th></tr>'
    grouped = list(done.groupby("number", sort=True))
    for number, part in grouped[:_MAX_LISTED]:
        first = part.iloc[0]
        measured = ", ".join(
            f"{name} {volume:.1f}"
            for name, volume in zip(part["structure"], part["volume_ml"], strict=True)
            if volume == volume
        )
        findings = "" if first.get("findings") != first.get("findings") else str(first.get("findings") or "")
        yield (
            f'<tr><td class="n">{int(str(number))}</td><td>{_link(str(first["case"]))}</td>'
            f"<td>{escape(measured or str(first['reason']))}</td><td>{escape(findings.replace(';', ', '))}</td>"
            f'<td class="n">{float(first["seconds"]):.1f}</td></tr>'
        )
    yield f"</table>{_more(len(grouped))}"


def _link(case: str) -> str:
    return f'<a href="cases/{escape(case, quote=True)}/">{escape(case)}</a>'


def _more(count: int) -> str:
    return f"<p>{count - _MAX_LISTED} more are in the table.</p>" if count > _MAX_LISTED else ""
