"""Position, scale and distinguishing facts of every frame of one file, single-frame or enhanced multi-frame.

PS3.3 C.7.6.2 (image plane), C.7.6.16 (functional groups), C.8.8.3.2 (grid frame offsets).
"""

from __future__ import annotations

from typing import Any

from slice3d.errors import InputError
from slice3d.io.dicom.elements import Elements, tag_of
from slice3d.io.dicom.header import Frame, Header

# what may tell several frames at one position apart, in the order in which it is tried
SPLIT_KEYS = (
    "EchoTime", "DiffusionBValue", "TemporalPositionIndex", "TriggerTime", "CardiacPhase", "FrameType", "InversionTime",
    "FlipAngle", "KVP", "ConvolutionKernel", "ContrastBolusAgent", "AcquisitionNumber", "DiffusionDirection", "StackID",
    "AcquisitionTime",
)  # fmt: skip
_PLAIN_NUMBERS = (
    ("EchoTime", "EchoTime"), ("DiffusionBValue", "DiffusionBValue"),
    ("TemporalPositionIdentifier", "TemporalPositionIndex"), ("TriggerTime", "TriggerTime"),
    ("NominalPercentageOfCardiacPhase", "CardiacPhase"), ("InversionTime", "InversionTime"), ("FlipAngle", "FlipAngle"),
    ("KVP", "KVP"), ("AcquisitionNumber", "AcquisitionNumber"),
)  # fmt: skip
_PLAIN_TEXTS = ("ConvolutionKernel", "ContrastBolusAgent", "AcquisitionTime")
_GROUPED = (
    ("MREchoSequence", "EffectiveEchoTime", "EchoTime"), ("MRDiffusionSequence", "DiffusionBValue", "DiffusionBValue"),
    ("FrameContentSequence", "TemporalPositionIndex", "TemporalPositionIndex"),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase", "CardiacPhase"),
    ("MRTimingAndRelatedParametersSequence", "FlipAngle", "FlipAngle"),
    ("CTXRayDetailsSequence", "KVP", "KVP"),
    ("FrameContentSequence", "FrameAcquisitionNumber", "AcquisitionNumber"),
)  # fmt: skip
_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
_PHILIPS_MR = "Philips MR Imaging DD 001"


def frames_of(found: Elements, header: Header) -> list[Frame]:
    """One `Frame` per image plane. Raises `InputError` when the file contradicts itself about their number."""
    per_frame = found.items_at(tag_of("PerFrameFunctionalGroupsSequence"))
    if per_frame:
        if len(per_frame) != header.number_of_frames:
            raise InputError(
                f"{header.file.name} describes {len(per_frame)} frames but claims {header.number_of_frames}; "
                "expected the same number; export it again"
            )
        shared = found.item("SharedFunctionalGroupsSequence")
        return [
            _functional(index, Elements(groups, order=found.order), shared, found)
            for index, groups in enumerate(per_frame)
        ]
    plain = _plain(found)
    if header.number_of_frames == 1:
        return [plain]
    return _offset_frames(found, header, plain)


def _offset_frames(found: Elements, header: Header, plain: Frame) -> list[Frame]:
    """Frames of an old multi-frame file; only a dose grid says where they lie, by offsets along the normal."""
    offsets = found.numbers("GridFrameOffsetVector", header.number_of_frames)
    frames = []
    for index in range(header.number_of_frames):
        frame = Frame(index, None, plain.orientation, plain.spacing, plain.slope, plain.intercept)
        if offsets is not None and plain.position is not None and plain.orientation is not None:
            x, y = plain.orientation[:3], plain.orientation[3:]
            normal = (x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0])
            along = offsets[index] - offsets[0]
            frame.position = tuple(p + n * along for p, n in zip(plain.position, normal, strict=True))
        frames.append(frame)
    return frames


def _plain(found: Elements) -> Frame:
    frame = Frame(
        0,
        found.numbers("ImagePositionPatient", 3),
        found.numbers("ImageOrientationPatient", 6),
        found.numbers("PixelSpacing", 2),
        thickness=found.number("SliceThickness"),
    )
    _rescale(frame, found)
    for keyword, name in _PLAIN_NUMBERS:
        if keyword in found:
            frame.keys[name] = found.number(keyword)
    for keyword in _PLAIN_TEXTS:
        if keyword in found:
            frame.keys[keyword] = found.text(keyword)
    frame.keys["FrameType"] = "\\".join(found.words("ImageType"))
    direction = found.numbers("DiffusionGradientOrientation", 3)
    if direction is not None:
        frame.keys["DiffusionDirection"] = direction
    if "DiffusionBValue" not in frame.keys:
        _private_diffusion(found, frame.keys)
    frame.philips = _philips_scale(found)
    return frame


