"""De-identification of DICOM files: the Basic Application Level Confidentiality Profile (PS3.15 Annex E).

The table of attributes (E.1-1, edition 2026c) comes from dicom-anonymizer; how it is applied is here: in sequences at
any depth, with UIDs that stay consistent over all files of a call, and nothing kept that the dictionary does not know.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from slice3d import __version__
from slice3d.errors import InputError, MissingExtraError
from slice3d.findings import Finding
from slice3d.io.files import atomic

Action = Literal["remove", "empty", "dummy", "uid", "references"]

_MESH_STORAGE = frozenset({"1.2.840.10008.5.1.4.1.1.104.3", "1.2.840.10008.5.1.4.1.1.104.4"})  # STL, OBJ
_ENCAPSULATED_DOCUMENT = 0x00420011
_HEAD = frozenset(
    {"HEAD", "BRAIN", "FACE", "SKULL", "HEADNECK", "ORBIT", "IAC", "SELLA", "MAXILLA", "TEETH", "JAW", "SINUS"}
)
# kinds of images that often carry names in their pixels
_BURNED_IN = frozenset({"US", "ES", "SC", "XC", "OT", "GM", "OP"})
_UNSUITED = frozenset({"SR", "DOC", "KO", "PR", "AU", "PLAN"})
_TEXT = frozenset({"AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT", "PN"})
_DUMMIES: dict[str, Any] = {
    "AS": "000Y", "DA": "19000101", "DT": "19000101000000", "TM": "000000", "UR": "urn:removed", "DS": "0", "IS": "0",
    "FD": 0.0, "FL": 0.0, "SS": 0, "US": 0, "SL": 0, "UL": 0, "SV": 0, "UV": 0, "OB": b"\0\0", "UN": b"\0\0",
    "OW": b"\0\0",
}  # fmt: skip


@lru_cache(maxsize=1)
def _profile() -> tuple[dict[int, Action], tuple[tuple[int, int, Action], ...]]:
    """Tag → action, and (value, mask, action) for repeating groups."""
    try:
        from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
    except ImportError as error:
        raise MissingExtraError("de-identification needs a table; run `pip install 'slice3d[cluster]'`") from error
    # Where the profile leaves a choice, the strictest that keeps a valid object: type 1 and 2 stay as dummies.
    actions: tuple[tuple[Iterable[tuple[int, ...]], Action], ...] = (
        (table.X_TAGS, "remove"), (table.Z_TAGS, "empty"), (table.X_Z_TAGS, "empty"), (table.D_TAGS, "dummy"),
        (table.Z_D_TAGS, "dummy"), (table.X_D_TAGS, "dummy"), (table.X_Z_D_TAGS, "dummy"),
        (table.X_Z_U_STAR_TAGS, "references"), (table.U_TAGS, "uid"),
    )  # fmt: skip
    plain: dict[int, Action] = {}
    masked: list[tuple[int, int, Action]] = []
    for tags, action in actions:
        for tag in tags:
            value = tag[0] << 16 | tag[1]
            if len(tag) == 4:
                masked.append((value, tag[2] << 16 | tag[3], action))
            else:
                plain[value] = action
    return plain, tuple(masked)


def _action(tag: int) -> Action | None:
    plain, masked = _profile()
    if tag in plain:
        return plain[tag]
    return next((action for value, mask, action in masked if tag & mask == value & mask), None)


class Key:
    """What pseudonyms and UIDs are derived from: a secret, or a new one each time that is forgotten.

    Its text is a fingerprint (that of a new one each time is always the same), so that it may stand in a manifest.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secret

    def deidentifier(self) -> Deidentifier:
        """Applies the profile with this key. Raises `MissingExtraError` when the profile's table is not installed."""
        _profile()
        return Deidentifier() if self._secret is None else Deidentifier(self._secret)

    def __repr__(self) -> str:
        if self._secret is None:
            return "Key(new each time)"
        return f"Key({hmac.new(self._secret, b'fingerprint', hashlib.sha256).hexdigest()[:12]})"


