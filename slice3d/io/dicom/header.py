"""What the loader needs from one DICOM file, read without its pixels."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from slice3d.errors import InputError
from slice3d.io.dicom.elements import Elements
from slice3d.io.dicom.quick import check_deflated, read_quick
from slice3d.io.files import FileRef

MAX_SIDE = 65535
MAX_FRAMES = 1_000_000
# opens the key of files without a series instance UID, which holds no space
NO_SERIES = "folder "

# What examinations are described with. A person who is called one of these is not betrayed by it.
_WORDS = (
    "abdomen abdominal adrenal anatomy angio aorta arm arterial axial bladder body bone brain breast cardiac carotid "
    "cervical chest colon contrast coronal coronary cranial cranium ct delayed demo diffusion dwi elbow extremity "
    "face femur flair foot hand head heart helical hip iv kidney knee leg lens liver lumbar lung mandible mr mri "
    "native neck nose oblique orbit pancreas patient pelvis pet phantom phase portal prostate qa recon rib sagittal "
    "scan scout sella series shoulder sinus skull spine spleen study subject survey synthetic test thigh thoracic "
    "thorax tissue tof torso trauma trunk venous vessel volunteer wrist"
)
ORDINARY_WORDS = frozenset(_WORDS.split())

# acquisition facts that go into `Volume.metadata`; nothing here can identify a person
_TEXTS = (
    "Modality", "Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "ContrastBolusAgent", "BodyPartExamined",
    "PatientPosition", "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "Units", "SeriesDescription",
    "ProtocolName", "ImageType", "LossyImageCompression", "SequenceName",
)  # fmt: skip
_NUMBERS = (
    "SliceThickness", "SpacingBetweenSlices", "KVP", "GantryDetectorTilt", "RepetitionTime", "EchoTime",
    "InversionTime", "FlipAngle", "MagneticFieldStrength", "ReconstructionDiameter", "XRayTubeCurrent", "Exposure",
)  # fmt: skip

SEG_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
NOT_IMAGES = frozenset({"SEG", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG", "RTRECORD", "AU", "DOC", "M3D", "FID"})
_DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclass(slots=True)
class Frame:
    """One image plane.

    position: LPS mm of the first pixel's centre. orientation: row then column direction. spacing: mm between (rows,
    columns). thickness: mm. keys: what may tell it from others at the same position.
    """

    index: int
    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    slope: float = 1.0
    intercept: float = 0.0
    philips: float | None = None
    thickness: float | None = None
    keys: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Header:
    """One DICOM file without its pixels. `damage` says what cannot be true in it."""

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
    facts: dict[str, Any]
    frames: list[Frame] = field(default_factory=list)
    lut: tuple[int, Any] | None = None
    damage: str = ""

    @property
    def is_image(self) -> bool:
        """Whether there are pixels in a grid (also RGB), as opposed to a report, plan, structure set or
        segmentation.
        """
        has_pixels = bool(self.pixel_tag) and self.rows > 0 and self.columns > 0
        return has_pixels and not self.is_seg and self.modality not in NOT_IMAGES

    @property
    def ends_early(self) -> bool:
        """Whether neither series nor pixels are there: every stored object belongs to a series."""
        return not self.pixel_tag and self.series.startswith(NO_SERIES) and not (self.is_seg or self.is_rtstruct)

    @property
    def is_seg(self) -> bool:
        """Whether this is a DICOM Segmentation."""
        return self.modality == "SEG" or self.sop_class in SEG_CLASSES

    @property
    def is_rtstruct(self) -> bool:
        """Whether this is a radiotherapy structure set."""
        return self.modality == "RTSTRUCT" or self.sop_class == RTSTRUCT_CLASS


def stored_dtype(header: Header) -> Any:
    """The numpy type of one stored pixel, native byte order."""
    import numpy as np

    if header.pixel_tag == "FloatPixelData":
        return np.dtype(np.float32)
    if header.pixel_tag == "DoubleFloatPixelData":
        return np.dtype(np.float64)
    return np.dtype(f"{'i' if header.signed else 'u'}{header.bits_allocated // 8}")


def read_header(file: FileRef, stream: BinaryIO, *, size: int) -> Header | None:
    """The header of one file, or None when it is not DICOM. Never reads the pixels. Call it inside `quiet()`.

    Raises `InputError` when it is DICOM but its structure is damaged before the pixels.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    start = stream.read(132 + 8)
    if not looks_like_dicom(start):
        return None
    stream.seek(0)
    quick = read_quick(stream)
    try:
        if quick is not None:
            dataset, offset = quick
            stream.seek(offset)
            header = _interpret(dataset, file, stream, size)
        else:
            stream.seek(0)
            check_deflated(stream, size, file.name)
            stream.seek(0)
            full = pydicom.dcmread(stream, stop_before_pixels=True, force=start[128:132] != b"DICM")
            header = _interpret(full, file, stream, size)
        if header is None and start[128:132] == b"DICM":
            raise InputError(f"{file.name} is a DICOM file that ends before it says what it is; copy it again")
        return header
    except InvalidDicomError:
        return None
    except InputError as error:
        message = str(error)
        raise InputError(message if file.name in message else f"{file.name}: {message}") from error
    except MemoryError:
        raise
    except RecursionError as error:
        raise InputError(f"{file.name} nests sequences without end; export it again") from error
    except Exception as error:  # pydicom raises whatever the damaged bytes lead it into
        reason = type(error).__name__
        raise InputError(f"{file.name} is damaged ({reason} in its header); export it again") from error


