"""Which of many series a person would take, and why."""

from __future__ import annotations

from dataclasses import dataclass

from slice3d.errors import InputError
from slice3d.io.dicom.header import Header
from slice3d.io.dicom.separate import Stack
from slice3d.io.dicom.stacks import Series


@dataclass(frozen=True)
class Candidate:
    """One volume that could be loaded. key: as in the listing."""

    key: str
    series: Series
    stack: Stack

    @property
    def header(self) -> Header:
        """The first file's header."""
        return self.stack.planes[0].header

    def describe(self) -> str:
        """`3: CT 'Thorax 2.0' 512×512×134`, for lists of choices."""
        header = self.header
        title = f" {header.description!r}" if header.description else ""
        size = f"{header.columns}×{header.rows}×{len(self.stack.planes)}"
        extra = ", ".join(f"{k} {v}" for k, v in self.stack.label.items())
        return f"{self.key}: {header.modality or 'image'}{title} {size}" + (f" ({extra})" if extra else "")


def candidates(series: list[Series]) -> list[Candidate]:
    """Every stack with the key that selects it: `"2"`, or `"2.1"`, `"2.2"` where a series holds several volumes."""
    out = []
    for number, one in enumerate(series, start=1):
        for part, stack in enumerate(one.stacks, start=1):
            out.append(Candidate(f"{number}.{part}" if len(one.stacks) > 1 else str(number), one, stack))
    return out


def quality(candidate: Candidate) -> tuple[float, ...]:
    """Larger is better; compared item by item: a volume, acquired, CT before MR before others, then extent and
    detail.
    """
    stack, header = candidate.stack, candidate.header
    layout = stack.layout
    if layout is None:
        return (-1.0,)
    role = role_of(header)
    count = len(stack.planes)
    modality = {"CT": 3.0, "MR": 2.0, "PT": 1.0, "NM": 1.0}.get(header.modality, 0.0)
    extent = layout.step_mm * (count - 1)
    return (
        float(count > 1),
        float(role != "localiser"),
        float(count >= 8),
        float(role == "acquired"),
        modality,
        float(layout.regular),
        round(extent / 20.0),
        -round(layout.step_mm, 2),
        -abs(_sharpness(header)),
        float(count),
    )


def role_of(header: Header) -> str:
    """What a series is to the examination: `"acquired"`, `"localiser"`, `"derived"` or `"secondary capture"`."""
    kinds = header.image_type
    title = header.description.upper()
    if "LOCALIZER" in kinds or any(word in title for word in ("SCOUT", "LOCALIZER", "TOPOGRAM", "SURVIEW")):
        return "localiser"
    if header.modality in ("SC", "OT") or header.sop_class.startswith("1.2.840.10008.5.1.4.1.1.7"):
        return "secondary capture"
    return "derived" if {"DERIVED", "SECONDARY", "MIP"} & set(kinds) else "acquired"


def _sharpness(header: Header) -> float:
    """How far the kernel is from soft tissue: bone and lung kernels make organs noisy."""
    kernel = str(header.facts.get("ConvolutionKernel", "")).upper()
    digits = "".join(c for c in kernel.split("\\")[0] if c.isdigit())[:2]
    if kernel.startswith(("BONE", "LUNG", "EDGE", "DETAIL")):
        return 1.0
    return 1.0 if digits and int(digits) >= 50 and kernel[0] in "BHUIQJ" else 0.0


def select(found: list[Candidate], wanted: str) -> Candidate:
    """The candidate that `--series` names: a key, a series instance UID, or a unique part of the description."""
    wanted = str(wanted).strip()
    hits = [c for c in found if c.key == wanted] or [c for c in found if c.header.series == wanted]
    if not hits:
        hits = [c for c in found if c.key.split(".")[0] == wanted]
        if len(hits) > 1:
            hits = [max(hits, key=quality)]
    if not hits and wanted:
        hits = [c for c in found if wanted.lower() in c.header.description.lower()]
    if len(hits) != 1:
        what = "no series" if not hits else f"{len(hits)} series"
        raise InputError(f"{what} match {wanted!r}; expected one of: {choices(found)}")
    return hits[0]


def choices(found: list[Candidate]) -> str:
    """The list of choices for an error message."""
    shown = [c.describe() for c in found[:12]]
    return "; ".join(shown) + (f"; … {len(found)} in all" if len(found) > 12 else "")


def pick(found: list[Candidate]) -> tuple[Candidate, str]:
    """The best volume and the reason in words.

    Raises `InputError` naming the choices where guessing would be dangerous: several persons, several studies, CT and
    MR.
    """
    usable = [c for c in found if c.stack.layout is not None]
    if not usable:
        problems = {c.stack.problem for c in found if c.stack.problem}
        reason = "; ".join(sorted(problems)) or "no images with pixels"
        if len(problems) == 1 and "expected" in reason:
            raise InputError(reason)
        raise InputError(
            f"nothing here can become a volume: found {reason}; expected a CT or MR series; see slice3d info"
        )
    volumes = [c for c in usable if quality(c)[:2] == (1.0, 1.0)] or usable
    for what, key in (
        ("patients", {c.header.patient for c in volumes}),
        ("studies", {c.header.study for c in volumes}),
        ("modalities", {c.header.modality for c in volumes if c.header.modality in ("CT", "MR")}),
    ):
        if len(key) > 1:
            raise InputError(
                f"volumes of {len(key)} {what} lie here; expected one; choose with --series: {choices(volumes)}"
            )
    best = max(volumes, key=quality)
    if len(usable) == 1:
        return best, "it is the only volume"
    return best, _reason(best, [c for c in usable if c is not best])


def _reason(best: Candidate, others: list[Candidate]) -> str:
    first = max(others, key=quality)
    names = (
        "it has several slices", "it is not a localiser", "it has at least 8 slices", "it is acquired, not derived",
        "its modality is segmented most often", "its slices are regular", "it covers more of the body",
        "its slices are thinner", "its kernel is for soft tissue", "it has more slices",
    )  # fmt: skip
    for mine, other, name in zip(quality(best), quality(first), names, strict=False):
        if mine != other:
            return f"{name}, unlike {first.describe()}"
    return f"it comes first of {len(others) + 1} alike"
