"""What the loader needs from one DICOM file, read without its pixels.

Values are taken from the raw elements leniently (a malformed private or descriptive element must not cost a study), and
geometry strictly (a malformed position is no position). PS3.3 C.7.6.2 (Image Plane), C.7.6.16 (functional groups).
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from slice3d.errors import InputError
from slice3d.io.files import FileRef

MAX_SIDE = 65535
MAX_FRAMES = 1_000_000

# acquisition facts that go into `Volume.metadata`; nothing here can identify a person
FACTS = (
    "Modality", "Manufacturer", "ManufacturerModelName", "SliceThickness", "SpacingBetweenSlices", "ConvolutionKernel",
    "KVP", "GantryDetectorTilt", "ContrastBolusAgent", "BodyPartExamined", "PatientPosition", "ScanningSequence",
    "SequenceVariant", "MRAcquisitionType", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle",
    "MagneticFieldStrength", "Units", "SeriesDescription", "ProtocolName", "ImageType", "LossyImageCompression",
    "ReconstructionDiameter", "XRayTubeCurrent", "Exposure", "SequenceName",
)  # fmt: skip
_NUMERIC_FACTS = frozenset({
    "SliceThickness", "SpacingBetweenSlices", "KVP", "GantryDetectorTilt", "RepetitionTime", "EchoTime", "InversionTime",
    "FlipAngle", "MagneticFieldStrength", "ReconstructionDiameter", "XRayTubeCurrent", "Exposure",
})  # fmt: skip

# what may tell several frames at one position apart, in the order in which it is tried
SPLIT_KEYS = (
    "EchoTime", "DiffusionBValue", "TemporalPositionIndex", "TriggerTime", "CardiacPhase", "FrameType", "InversionTime",
    "FlipAngle", "KVP", "ConvolutionKernel", "ContrastBolusAgent", "AcquisitionNumber", "DiffusionDirection", "StackID",
    "AcquisitionTime",
)  # fmt: skip


@dataclass(slots=True)
class Frame:
    """One image plane. position: LPS mm of the first pixel's centre; spacing: mm between (rows, columns)."""

    index: int
    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    slope: float = 1.0
    intercept: float = 0.0
    has_rescale: bool = False
    thickness: float | None = None
    keys: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Header:
    """One DICOM file without its pixels."""

    file: FileRef
    study: str
    series: str
    patient: str
    sop_class: str
    sop_instance: str
    modality: str
    transfer_syntax: str
    file_size: int
    pixel_offset: int
    pixel_tag: str
    rows: int
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: int | None
    padding_limit: int | None
    series_number: int | None
    instance_number: int
    image_type: tuple[str, ...]
    description: str
    study_description: str
    study_date: str
    frame_of_reference: str
    number_of_frames: int
    frames: list[Frame]
    facts: dict[str, Any]
    lut: tuple[int, Any] | None = None
    philips: tuple[float, float] | None = None
    damage: str = ""

    @property
    def is_image(self) -> bool:
        """Whether there are pixels in a grid (also RGB), as opposed to a report, plan, structure set or segmentation."""
        return (
            bool(self.pixel_tag)
            and self.rows > 0
            and self.columns > 0
            and not self.is_seg
            and self.modality not in NOT_IMAGES
        )

    @property
    def is_seg(self) -> bool:
        """Whether this is a DICOM Segmentation."""
        return self.modality == "SEG" or self.sop_class in SEG_CLASSES

    @property
    def is_rtstruct(self) -> bool:
        """Whether this is a radiotherapy structure set."""
        return self.modality == "RTSTRUCT" or self.sop_class == RTSTRUCT_CLASS