def _rescale(frame: Frame, found: Elements) -> None:
    """Rescale, else the first linear real-world value mapping (PS3.3 C.7.6.16.2.11).

    Raises `InputError` when a value is there but is no number: guessing would change every voxel of the slice.
    """
    slope, intercept = _scale(found, "RescaleSlope"), _scale(found, "RescaleIntercept")
    if slope is None and intercept is None:
        mapping = found.item("RealWorldValueMappingSequence")
        if mapping is not None and "RealWorldValueLUTData" not in mapping:
            slope, intercept = _scale(mapping, "RealWorldValueSlope"), _scale(mapping, "RealWorldValueIntercept")
    if slope is None:
        slope = _scale(found, "DoseGridScaling")  # PS3.3 C.8.8.3: stored integers of an RTDOSE → Gy
    frame.slope = 1.0 if slope is None or slope == 0 else slope
    frame.intercept = intercept or 0.0


def _scale(found: Elements, keyword: str) -> float | None:
    value = found.number(keyword)
    if value is None and found.text(keyword):
        raise InputError(f"{keyword} is {found.text(keyword)[:20]!r}; expected a number; export the file again")
    return value


def _private_diffusion(found: Elements, keys: dict[str, Any]) -> None:
    """b-values where vendors kept them before the standard had a place."""
    for group, creator, offset in (
        (0x0019, "SIEMENS MR HEADER", 0x0C),
        (0x2001, "Philips Imaging DD 001", 0x03),
        (0x0043, "GEMS_PARM_01", 0x39),
    ):
        value = found.private_number(group, creator, offset)
        if value is not None:
            # GE adds 10⁹ to some b-values
            keys["DiffusionBValue"] = value % 100_000 if group == 0x0043 else value
            return


def _philips_scale(found: Elements) -> float | None:
    """Philips' private scale slope, which makes stored MR values comparable between series (PMC3998685)."""
    return found.private_number(0x2005, _PHILIPS_MR, 0x0E) or None


def _functional(index: int, own: Elements, shared: Elements | None, top: Elements) -> Frame:
    def group(keyword: str) -> Elements | None:
        item = own.item(keyword)
        return shared.item(keyword) if item is None and shared is not None else item

    # Some writers keep what is common to all frames at the top level, as in single-frame files.
    position, orientation = group("PlanePositionSequence"), group("PlaneOrientationSequence") or top
    measures = group("PixelMeasuresSequence") or top
    frame = Frame(
        index,
        position.numbers("ImagePositionPatient", 3) if position is not None else None,
        orientation.numbers("ImageOrientationPatient", 6),
        measures.numbers("PixelSpacing", 2),
        thickness=measures.number("SliceThickness"),
    )
    _rescale(frame, group("PixelValueTransformationSequence") or _mapping_holder(own, shared) or top)
    for sequence, keyword, name in _GROUPED:
        item = group(sequence)
        if item is not None and keyword in item:
            frame.keys[name] = item.number(keyword)
    content = group("FrameContentSequence")
    if content is not None and "StackID" in content:
        frame.keys["StackID"] = content.text("StackID")
    for sequence in _FRAME_TYPES:
        kind = group(sequence)
        if kind is not None:
            frame.keys["FrameType"] = "\\".join(kind.words("FrameType"))
    diffusion = group("MRDiffusionSequence")
    gradient = diffusion.item("DiffusionGradientDirectionSequence") if diffusion is not None else None
    if gradient is not None:
        frame.keys["DiffusionDirection"] = gradient.numbers("DiffusionGradientOrientation", 3)
    classic = own.private(0x2005, "Philips MR Imaging DD 005", 0x0F)
    nested = own.item_at(classic) if classic is not None else None
    frame.philips = _philips_scale(nested) if nested is not None else None
    return frame


def _mapping_holder(own: Elements, shared: Elements | None) -> Elements | None:
    for holder in (own, shared):
        if holder is not None and "RealWorldValueMappingSequence" in holder:
            return holder
    return None
