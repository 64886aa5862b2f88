"""DICOM Encapsulated STL and OBJ (PS3.3 A.85, Supplements 205 and 217): a mesh that archives with its study."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import slice3d
from slice3d import anatomy
from slice3d.errors import InputError
from slice3d.io.dicom.deidentify import Deidentifier
from slice3d.io.files import atomic
from slice3d.io.meshes_basic import meshes_of, stl_bytes, stl_mesh
from slice3d.io.meshes_scene import obj_meshes, obj_text
from slice3d.io.terms import ANATOMICAL, Code, category_of, laterality_of, type_of
from slice3d.mesh import Mesh
from slice3d.volume import Volume

Kind = Literal["stl", "obj"]
_CLASS = {"stl": "1.2.840.10008.5.1.4.1.1.104.3", "obj": "1.2.840.10008.5.1.4.1.1.104.4"}
_MIME = {"stl": "model/stl", "obj": "model/obj"}
_CAM_MODEL = {"CT": ("LN", "85040-4", "CT 3D CAM model"), "MR": ("LN", "85041-2", "MR 3D CAM model")}  # CID 7061
_COPIED = {
    "PatientName": "", "PatientID": "", "PatientBirthDate": "", "PatientSex": "", "StudyInstanceUID": "", "StudyDate": "",
    "StudyTime": "", "ReferringPhysicianName": "", "StudyID": "", "AccessionNumber": "",
}  # fmt: skip
_OPTIONAL = (
    "IssuerOfPatientID", "StudyDescription", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "PositionReferenceIndicator",
)  # fmt: skip
_SHAPES = {
    "PatientBirthDate": r"\d{8}", "StudyDate": r"\d{8}", "StudyTime": r"\d{2,6}(\.\d{1,6})?", "PatientSex": r"[MFO]",
}  # fmt: skip


def write_encapsulated(
    mesh: Mesh | Sequence[Mesh],
    path: Path,
    *,
    source: Volume | None = None,
    kind: Kind = "stl",
    deidentifier: Deidentifier | None = None,
) -> None:
    """One DICOM file that holds the mesh in LPS millimetres in the frame of reference of `source`.

    source: the volume that was loaded from DICOM: patient, study, frame of reference and image references come from
    it (none of its identifiers with a deidentifier); without one the file starts a study of its own with an empty
    patient. The bytes depend on the input only.
    Raises `InputError` for an empty mesh or an unknown kind.
    """
    if kind not in _CLASS:
        raise InputError(f"kind is {kind!r}; expected 'stl' or 'obj'")
    meshes = meshes_of(mesh)
    content = stl_bytes(meshes) if kind == "stl" else obj_text(meshes, None).encode("utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = _build(meshes, content, kind, source)
    with atomic(path) as part:
        if deidentifier is not None:
            dataset = deidentifier.dataset(dataset)
        dataset.save_as(part, enforce_file_format=True)


def _build(meshes: list[Mesh], content: bytes, kind: Kind, source: Volume | None) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    images = _images(source)
    digest = hashlib.sha256(content + "".join(str(i.get("SOPInstanceUID", "")) for i in images).encode()).hexdigest()

    def uid(role: str) -> str:
        return str(generate_uid(entropy_srcs=[digest, role]))

    out = Dataset()
    out.SpecificCharacterSet = "ISO_IR 192"
    _copy_study(out, images, uid("study"))
    title = ", ".join(m.name for m in meshes if m.name) or "surface"
    out.SOPClassUID, out.SOPInstanceUID = _CLASS[kind], uid(f"instance {kind}")
    out.Modality, out.SeriesInstanceUID, out.SeriesNumber = "M3D", uid(f"series {kind}"), 9100
    out.SeriesDescription = "slice3d surface"
    out.Manufacturer = out.ManufacturerModelName = "slice3d"
    out.DeviceSerialNumber, out.SoftwareVersions = "1", slice3d.__version__
    frame = str(images[0].get("FrameOfReferenceUID", "")) if images else ""
    out.FrameOfReferenceUID = frame or uid("frame")
    out.PositionReferenceIndicator = out.get("PositionReferenceIndicator", "")
    out.InstanceNumber = 1
    out.ContentDate, out.ContentTime, out.AcquisitionDateTime = out.StudyDate, out.StudyTime, ""
    out.BurnedInAnnotation, out.RecognizableVisualFeatures = "NO", "NO"
    out.DocumentTitle = title[:1024]
    name = _CAM_MODEL.get(str(images[0].get("Modality", ""))) if images else None
    out.ConceptNameCodeSequence = [_code(name)] if name else []
    out.ContentDescription = f"Surface of {title}"[:64]
    out.MIMETypeOfEncapsulatedDocument = _MIME[kind]
    out.EncapsulatedDocumentLength = len(content)
    out.EncapsulatedDocument = content + b"\0" * (len(content) % 2)
    if images:
        out.SourceInstanceSequence = [_reference(i) for i in images if i.get("SOPInstanceUID")]
    _describe_model(out, meshes, uid("group"))
    out.file_meta = FileMetaDataset()
    out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out.file_meta.ImplementationVersionName = "SLICE3D"
    return out


def _describe_model(out: Any, meshes: list[Mesh], group: str) -> None:
    """Manufacturing 3D Model module (PS3.3 C.35.1)."""
    out.MeasurementUnitsCodeSequence = [_code(("UCUM", "mm", "mm"))]
    out.ModelModification, out.ModelMirroring = "NO", "NO"
    out.ModelUsageCodeSequence = [_code(("DCM", "129013", "Planning Intent"))]
    out.ModelGroupUID = group
    regions = []
    for mesh in meshes:
        structure = anatomy.STRUCTURES.get(anatomy.canonical(mesh.name))
        if structure is None or not structure.code:
            continue
        region = _code(type_of(structure))
        side = laterality_of(structure)
        if side is not None:
            region.AnatomicRegionModifierSequence = [_code(side)]
        regions.append(region)
    if regions and category_of(anatomy.STRUCTURES.get(anatomy.canonical(meshes[0].name))) == ANATOMICAL:
        out.AnatomicRegionSequence = regions[:1]


def _images(source: Volume | None) -> list[Any]:
    from slice3d.io.dicom.source import DicomSource

    if source is None:
        return []
    if not isinstance(source.source, DicomSource):
        raise InputError("the source volume was not loaded from DICOM; expected one, or leave source out")
    return source.source.datasets()


def _copy_study(out: Any, images: list[Any], study: str) -> None:
    first = images[0] if images else {}
    for keyword, empty in _COPIED.items():
        value = first.get(keyword, empty) or empty
        if keyword in _SHAPES and value and not re.fullmatch(_SHAPES[keyword], str(value)):
            value = ""
        setattr(out, keyword, value)
    out.StudyInstanceUID = out.StudyInstanceUID or study
    for keyword in _OPTIONAL:
        if keyword in first and first.get(keyword):
            setattr(out, keyword, first.get(keyword))


def _reference(image: Any) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID = image.get("SOPClassUID")
    item.ReferencedSOPInstanceUID = image.get("SOPInstanceUID")
    return item


def _code(code: Code) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodingSchemeDesignator, item.CodeValue, item.CodeMeaning = code
    return item


def read_encapsulated(path: Path) -> list[Mesh]:
    """The meshes in a DICOM Encapsulated STL or OBJ. Raises `InputError` for anything else."""
    import pydicom

    try:  # a damaged header raises whatever the decoder of the damaged element raises
        dataset = pydicom.dcmread(path)
    except Exception as error:
        raise InputError(f"{path.name} is no readable DICOM file; expected an encapsulated STL or OBJ") from error
    kinds = {uid: kind for kind, uid in _CLASS.items()}
    try:  # elements are decoded when they are asked for, and damaged ones raise whatever their decoder raises
        kind = kinds.get(str(dataset.get("SOPClassUID", "")))
        content = bytes(dataset.get("EncapsulatedDocument", b""))
        content = content[: int(dataset.get("EncapsulatedDocumentLength", 0)) or None]
        name = str(dataset.get("DocumentTitle", "")) or path.stem
    except Exception as error:
        raise InputError(f"{path.name} is damaged ({type(error).__name__}); copy it again") from error
    if kind is None or not content:
        raise InputError(f"{path.name} holds no encapsulated STL or OBJ; expected one; load images with slice3d.load")
    return [stl_mesh(content, name)] if kind == "stl" else obj_meshes(content, name)
