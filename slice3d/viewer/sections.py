"""The words of the report page: numbers, findings, how sure they are, and where they come from. All text is escaped."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slice3d.findings import Finding
from slice3d.mesh import Mesh
from slice3d.viewer.colors import structure_color
from slice3d.viewer.preview import millilitres, shown_structures
from slice3d.viewer.words import plain, title_of
from slice3d.volume import Segmentation, Volume

_REFERENCE = (
    ("dice", "Dice", "{:.3f}"),
    ("hd95_mm", "HD95, mm", "{:.1f}"),
    ("assd_mm", "Mean surface distance, mm", "{:.2f}"),
    ("volume_difference_percent", "Volume difference, %", "{:+.1f}"),
)
_SWATCH = (
    '<svg class="swatch" viewBox="0 0 1 1" aria-hidden="true"><rect width="1" height="1" fill="rgb({},{},{})"/></svg>'
)
# What a finding means for whoever uses the result.
_DOUBT = "The network doubts its own outline: parts may be missing, or neighbours may be included. Check every slice."
_MEANING = {
    "low-expected-dice": _DOUBT,
    "model-unsure": _DOUBT,
    "parts-dropped": "Pieces apart from the rest were taken for errors and removed. If one of them was real, it is missing.",
    "thin-parts-dropped": "Arteries that leave it are no part of it. If one of these pieces was, it is missing.",
    "closed-at-field-of-view": "The flat end of the surface is where the scan ends, not where the structure does.",
    "organ-cut-by-field-of-view": "Only a part of the structure was scanned; the whole of it is larger.",
    "volume-implausible": "The outline is probably wrong, or the patient is unusual. Do not use the volume unchecked.",
    "orientation-implausible": "Left and right, or top and bottom, may be swapped. Do not use the result before this is settled.",
    "structure-untested": "The model may miss it altogether or see it where there is none. Do not rely on it either way.",
    "structure-empty": "Either it is not in the scan, or the network missed it.",
}
_SEVERITY = {"error": "Problem", "warning": "Caution", "info": "Note"}


def escape(text: object) -> str:
    """Text for HTML: control and direction-override characters removed, markup characters escaped."""
    return html.escape(plain(str(text), 4000), quote=True)


def escape_lines(text: str) -> str:
    """Text of several lines for HTML."""
    return "\n".join(escape(line) for line in text.splitlines())


def paragraphs(sentences: Sequence[str]) -> str:
    """One paragraph each."""
    return "".join(f"<p>{escape(s)}</p>" for s in sentences)


def body(
    volume: Volume,
    segmentation: Segmentation,
    surfaces: Sequence[Mesh],
    metrics: Mapping[str, Any],
    manifest: Mapping[str, Any],
    findings: Sequence[Finding],
) -> str:
    """Everything below the viewer."""
    structures = shown_structures(segmentation, surfaces)
    rows: Mapping[str, Any] = metrics.get("structures", {})
    return "".join(
        (
            _section("numbers", "Numbers", _table(segmentation, surfaces, structures, rows)),
            _section("findings", "What to know", _findings(findings)),
            _section("sure", "How sure is this?", _bullets(certainty(volume, segmentation, structures, rows))),
            _section("origin", "Where it comes from", _origin(volume, manifest)),
        )
    )


def _section(name: str, title: str, content: str) -> str:
    return f'<section aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{content}</section>'


def _table(
    segmentation: Segmentation, surfaces: Sequence[Mesh], structures: Sequence[str], rows: Mapping[str, Any]
) -> str:
    by_name = {mesh.name: mesh for mesh in surfaces}
    expected = any(isinstance(row.get("expected_dice"), (int, float)) for row in rows.values())
    references = [column for column in _REFERENCE if any(column[0] in r.get("reference", {}) for r in rows.values())]
    heads = [
        "Structure",
        "Volume, ml",
        *(["Expected Dice"] if expected else []),
        "Surface encloses, ml",
        "Surface area, cm²",
        "Pieces",
        *(r[1] for r in references),
    ]
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    lines = []
    for name in structures:
        row = rows.get(name, {})
        mesh = by_name.get(name)
        red, green, blue = (mesh.color if mesh and mesh.color else None) or structure_color(name)
        cells = [
            millilitres(float(row.get("volume_ml", segmentation.volume_ml(name)))),
            *([_number(row.get("expected_dice"), "{:.2f}")] if expected else []),
            millilitres(mesh.volume_ml) if mesh else "–",
            f"{mesh.area_mm2 / 100:,.1f}" if mesh else "–",
            str(row.get("components", "–")),
            *(_number(row.get("reference", {}).get(key), form) for key, _, form in references),
        ]
        swatch = _SWATCH.format(red, green, blue)
        values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{swatch}{escape(title_of(name))}</th>{values}</tr>')
    about = '<p class="about" id="numbers-about">Of the labelled voxels, and of the surfaces made from them.</p>'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'{about}<div class="scroll" tabindex="0" role="region" aria-labelledby="numbers-about">{table}</div>'


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, (int, float)) and math.isfinite(value) else "–"


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<p>Nothing unusual was found in the study or the result. That does not prove the result right.</p>"
    alike: dict[tuple[str, str], list[str]] = {}
    for f in findings:
        alike.setdefault((f.severity, f.code), []).append(f.message)
    items = []
    for (severity, code), messages in alike.items():
        told = [escape(_capital(message)) for message in messages]
        if len(told) == 1:
            words = f"<strong>{_SEVERITY[severity]}:</strong> {told[0]}"
        else:
            listed = "".join(f"<li>{text}</li>" for text in told)
            words = f"<strong>{len(told)} {_SEVERITY[severity].lower()}s:</strong><ul>{listed}</ul>"
        meaning = f'<p class="meaning">{escape(_MEANING[code])}</p>' if code in _MEANING else ""
        items.append(f'<li class="{severity}">{words} <code>{escape(code)}</code>{meaning}</li>')
    return f'<ul class="findings">{"".join(items)}</ul>'


def banner(findings: Sequence[Finding]) -> str:
    """One line for the top of the page that counts what is serious and leads to it; empty when nothing is."""
    counts = {kind: sum(f.severity == kind for f in findings) for kind in ("error", "warning")}
    parts = [
        f"{n} {word}{'s' * (n > 1)}" for n, word in ((counts["error"], "problem"), (counts["warning"], "caution")) if n
    ]
    if not parts:
        return ""
    kind = "error" if counts["error"] else "warning"
    return f'<p class="banner {kind}"><a href="#findings-title">{" and ".join(parts)}: read them before use</a></p>'


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bullets(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(s)}</li>" for s in sentences) + "</ul>"


def certainty(
    volume: Volume, segmentation: Segmentation, structures: Sequence[str], rows: Mapping[str, Any]
) -> list[str]:
    """What was estimated and how far it may be off, one sentence each."""
    out = []
    model = segmentation.metadata.get("model") or segmentation.metadata.get("name")
    if model:
        version = segmentation.metadata.get("model_version") or segmentation.metadata.get("version", "")
        out.append(
            f"The outlines were drawn by the neural network {model} {version}".rstrip()
            + ": an estimate, not a measurement. A person who knows the anatomy has to check them against the images."
        )
    else:
        out.append("The outlines are labels that were handed in; this page does not know how they were made.")
    for name in structures:
        expected = rows.get(name, {}).get("expected_dice")
        if isinstance(expected, (int, float)):
            out.append(
                f"{title_of(name)}: going by how sure the network is of this image, its outline should overlap with a "
                f"careful person's by a Dice of about {expected:.2f} (1 is perfect): roughly {100 * (1 - expected):.0f} % "
                "of the outlined volume is expected in the wrong place. This patient can be worse."
            )
        out.extend(_range(segmentation, name))
    if volume.synthesised is not None and volume.synthesised.any():
        share = 100 * float(volume.synthesised.mean())
        out.append(
            f"{share:.0f} % of the image was computed between the acquired slices: what is likely, not what was seen."
        )
        unit = "HU" if volume.modality == "CT" else "units of the image"
        for name in structures:
            out.extend(_computed(name, rows.get(name, {}), unit))
    gap = max(volume.grid.spacing_mm)
    out.append(
        f"The coarsest distance between voxels is {gap:.2g} mm. In that direction edges, and distances measured on "
        "them, are known to about half of it at best."
    )
    return out


def _computed(name: str, row: Mapping[str, Any], unit: str) -> list[str]:
    """How much of one structure lies where the image was computed."""
    share, spread = row.get("synthesised_share"), row.get("mean_uncertainty")
    if not isinstance(share, (int, float)):
        return []
    text = f"{title_of(name)}: {100 * share:.0f} % of its voxels lie in computed planes"
    if isinstance(spread, (int, float)):
        text += f"; the image is expected to be off by {spread:.3g} {unit} within its outline"
    surface = (row.get("mesh") or {}).get("mean_uncertainty")
    if isinstance(surface, (int, float)):
        text += f" and by {surface:.3g} {unit} on its surface, on average"
    return [text + "."]


def _range(segmentation: Segmentation, name: str) -> list[str]:
    """Volumes at a strict and a generous threshold, where the method gave probabilities."""
    chance = segmentation.probabilities.get(name)
    if chance is None:
        return []
    voxel_ml = segmentation.grid.voxel_volume_mm3 / 1000
    few, many = (float(np.count_nonzero(np.asarray(chance) > p)) * voxel_ml for p in (0.75, 0.25))
    return [
        f"{title_of(name)}: between {millilitres(few)} and {millilitres(many)} ml, depending on whether doubtful "
        "voxels count (network probability above 0.75 or above 0.25)."
    ]


def _origin(volume: Volume, manifest: Mapping[str, Any]) -> str:
    shape = " × ".join(str(n) for n in volume.grid.shape)
    spacing = " × ".join(f"{s:.3g}" for s in volume.grid.spacing_mm)
    facts = f"{volume.modality or 'Image'} of {shape} voxels, {spacing} mm, axes {volume.grid.orientation}."
    out = f"<p>{escape(facts)}</p>"
    if manifest:
        text = html.escape(json.dumps(manifest, indent=2, ensure_ascii=True, default=str), quote=True)
        summary = "<summary>Manifest: input hash, versions, settings, timings</summary>"
        out += f'<details>{summary}<pre tabindex="0">{text}</pre></details>'
    return out