@dataclass(frozen=True, repr=False)
class Deidentifier:
    """Applies the profile. The same key gives the same pseudonyms and UIDs; keep it secret, or let it be forgotten."""

    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def uid(self, uid: str) -> str:
        """A UUID-derived UID (PS3.5 B.2) that depends on the old one and the key."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', uid)[:16], version=4).int}"

    def pseudonym(self, patient: str) -> str:
        """What a patient is called: the same for the same patient and key."""
        return f"S3D-{self._digest('patient', patient).hex()[:12].upper()}"

    def dataset(self, dataset: Any) -> Any:
        """A de-identified copy. Raises `InputError` for reports and other objects whose text is their content."""
        import copy

        from pydicom.dataset import FileMetaDataset

        modality = str(dataset.get("Modality", ""))
        if modality in _UNSUITED:
            raise InputError(f"a {modality} object is text about a person; expected images, SEG or STL; leave it out")
        patient = f"{dataset.get('IssuerOfPatientID', '')}|{dataset.get('PatientID', '')}"
        head = _shows_head(dataset)
        keep = {_ENCAPSULATED_DOCUMENT} if str(dataset.get("SOPClassUID", "")) in _MESH_STORAGE else set()
        result = copy.deepcopy(dataset)
        self._apply(result, keep, {})
        result.PatientName = result.PatientID = self.pseudonym(patient)
        _declare(result, head)
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
        meta.MediaStorageSOPClassUID = result.SOPClassUID
        meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
        result.file_meta = meta
        result.preamble = b"\0" * 128  # may hold anything (PS3.10 section 7.1)
        return result

    def _digest(self, what: str, value: str) -> bytes:
        return hmac.new(self.key, f"{what}\0{value}".encode(), hashlib.sha256).digest()

    def _apply(self, dataset: Any, keep: set[int], done: dict[int, Any]) -> None:
        from pydicom.datadict import dictionary_has_tag, repeater_has_tag

        if id(dataset) in done:  # in memory one item may stand in two sequences: its UIDs are replaced once
            return
        done[id(dataset)] = dataset
        for tag in list(dataset.keys()):
            number = int(tag)
            if number in keep:
                continue
            known = dictionary_has_tag(number) or repeater_has_tag(number)
            if tag.is_private or not known:
                del dataset[tag]
                continue
            action = _action(number)
            if action == "remove":
                del dataset[tag]
                continue
            element = dataset[tag]
            if element.VR == "SQ" and action in (None, "references"):
                for item in element.value:
                    self._apply(item, keep, done)
            elif action is not None:
                self._replace(element, action)

    def _replace(self, element: Any, action: Action) -> None:
        if action == "uid" or (element.VR == "UI" and action != "empty"):
            element.value = self._uids(element.value)
        elif element.VR == "SQ":
            if action == "dummy":
                for item in element.value:
                    for inner in list(item):
                        self._replace(inner, "dummy")
            else:
                element.value = []
        elif action == "dummy":
            element.value = "REMOVED" if element.VR in _TEXT else _DUMMIES.get(element.VR)
        else:
            element.value = None

    def _uids(self, value: Any) -> Any:
        if not value:
            return value
        return self.uid(str(value)) if isinstance(value, str) else [self.uid(str(uid)) for uid in value]


def _shows_head(dataset: Any) -> bool:
    return str(dataset.get("BodyPartExamined", "")).upper().replace(" ", "") in _HEAD


def _declare(dataset: Any, head: bool) -> None:
    """Say what was done (PS3.3 C.12.1, PS3.15 E.1.1)."""
    from pydicom.dataset import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = f"slice3d {__version__}: PS3.15 Annex E, Basic Profile"
    dataset.DeidentificationMethodCodeSequence = [code]
    dataset.LongitudinalTemporalInformationModified = "REMOVED"
    if head:
        dataset.RecognizableVisualFeatures = "YES"


def deidentify(
    source: str | Path, out: str | Path, *, key: bytes | None = None, on_file: Callable[[int], None] | None = None
) -> tuple[Finding, ...]:
    """Write de-identified copies of all DICOM files below `source` into the new or empty folder `out`, as 000001.dcm ….

    Returns what the profile does not take care of: recognisable faces, text burned into pixels, files left out. Without
    a `key` a random one is used and forgotten. Raises `InputError` when there is nothing to do or `out` is not empty.
    """
    import pydicom

    from slice3d.io.dicom.discovery import walk

    source, out = Path(source), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out.name!r} exists and is not an empty folder; expected a new or empty one; pass another")
    if not source.exists():
        raise InputError("there is nothing at the source's path; expected a study folder or DICOM file")
    worker = Deidentifier() if key is None else Deidentifier(key)
    out.mkdir(parents=True, exist_ok=True)
    seen = _Seen()
    for path in walk(source) if source.is_dir() else [source]:
        try:
            dataset = pydicom.dcmread(path)
        except (pydicom.errors.InvalidDicomError, OSError):
            seen.left_out += 1
            continue
        if "DirectoryRecordSequence" in dataset or str(dataset.get("Modality", "")) in _UNSUITED:
            seen.left_out += 1
            continue
        seen.note(dataset)
        with atomic(out / f"{seen.written:06d}.dcm") as part:
            worker.dataset(dataset).save_as(part, enforce_file_format=True)
        if on_file is not None:
            on_file(seen.written)
    if not seen.written:
        raise InputError(f"{source.name!r} holds no DICOM image, SEG or STL; expected a study")
    return seen.findings()


@dataclass
class _Seen:
    written: int = 0
    left_out: int = 0
    heads: int = 0
    burned_in: int = 0

    def note(self, dataset: Any) -> None:
        self.written += 1
        self.heads += _shows_head(dataset)
        said = str(dataset.get("BurnedInAnnotation", "")).upper()
        self.burned_in += said == "YES" or (said != "NO" and str(dataset.get("Modality", "")) in _BURNED_IN)

    def findings(self) -> tuple[Finding, ...]:
        found: list[Finding] = []
        if self.heads:
            found.append(face_finding({"images": self.heads}))
        if self.burned_in:
            text = "Some images may carry text in their pixels, which was not looked at; check them before sharing."
            found.append(Finding("burned-in-text", text, details={"images": self.burned_in}))
        if self.left_out:
            text = "Files that are not DICOM images, SEG or STL (reports, directories, others) were left out."
            found.append(Finding("left-out", text, "info", {"files": self.left_out}))
        return tuple(found)


def face_finding(details: dict[str, Any]) -> Finding:
    """The warning for scans of heads: removing names does not remove the face (PS3.15 E.3.3 is not applied)."""
    text = "These are images of a head: a face can be rendered from them and recognised. Deface them before sharing."
    return Finding("recognisable-face", text, details=details)
