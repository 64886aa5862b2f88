"""`report.html`: one file that opens offline, with slices, surfaces, numbers, warnings and the manifest."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from slice3d import anatomy
from slice3d.errors import InputError, MissingExtraError
from slice3d.findings import Finding
from slice3d.mesh import Mesh
from slice3d.viewer import sections
from slice3d.viewer.colors import structure_color
from slice3d.viewer.page_data import image_bytes, label_bytes, shrink, surface_bytes, thin_out, unique_findings
from slice3d.viewer.planes import CT_WINDOWS, best_slice, voxels_by_slice, window
from slice3d.viewer.preview import mesh_list, png_bytes, preview, shown_structures
from slice3d.viewer.surfaces import opacities
from slice3d.viewer.words import plain, title_of
from slice3d.volume import Segmentation, Volume

# The bundle has no export of the viewer class; this is where the widget makes one.
_CLASS = re.compile(r'Creating new Niivue instance"\);.{0,200}?=new ([A-Za-z_$][\w$]*)\(', re.S)
_TAIL = re.compile(r"export\s*\{[^}]*\}\s*;?\s*$")
_MOST_LABELS = 250


@dataclass(frozen=True)
class ReportSettings:
    """How big the page may become. most_bytes: of the file; image and surfaces are made smaller until it fits.

    title: what the browser's tab shows; left empty, it names the first structures.
    """

    most_voxels: int = 10_000_000
    most_triangles: int = 250_000
    most_bytes: int = 24_000_000
    title: str = ""


def report(
    volume: Volume,
    segmentation: Segmentation,
    meshes: Mapping[str, Mesh] | Iterable[Mesh] = (),
    path: str | Path | None = None,
    *,
    metrics: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
    findings: Sequence[Finding] = (),
    settings: ReportSettings | None = None,
) -> str:
    """Make the page and return its HTML; write it when `path` is given.

    metrics, manifest: what the JSON files of a run hold. The viewer inside is NiiVue, out of the package `ipyniivue`
    (BSD-2-Clause). Raises `MissingExtraError` without the extra `viewer`, `InputError` when the grids differ, when the
    page cannot be made small enough, or when `path` cannot be written.
    """
    settings = settings or ReportSettings()
    library = niivue_source()
    if not segmentation.grid.matches(volume.grid):
        raise InputError("segmentation and volume lie on different grids; expected the same; resample one of them")
    surfaces = [mesh for mesh in mesh_list(meshes) if len(mesh.faces)]
    known = unique_findings(findings, volume.findings, segmentation.findings)
    picture = png_bytes(preview(volume, segmentation, surfaces, findings=known))
    banner = sections.banner(known)
    body = sections.body(volume, segmentation, surfaces, metrics or {}, manifest or {}, known)
    voxels = min(settings.most_voxels, volume.data.size)
    triangles = min(settings.most_triangles, sum(len(mesh.faces) for mesh in surfaces))
    for _ in range(6):
        data, notes = _data(volume, segmentation, surfaces, voxels, triangles)
        html = _page(
            settings.title or _title(segmentation),
            library,
            {"BODY": body, "BANNER": banner, "LICENCE": sections.escape_lines(_licence())},
            data,
            notes,
            picture,
        )
        size = len(html.encode("utf-8"))
        if size <= settings.most_bytes:
            break
        voxels, triangles = voxels // 2, triangles // 2
    else:
        raise InputError(f"the page takes {size} bytes; expected at most {settings.most_bytes}; allow more most_bytes")
    if path is not None:
        _write(Path(path), html)
    return html


def _title(segmentation: Segmentation) -> str:
    names = [title_of(name) for name in segmentation.structures]
    return "slice3d: " + ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def niivue_source() -> str:
    """NiiVue as a script that sets `globalThis.Slice3dNiivue`. Raises `MissingExtraError` when it is not there."""
    remedy = "install the extra: pip install 'slice3d[viewer]'"
    spec = importlib.util.find_spec("ipyniivue")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"the report page needs the package ipyniivue, which is not installed; {remedy}")
    source = Path(spec.submodule_search_locations[0]) / "static" / "widget.js"
    if not source.is_file():
        raise MissingExtraError(f"the installed ipyniivue holds no widget.js; expected version 2.4 or later; {remedy}")
    text = source.read_text(encoding="utf-8")
    found = _CLASS.search(text)
    if found is None or _TAIL.search(text) is None or "</script" in text.lower():
        raise MissingExtraError(
            f"the installed ipyniivue is built differently; expected version 2.4 or later; {remedy}"
        )
    return _TAIL.sub(lambda _: f"globalThis.Slice3dNiivue={found[1]};", text)


def _licence() -> str:
    """NiiVue's licence asks to go with every copy of its code, and each page holds one."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        text = distribution("ipyniivue").read_text("licenses/LICENSE")
    except PackageNotFoundError:
        text = None
    return text or "NiiVue, BSD 2-Clause License, Copyright (c) Niivue. All rights reserved."