def looks_like_dicom(start: bytes) -> bool:
    """Whether the first 140 bytes open a DICOM file, with or without the preamble."""
    if start[128:132] == b"DICM":
        return True
    if len(start) < 12:
        return False
    # old files start directly with group 0002 or 0008: a small element and a plausible VR or length
    group, element = struct.unpack("<HH", start[:4])
    if group not in (0x0002, 0x0008) or element > 0x0070:
        return False
    explicit = start[4:6] in (b"UL", b"UI", b"CS", b"SH", b"DA", b"TM", b"LO", b"OB")
    (length,) = struct.unpack("<I", start[4:8])
    return explicit or length <= 256


def _interpret(ds: Any, file: FileRef, stream: BinaryIO, size: int) -> Header | None:
    found, meta = Elements(ds), Elements(getattr(ds, "file_meta", None))
    sop_class = found.text("SOPClassUID") or meta.text("MediaStorageSOPClassUID")
    sop_instance = found.text("SOPInstanceUID") or meta.text("MediaStorageSOPInstanceUID")
    if not (sop_class or sop_instance or "Rows" in found or "Modality" in found):
        return None
    syntax = meta.text("TransferSyntaxUID")
    if not syntax:
        syntax = "1.2.840.10008.1.2" if ds.is_implicit_VR else "1.2.840.10008.1.2.1"
    offset, pixel_tag = _pixel_position(found, stream, syntax)
    rows, columns, count = found.integer("Rows", 0), found.integer("Columns", 0), found.integer("NumberOfFrames", 1)
    secrets = _identifiers(found)
    damage = ""
    if not (0 <= rows <= MAX_SIDE and 0 <= columns <= MAX_SIDE and 0 <= count <= MAX_FRAMES):
        damage = f"{rows} rows × {columns} columns × {count} frames"
        rows = columns = 0
        count = 1
    header = Header(
        file=file,
        study=found.text("StudyInstanceUID"),
        series=found.text("SeriesInstanceUID") or f"{NO_SERIES}{file.folder} {found.text('Modality')}",
        patient="|".join(found.text(k) for k in ("PatientID", "PatientName", "PatientBirthDate")),
        sop_class=sop_class,
        sop_instance=sop_instance,
        modality=found.text("Modality"),
        transfer_syntax=syntax,
        file_size=size,
        pixel_offset=offset,
        pixel_tag=pixel_tag,
        rows=rows,
        columns=columns,
        samples=found.integer("SamplesPerPixel", 1),
        photometric=found.text("PhotometricInterpretation"),
        bits_allocated=found.integer("BitsAllocated", 0),
        bits_stored=found.integer("BitsStored", 0) or found.integer("BitsAllocated", 0),
        high_bit=found.integer("HighBit", -1),
        signed=found.integer("PixelRepresentation", 0) == 1,
        padding=_padding(found, "PixelPaddingValue"),
        padding_limit=_padding(found, "PixelPaddingRangeLimit"),
        series_number=found.maybe_integer("SeriesNumber"),
        instance_number=found.integer("InstanceNumber", 0),
        image_type=tuple(found.words("ImageType")),
        description=_without(secrets, found.text("SeriesDescription")),
        study_description=_without(secrets, found.text("StudyDescription")),
        study_date=found.text("StudyDate"),
        frame_of_reference=found.text("FrameOfReferenceUID"),
        number_of_frames=max(1, count),
        facts=_facts(found, secrets),
        damage=damage,
    )
    if header.is_image:
        from slice3d.io.dicom.frames import frames_of

        header.frames = frames_of(found, header)
        header.lut = _modality_lut(found)
    return header