SEG_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
NOT_IMAGES = frozenset({"SEG", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG", "RTRECORD", "AU", "DOC", "M3D", "FID"})


def stored_dtype(header: Header) -> Any:
    """The numpy type of one stored pixel, native byte order."""
    import numpy as np

    if header.pixel_tag == "FloatPixelData":
        return np.dtype(np.float32)
    if header.pixel_tag == "DoubleFloatPixelData":
        return np.dtype(np.float64)
    return np.dtype(f"{'i' if header.signed else 'u'}{header.bits_allocated // 8}")


def read_header(file: FileRef, stream: BinaryIO, *, size: int) -> Header | None:
    """The header of one file, or None when it is not DICOM. Never reads the pixels.

    Raises `InputError` when it is DICOM but its structure is damaged before the pixels.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    start = stream.read(132 + 8)
    if not looks_like_dicom(start):
        return None
    stream.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=start[128:132] != b"DICM")
            return _interpret(dataset, file, stream, size)
        except InvalidDicomError:
            return None
        except InputError:
            raise
        except RecursionError as error:
            raise InputError(
                f"{file.name} nests sequences without end; expected a DICOM file; export it again"
            ) from error
        except Exception as error:  # pydicom raises whatever the damaged bytes lead it into
            raise InputError(
                f"{file.name} is damaged ({type(error).__name__} in its header); export it again"
            ) from error


def looks_like_dicom(start: bytes) -> bool:
    """Whether the first 140 bytes open a DICOM file, with or without the preamble."""
    if start[128:132] == b"DICM":
        return True
    if len(start) < 12:
        return False
    # old files start directly with group 0002 or 0008: a small even element and a plausible VR or length
    group, element = struct.unpack("<HH", start[:4])
    if group not in (0x0002, 0x0008) or element > 0x0070 or element % 1:
        return False
    explicit = start[4:6] in (b"UL", b"UI", b"CS", b"SH", b"DA", b"TM", b"LO", b"OB")
    (length,) = struct.unpack("<I", start[4:8])
    return explicit or length <= 256


def _interpret(ds: Any, file: FileRef, stream: BinaryIO, size: int) -> Header | None:
    meta = getattr(ds, "file_meta", None)
    syntax = text(meta, "TransferSyntaxUID") if meta is not None else ""
    sop_class = text(ds, "SOPClassUID") or (text(meta, "MediaStorageSOPClassUID") if meta is not None else "")
    sop_instance = text(ds, "SOPInstanceUID") or (text(meta, "MediaStorageSOPInstanceUID") if meta is not None else "")
    if not len(ds) or not (sop_class or sop_instance or "Rows" in ds or "Modality" in ds):
        return None
    if not syntax:
        syntax = "1.2.840.10008.1.2" if ds.is_implicit_VR else "1.2.840.10008.1.2.1"
    offset, pixel_tag = _pixel_position(ds, stream, syntax, size)
    rows, columns = integer(ds, "Rows", 0), integer(ds, "Columns", 0)
    frames = integer(ds, "NumberOfFrames", 1)
    damage = ""
    if not 0 <= rows <= MAX_SIDE or not 0 <= columns <= MAX_SIDE or not 0 <= frames <= MAX_FRAMES:
        damage = f"{rows} rows × {columns} columns × {frames} frames"
        rows = columns = 0
        frames = 1
        pixel_tag = ""
    header = Header(
        file=file,
        study=text(ds, "StudyInstanceUID"),
        series=text(ds, "SeriesInstanceUID") or f"folder {file.folder} {text(ds, 'Modality')}",
        patient=f"{text(ds, 'PatientID')}|{text(ds, 'PatientName')}|{text(ds, 'PatientBirthDate')}",
        sop_class=sop_class,
        sop_instance=sop_instance,
        modality=text(ds, "Modality"),
        transfer_syntax=syntax,
        file_size=size,
        pixel_offset=offset,
        pixel_tag=pixel_tag,
        rows=rows,
        columns=columns,
        samples=integer(ds, "SamplesPerPixel", 1),
        photometric=text(ds, "PhotometricInterpretation"),
        bits_allocated=integer(ds, "BitsAllocated", 0),
        bits_stored=integer(ds, "BitsStored", 0) or integer(ds, "BitsAllocated", 0),
        high_bit=integer(ds, "HighBit", -1),
        signed=integer(ds, "PixelRepresentation", 0) == 1,
        padding=_padding(ds, "PixelPaddingValue"),
        padding_limit=_padding(ds, "PixelPaddingRangeLimit"),
        series_number=integer(ds, "SeriesNumber", None),
        instance_number=integer(ds, "InstanceNumber", 0) or 0,
        image_type=tuple(words(ds, "ImageType")),
        description=text(ds, "SeriesDescription"),
        study_description=text(ds, "StudyDescription"),
        study_date=text(ds, "StudyDate"),
        frame_of_reference=text(ds, "FrameOfReferenceUID"),
        number_of_frames=max(1, frames or 1),
        frames=[],
        facts=_facts(ds),
        damage=damage,
    )
    if header.is_image:
        header.frames = list(_frames(ds, header))
        header.lut = _modality_lut(ds)
    return header


def _pixel_position(ds: Any, stream: BinaryIO, syntax: str, size: int) -> tuple[int, str]:
    """Where the pixel element starts and which it is; pydicom has stopped just before it."""
    if syntax == "1.2.840.10008.1.2.1.99":  # deflated: pydicom unpacked the rest of the file into memory
        return -1, "PixelData" if integer(ds, "Rows", 0) else ""
    offset = stream.tell()
    tag = stream.read(4)
    if len(tag) < 4:
        return offset, ""
    group, element = struct.unpack("<HH" if ds.is_little_endian else ">HH", tag)
    names = {0x0010: "PixelData", 0x0008: "FloatPixelData", 0x0009: "DoubleFloatPixelData"}
    return offset, names.get(element, "") if group == 0x7FE0 else ""


def raw(ds: Any, keyword: str) -> bytes | None:
    """The undecoded bytes of one element, None when absent or already converted by pydicom."""
    if keyword not in ds:
        return None
    item = ds.get_item(keyword)
    value = getattr(item, "value", None)
    return value if isinstance(value, bytes) else None


def text(ds: Any, keyword: str) -> str:
    """One string without padding; empty when absent or unreadable."""
    value = raw(ds, keyword)
    if value is not None:
        return value.split(b"\0")[0].decode("latin-1").strip()
    try:
        item = ds.get(keyword)
    except Exception:
        return ""
    return "" if item is None else str(item).strip()


def words(ds: Any, keyword: str) -> list[str]:
    """A multi-valued string."""
    value = raw(ds, keyword)
    if value is not None:
        return [part.strip(" \0") for part in value.decode("latin-1").split("\\")]
    item = ds.get(keyword)
    if item is None:
        return []
    return [str(item)] if isinstance(item, str) else [str(part) for part in item]


def numbers(ds: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """Exactly `count` finite numbers, else None."""
    try:
        out = tuple(float(part) for part in _parts(ds, keyword))
    except (TypeError, ValueError, OverflowError):
        return None
    return out if len(out) == count and all(math.isfinite(x) for x in out) else None


def number(ds: Any, keyword: str, default: float | None = None) -> float | None:
    """The first value as a finite number."""
    try:
        value = float(_parts(ds, keyword)[0])
    except (TypeError, ValueError, IndexError, OverflowError):
        return default
    return value if math.isfinite(value) else default


def _parts(ds: Any, keyword: str) -> list[Any]:
    value = raw(ds, keyword)
    if value is None:
        item = ds.get(keyword)
        if item is None:
            return []
        return list(item) if hasattr(item, "__iter__") and not isinstance(item, str) else [item]
    vr = ds.get_item(keyword).VR
    if vr is None:
        from pydicom.datadict import dictionary_VR

        vr = dictionary_VR(keyword)
    codes = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FD": "d", "FL": "f", "US or SS": "H"}
    if vr in codes:
        code = codes[vr]
        count = len(value) // struct.calcsize(code)
        return list(
            struct.unpack(("<" if ds.is_little_endian else ">") + code * count, value[: count * struct.calcsize(code)])
        )
    return [part.strip(b" \0") for part in value.split(b"\\")]


def integer(ds: Any, keyword: str, default: Any) -> Any:
    """The first value as an integer."""
    value = number(ds, keyword)
    return default if value is None else int(value)


def _padding(ds: Any, keyword: str) -> int | None:
    value = integer(ds, keyword, None)
    # The VR is US or SS depending on PixelRepresentation; writers get it wrong both ways.
    if value is not None and integer(ds, "PixelRepresentation", 0) == 1 and value > 32767 and value < 65536:
        return int(value) - 65536
    if value is not None and integer(ds, "PixelRepresentation", 0) == 0 and value < 0:
        return int(value) + 65536
    return value


def _facts(ds: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for keyword in FACTS:
        if keyword not in ds:
            continue
        value: Any = number(ds, keyword) if keyword in _NUMERIC_FACTS else "\\".join(words(ds, keyword))
        if value not in (None, ""):
            facts[keyword] = value
    return facts


def _modality_lut(ds: Any) -> tuple[int, Any] | None:
    sequence = ds.get("ModalityLUTSequence")
    if not sequence:
        return None
    import numpy as np

    item = sequence[0]
    descriptor = numbers(item, "LUTDescriptor", 3)
    if descriptor is None or "LUTData" not in item:
        return None
    data = item.LUTData
    if isinstance(data, bytes):
        table = np.frombuffer(data, dtype="<u2" if ds.is_little_endian else ">u2")
    else:
        table = np.asarray(data, dtype=np.uint16)
    return int(descriptor[1]), table.astype(np.float32)


def _frames(ds: Any, header: Header) -> Iterator[Frame]:
    shared = ds.get("SharedFunctionalGroupsSequence") or [None]
    per_frame = ds.get("PerFrameFunctionalGroupsSequence")
    if per_frame is not None and len(per_frame):
        if len(per_frame) != header.number_of_frames:
            raise InputError(
                f"{header.file.name} describes {len(per_frame)} frames but holds {header.number_of_frames}; "
                "expected the same number; export it again"
            )
        for index, groups in enumerate(per_frame):
            yield _functional_frame(index, groups, shared[0], ds)
        return
    offsets = None
    if header.number_of_frames > 1 and "GridFrameOffsetVector" in ds:
        offsets = numbers(ds, "GridFrameOffsetVector", header.number_of_frames)
    plain = _plain_frame(ds)
    if header.number_of_frames == 1:
        yield plain
        return
    for index in range(header.number_of_frames):
        frame = Frame(index, None, plain.orientation, plain.spacing, plain.slope, plain.intercept, plain.has_rescale)
        if offsets is not None and plain.position is not None and plain.orientation is not None:
            x, y = plain.orientation[:3], plain.orientation[3:]
            normal = (x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0])
            first = offsets[0]
            frame.position = tuple(
                p + n * (offsets[index] - first) for p, n in zip(plain.position, normal, strict=True)
            )
        yield frame


def _plain_frame(ds: Any) -> Frame:
    slope = number(ds, "RescaleSlope")
    frame = Frame(
        0,
        numbers(ds, "ImagePositionPatient", 3),
        numbers(ds, "ImageOrientationPatient", 6),
        numbers(ds, "PixelSpacing", 2),
        1.0 if slope is None else slope,
        number(ds, "RescaleIntercept", 0.0) or 0.0,
        slope is not None,
        number(ds, "SliceThickness"),
    )
    keys = frame.keys
    for keyword, name in (
        ("EchoTime", "EchoTime"), ("DiffusionBValue", "DiffusionBValue"), ("TemporalPositionIdentifier", "TemporalPositionIndex"),
        ("TriggerTime", "TriggerTime"), ("NominalPercentageOfCardiacPhase", "CardiacPhase"), ("InversionTime", "InversionTime"),
        ("FlipAngle", "FlipAngle"), ("KVP", "KVP"), ("AcquisitionNumber", "AcquisitionNumber"),
    ):  # fmt: skip
        if keyword in ds:
            keys[name] = number(ds, keyword)
    for keyword in ("ConvolutionKernel", "ContrastBolusAgent", "AcquisitionTime"):
        if keyword in ds:
            keys[keyword] = text(ds, keyword)
    keys["FrameType"] = "\\".join(words(ds, "ImageType"))
    direction = numbers(ds, "DiffusionGradientOrientation", 3)
    if direction is not None:
        keys["DiffusionDirection"] = direction
    _private_diffusion(ds, keys)
    return frame


def _private_diffusion(ds: Any, keys: dict[str, Any]) -> None:
    """b-values where vendors kept them before the standard had a place: Siemens, GE, Philips."""
    if "DiffusionBValue" in keys:
        return
    for tag, creator in ((0x0019100C, "SIEMENS MR HEADER"), (0x20011003, "Philips Imaging DD 001")):
        holder = (tag & 0xFFFF0000) | (tag >> 8 & 0xFF)
        if tag in ds and holder in ds and str(ds[holder].value).strip() == creator:
            value = ds[tag].value
            try:
                if isinstance(value, bytes):
                    keys["DiffusionBValue"] = float(value) if tag == 0x0019100C else struct.unpack("<f", value[:4])[0]
                else:
                    keys["DiffusionBValue"] = float(value)
            except (TypeError, ValueError, struct.error):
                continue
            return


def _functional_frame(index: int, own: Any, shared: Any, ds: Any) -> Frame:
    def group(keyword: str) -> Any:
        for source in (own, shared):
            if source is not None and keyword in source:
                sequence = source.get(keyword)
                if sequence:
                    return sequence[0]
        return None

    position, orientation, measures = (
        group("PlanePositionSequence"),
        group("PlaneOrientationSequence"),
        group("PixelMeasuresSequence"),
    )
    transform = group("PixelValueTransformationSequence")
    frame = Frame(index)
    # Some writers keep what is common to all frames in the top level, as in single-frame files.
    frame.position = numbers(position, "ImagePositionPatient", 3) if position is not None else None
    frame.orientation = numbers(orientation if orientation is not None else ds, "ImageOrientationPatient", 6)
    frame.spacing = numbers(measures if measures is not None else ds, "PixelSpacing", 2)
    frame.thickness = number(measures if measures is not None else ds, "SliceThickness")
    scale = transform if transform is not None else ds
    slope = number(scale, "RescaleSlope")
    frame.slope = 1.0 if slope is None else slope
    frame.intercept = number(scale, "RescaleIntercept", 0.0) or 0.0
    frame.has_rescale = slope is not None
    content, echo, diffusion = group("FrameContentSequence"), group("MREchoSequence"), group("MRDiffusionSequence")
    cardiac, timing = group("CardiacSynchronizationSequence"), group("MRTimingAndRelatedParametersSequence")
    for holder, keyword, name in (
        (echo, "EffectiveEchoTime", "EchoTime"), (diffusion, "DiffusionBValue", "DiffusionBValue"),
        (content, "TemporalPositionIndex", "TemporalPositionIndex"), (cardiac, "NominalPercentageOfCardiacPhase", "CardiacPhase"),
        (timing, "FlipAngle", "FlipAngle"), (content, "FrameAcquisitionNumber", "AcquisitionNumber"),
    ):  # fmt: skip
        if holder is not None and keyword in holder:
            frame.keys[name] = number(holder, keyword)
    if content is not None and "StackID" in content:
        frame.keys["StackID"] = text(content, "StackID")
    for keyword in ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence"):
        kind = group(keyword)
        if kind is not None:
            frame.keys["FrameType"] = "\\".join(words(kind, "FrameType"))
    gradient = diffusion.get("DiffusionGradientDirectionSequence") if diffusion is not None else None
    if gradient:
        frame.keys["DiffusionDirection"] = numbers(gradient[0], "DiffusionGradientOrientation", 3)
    return frame
