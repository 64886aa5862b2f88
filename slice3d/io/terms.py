"""Coded terms for structures: category and laterality as (scheme, code, meaning). SNOMED CT as in DICOM PS3.16."""

from __future__ import annotations

from slice3d.anatomy import Structure

Code = tuple[str, str, str]

ANATOMICAL: Code = ("SCT", "91723000", "Anatomical Structure")
# the code that CID 7150 held before, which 3D Slicer's own lists still use
ANATOMICAL_IN_SLICER: Code = ("SCT", "123037004", "Anatomical Structure")
MORPHOLOGY: Code = ("SCT", "49755003", "Morphologically Abnormal Structure")
TISSUE: Code = ("SCT", "85756007", "Tissue")
LEFT: Code = ("SCT", "7771000", "Left")
RIGHT: Code = ("SCT", "24028007", "Right")


def category_of(structure: Structure | None) -> Code:
    """Segmented property category (CID 7150)."""
    if structure is None:
        return TISSUE
    return MORPHOLOGY if structure.kind == "lesion" else TISSUE if structure.kind == "tissue" else ANATOMICAL


def type_of(structure: Structure | None) -> Code:
    """Segmented property type (CID 7151 and others)."""
    if structure is None or not structure.code:
        return TISSUE
    return ("SCT", structure.code, structure.meaning)


def laterality_of(structure: Structure | None) -> Code | None:
    """Laterality modifier (CID 244), None for structures that come once."""
    if structure is None or not structure.side:
        return None
    return LEFT if structure.side == "left" else RIGHT
