"""The quick reader of headers says what pydicom says, or leaves the file to it."""

from __future__ import annotations

import io

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from slice3d.io.dicom import header
from slice3d.io.dicom.quick import read_quick
from slice3d.io.files import FileRef, quiet
from tests.io.dicom_files import asymmetric, enhanced, oblique, series

AFFINE = oblique()


def content(dataset, *, undefined=False, **options):
    """The bytes of a file whose sequences and items have lengths, or delimiters instead."""
    if undefined:
        for element in dataset.iterall():
            if element.VR == "SQ":
                element.is_undefined_length = True
                for item in element.value:
                    item.is_undefined_length_sequence_item = True
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True, **options)
    return buffer.getvalue()


def rich(syntax=uid.ExplicitVRLittleEndian):
    """A slice with nested sequences, private elements, odd lengths and empty values."""
    dataset = series(asymmetric((8, 6, 1)), AFFINE)[0]
    dataset.file_meta.TransferSyntaxUID = syntax
    inner = Dataset()
    inner.CodeValue, inner.CodeMeaning = "T-1", "a meaning"
    outer = Dataset()
    outer.PurposeOfReferenceCodeSequence = Sequence([inner, inner])
    outer.ReferencedSOPInstanceUID = "1.2.3"
    dataset.SourceImageSequence = Sequence([outer, Dataset(), outer])
    mapping = Dataset()
    mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 0.25, -3.0
    del dataset.RescaleSlope, dataset.RescaleIntercept
    dataset.RealWorldValueMappingSequence = Sequence([mapping])
    dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", "750")
    dataset.EchoTime, dataset.SeriesDescription, dataset.Manufacturer = "", "odd length", None
    return dataset


def both(data):
    """What each reader makes of the bytes: (quick or None, pydicom)."""

    def read(reader):
        with pytest.MonkeyPatch.context() as patch, quiet():
            patch.setattr(header, "read_quick", reader)
            try:
                return repr(header.read_header(FileRef("x"), io.BytesIO(data), size=len(data)))
            except Exception as error:
                return f"{type(error).__name__}: {error}"

    return (read(read_quick) if read_quick(io.BytesIO(data)) is not None else None), read(lambda _: None)


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_ordinary_files_are_read_alike(syntax, undefined):
    data = content(rich(syntax), undefined=undefined)
    quick, full = both(data)
    assert quick is not None
    assert quick == full
    assert "slope=0.25" in quick


def test_what_is_out_of_the_ordinary_is_left_to_pydicom():
    big = rich(uid.ExplicitVRBigEndian)
    for data in (
        content(rich(uid.DeflatedExplicitVRLittleEndian)),
        content(big, little_endian=False, implicit_vr=False),
        content(enhanced(asymmetric((8, 6, 3)), AFFINE)),
        content(rich())[132:],
        content(rich()).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"),
        content(rich(uid.ImplicitVRLittleEndian)).replace(b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.3\0"),
        b"",
        b"\0" * 200,
    ):
        assert read_quick(io.BytesIO(data)) is None


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
    undefined=st.booleans(),
)
def test_damaged_files_are_never_read_otherwise(syntax, changes, kept, undefined):
    """Wherever the quick reader takes a file that pydicom takes too, both say the same."""
    data = bytearray(content(rich(syntax), undefined=undefined))
    for place, value in changes:
        data[min(int(place * len(data)), len(data) - 1)] = value
    quick, full = both(bytes(data[: int(kept * len(data))]))
    assert quick is None or quick == full