def _pixel_position(found: Elements, stream: BinaryIO, syntax: str) -> tuple[int, str]:
    """Where the pixel element starts and which it is; pydicom has stopped just before it."""
    if syntax == _DEFLATED:  # pydicom unpacked the rest of the file into memory
        return -1, "PixelData" if found.integer("Rows", 0) else ""
    offset = stream.tell()
    tag = stream.read(4)
    if len(tag) < 4:
        return offset, ""
    group, element = struct.unpack("<HH" if found.dataset.is_little_endian else ">HH", tag)
    names = {0x0010: "PixelData", 0x0008: "FloatPixelData", 0x0009: "DoubleFloatPixelData"}
    return offset, names.get(element, "") if group == 0x7FE0 else ""


def _identifiers(found: Elements) -> re.Pattern[str] | None:
    """What names the person, to be taken out of texts that an operator typed. Words that stand in every other
    description (`Torso`) tell nothing about a person and stay, also where a phantom is called that.
    """
    words = set()
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber"):
        parts = re.split(r"[\s^=\\]+", found.text(keyword))
        named = keyword == "PatientName"
        if named:
            parts += [piece for part in parts for piece in part.split("-")]
        words |= {part for part in parts if len(part) >= (2 if named and part.isalpha() else 4)}
    words = {word for word in words if word.lower() not in ORDINARY_WORDS}
    if not words:
        return None
    listed = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)[:20])
    return re.compile(rf"(?<!\w)(?:{listed})(?!\w)", re.IGNORECASE)


def _padding(found: Elements, keyword: str) -> int | None:
    value = found.maybe_integer(keyword)
    if value is None:
        return None
    # The VR is US or SS depending on PixelRepresentation; writers get it wrong both ways.
    signed = found.integer("PixelRepresentation", 0) == 1
    if signed and 32767 < value < 65536:
        return value - 65536
    return value + 65536 if not signed and value < 0 else value


def _without(secrets: re.Pattern[str] | None, text: str) -> str:
    return secrets.sub("…", text) if secrets and text else text


def _facts(found: Elements, secrets: re.Pattern[str] | None) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for keyword in _TEXTS:
        if keyword in found and (text := "\\".join(found.words(keyword))):
            facts[keyword] = _without(secrets, text)
    for keyword in _NUMBERS:
        if keyword in found and (value := found.number(keyword)) is not None:
            facts[keyword] = value
    return facts


def _modality_lut(found: Elements) -> tuple[int, Any] | None:
    """(first stored value, table) of a modality lookup table (PS3.3 C.11.1)."""
    item = found.item("ModalityLUTSequence")
    descriptor = item.numbers("LUTDescriptor", 3) if item is not None else None
    if item is None or descriptor is None or "LUTData" not in item:
        return None
    import numpy as np

    first = int(descriptor[1])
    # implicit files do not say whether it is US or SS: that depends on the pixels (C.11.1.1.1)
    if first > 32767 and found.integer("PixelRepresentation", 0) == 1:
        first -= 65536
    data = item.dataset.LUTData
    table = np.frombuffer(data, f"{item.order}u2") if isinstance(data, bytes) else np.asarray(data)
    table = table.astype(np.float32)
    return (first, table) if table.size else None