def _data(
    volume: Volume, segmentation: Segmentation, surfaces: Sequence[Mesh], voxels: int, triangles: int
) -> tuple[dict[str, Any], list[str]]:
    structures = shown_structures(segmentation, surfaces)
    limits = window(volume, structures)
    small, labels, image_note = shrink(volume, segmentation, most_voxels=voxels)
    fewer, surface_note = thin_out(surfaces, most_triangles=triangles)
    values = [v for v in sorted(segmentation.names) if any(v in segmentation.values(s) for s in structures)]
    notes = [note for note in (image_note, surface_note) if note]
    if len(values) > _MOST_LABELS:
        notes.append(f"Only the first {_MOST_LABELS} of {len(values)} labels are shown on the slices.")
        values = values[:_MOST_LABELS]
    number = {value: n for n, value in enumerate(values, start=1)}
    solid = opacities([mesh.name for mesh in fewer])
    by_name = {mesh.name: mesh for mesh in fewer}
    names = [*structures, *(mesh.name for mesh in fewer if mesh.name not in structures)]
    return {
        "modality": plain(volume.modality, 16),
        "window": limits,
        "start": _start(segmentation, structures),
        "presets": _presets(volume, limits),
        "image": _base64(image_bytes(small, limits)),
        "labels": _base64(label_bytes(labels, values)) if values else "",
        "names": {n: title_of(segmentation.names[v]) for v, n in number.items()},
        "structures": [
            {
                "name": name,
                "title": title_of(name),
                "color": by_name[name].color if name in by_name and by_name[name].color else structure_color(name),
                "labels": [number[v] for v in _values(segmentation, name, structures) if v in number],
                "surface": _base64(surface_bytes(by_name[name])) if name in by_name else "",
                "opacity": _page_opacity(name, solid.get(name, 1.0)),
                "shown": anatomy.canonical(name) != "body" or len(names) == 1,
            }
            for name in names
        ],
    }, notes


def _page_opacity(name: str, opacity: float) -> float:
    # NiiVue draws the triangles of a translucent surface unsorted: right for round organs, torn for a skeleton, which
    # can be switched off here instead.
    known = anatomy.STRUCTURES.get(anatomy.canonical(name))
    return 1.0 if known is not None and known.kind == "bone" else opacity


def _start(segmentation: Segmentation, structures: Sequence[str]) -> list[float]:
    """World RAS mm where the cross begins: in each plane the slice that shows most."""
    counts = voxels_by_slice(segmentation)
    shape = segmentation.grid.shape
    index = [best_slice(counts[axis], structures, shape[axis] // 2) for axis in range(3)]
    return [round(float(v), 3) for v in segmentation.grid.to_world(index)]


def _values(segmentation: Segmentation, name: str, structures: Sequence[str]) -> tuple[int, ...]:
    """Labels that a structure switches on and off: without those that another shown structure has for itself."""
    if name not in segmentation.structures:
        return ()
    mine = segmentation.values(name)
    smaller = [o for o in structures if o != name and len(segmentation.values(o)) < len(mine)]
    taken = {v for other in smaller for v in segmentation.values(other)}
    return tuple(v for v in mine if v not in taken) or mine


def _presets(volume: Volume, limits: tuple[float, float]) -> list[dict[str, Any]]:
    low, high = limits
    presets = [{"name": "automatic", "low": low, "high": high}]
    if volume.modality == "CT":
        presets += [{"name": n, "low": c - w / 2, "high": c + w / 2} for n, (c, w) in CT_WINDOWS.items()]
    else:
        middle, half = (low + high) / 2, (high - low) / 2
        presets.append({"name": "more contrast", "low": middle - half / 2, "high": middle + half / 2})
        presets.append({"name": "less contrast", "low": middle - half * 1.6, "high": middle + half * 1.6})
    return presets


def _page(
    title: str, library: str, words: Mapping[str, str], data: Mapping[str, Any], notes: Sequence[str], picture: bytes
) -> str:
    folder = files("slice3d.viewer") / "page"
    css = (folder / "report.css").read_text(encoding="utf-8")
    script = library + "\n" + (folder / "report.js").read_text(encoding="utf-8")
    html = (folder / "report.html").read_text(encoding="utf-8")
    # Only these two may run or style, and nothing may be fetched: words inside DICOM files are not to be trusted.
    policy = (
        f"default-src 'none'; script-src '{_sha256(script)}'; style-src '{_sha256(css)}'; img-src data: blob:; "
        "connect-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
    )
    # json.dumps leaves "<" alone; as \u003c it can neither close the script element nor open a comment.
    packed = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    parts = {
        "POLICY": sections.escape(policy), "TITLE": sections.escape(title), "CSS": css, **words,
        "NOTES": sections.paragraphs(notes), "PICTURE": _base64(picture), "DATA": packed, "SCRIPT": script,
    }  # fmt: skip
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda m: parts[m[1]], html)


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _write(path: Path, html: str) -> None:
    try:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.write(html)
    except OSError as error:
        reason = error.strerror or "write failed"
        raise InputError(f"cannot write {path.name}: {reason}; choose a folder you may write to") from error
