"""Headers that lead a reader to other pixels, other values or more memory than the file has."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence

import slice3d
from slice3d.errors import InputError
from slice3d.io import files
from tests.io.dicom_files import asymmetric, enhanced, oblique, series, write

AFFINE = oblique()
DATA = asymmetric((9, 7, 5))


def swapped(values):
    return np.frombuffer(values, "<u2").byteswap().tobytes()


def big_endian(datasets):
    for dataset in datasets:
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
        dataset.PixelData = swapped(dataset.PixelData)
        dataset["PixelData"].VR = "OW"
    return datasets


def with_table(datasets):
    """A modality lookup table for values from −1024 that doubles them."""
    for dataset in datasets:
        item = Dataset()
        item.add_new(0x00283002, "SS", [3100, -1024, 16])
        item.ModalityLUTType = "HU"
        item.add_new(0x00283006, "OW", (np.arange(3100) * 2).astype("<u2").tobytes())
        dataset.ModalityLUTSequence = Sequence([item])
    return datasets


def doubled():
    return (DATA.astype(int) + 1024) * 2


def test_pixels_are_not_taken_from_what_follows_them(tmp_path):
    folder = write(series(DATA, AFFINE), tmp_path / "short")
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PixelData = dataset.PixelData[:-32]
        dataset.DataSetTrailingPadding = b"\xaa" * 64
        dataset.save_as(file)
    with pytest.raises(InputError, match="truncated"):
        slice3d.load(folder)


def test_wrapped_pixels_under_a_plain_syntax_are_refused(tmp_path):
    folder = write(series(DATA, AFFINE), tmp_path / "wrapped")
    for file in folder.iterdir():
        head, pixels = file.read_bytes().split(b"\xe0\x7f\x10\x00OW\0\0")
        items = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0" + pixels + b"\xfe\xff\xdd\xe0\0\0\0\0"
        file.write_bytes(head + b"\xe0\x7f\x10\x00OW\0\0\xff\xff\xff\xff" + items)
    with pytest.raises(InputError, match="transfer syntax"):
        slice3d.load(folder)


@pytest.mark.parametrize("shape", [(8, 6, 4), (7, 5, 4)])
def test_bytes_in_words_of_big_endian_files(tmp_path, shape):
    data = np.random.default_rng(0).integers(0, 255, shape).astype(np.int16)
    datasets = series(data, AFFINE, stored=np.uint8, intercept=0.0)
    for dataset in datasets:
        dataset.PixelData += b"\0" * (len(dataset.PixelData) % 2)
    np.testing.assert_array_equal(slice3d.load(write(big_endian(datasets), tmp_path / "be")).data, data)


def test_bytes_in_words_of_big_endian_frames(tmp_path):
    data = np.random.default_rng(0).integers(0, 255, (7, 5, 4)).astype(np.int16)
    dataset = enhanced(data, AFFINE)
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    transform = dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
    transform.RescaleIntercept = 0
    dataset.PixelData = data.astype(np.uint8).transpose(2, 1, 0).tobytes()
    np.testing.assert_array_equal(slice3d.load(write(big_endian([dataset]), tmp_path / "be")).data, data)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big"])
def test_lookup_tables_that_start_below_zero(tmp_path, syntax):
    datasets = with_table(series(DATA, AFFINE, stored=np.int16, slope=None))
    if syntax == "big":
        big_endian(datasets)
        for dataset in datasets:
            item = dataset.ModalityLUTSequence[0]
            item.LUTData = swapped(item.LUTData)
    elif syntax == "implicit":
        for dataset in datasets:
            dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    np.testing.assert_array_equal(slice3d.load(write(datasets, tmp_path / "lut")).data, doubled())


def test_sequences_of_unknown_kind_count(tmp_path):
    """An archive that did not know the element has stored it as UN, implicit within."""
    datasets = with_table(series(DATA, AFFINE, stored=np.int16, slope=None))
    explicit = write(datasets, tmp_path / "explicit")
    for dataset in datasets:
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    implicit = write(datasets, tmp_path / "implicit")
    tag = b"\x28\x00\x00\x30"
    for file in explicit.iterdir():
        other = (implicit / file.name).read_bytes()
        start = other.index(tag) + 8
        (length,) = struct.unpack_from("<I", other, start - 4)
        body = other[start : start + length]
        raw = file.read_bytes()
        place = raw.index(tag + b"SQ")
        (own,) = struct.unpack_from("<I", raw, place + 8)
        file.write_bytes(raw[:place] + tag + b"UN\0\0" + struct.pack("<I", length) + body + raw[place + 12 + own :])
    np.testing.assert_array_equal(slice3d.load(explicit).data, doubled())


def test_real_world_values_of_big_endian_files(tmp_path):
    datasets = series(DATA, AFFINE, stored=np.int16, slope=None, modality="MR")
    for dataset in datasets:
        mapping = Dataset()
        mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 0.25, -3.0
        dataset.RealWorldValueMappingSequence = Sequence([mapping])
    np.testing.assert_allclose(slice3d.load(write(big_endian(datasets), tmp_path / "be")).data, DATA * 0.25 - 3)


@pytest.mark.parametrize("rle", [False, True])
def test_frames_in_an_archive_are_not_unpacked_for_each(tmp_path, monkeypatch, rle):
    dataset = enhanced(DATA, AFFINE)
    if rle:
        dataset.compress(uid.RLELossless)
    folder = write([dataset], tmp_path / "frames")
    with zipfile.ZipFile(tmp_path / "frames.zip", "w") as archive:
        archive.write(folder / "IM0000", "IM0000")
    unpacked = []
    read = files.read_member
    monkeypatch.setattr(files, "read_member", lambda archive, name: unpacked.append(name) or read(archive, name))
    np.testing.assert_array_equal(slice3d.load(tmp_path / "frames.zip").data, DATA)
    assert len(unpacked) == 1 + rle


def test_frames_are_not_all_held_compressed(tmp_path):
    """Each of the frames is read when it is wanted, in any order, and as one that is cut into pieces."""
    data = np.random.default_rng(0).integers(-1000, 1000, (256, 256, 40)).astype(np.int16)
    dataset = enhanced(data, AFFINE)
    dataset.compress(uid.RLELossless)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=40))
    folder = write([dataset], tmp_path / "whole")
    tracemalloc.start()
    loaded = slice3d.load(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(loaded.data, data)
    assert peak < 1.3 * data.nbytes + 3e6
    dataset.PixelData = encapsulate(frames, fragments_per_frame=2)
    np.testing.assert_array_equal(slice3d.load(write([dataset], tmp_path / "pieces")).data, data)


def deflated(pixels):
    dataset = series(DATA, AFFINE)[0]
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    raw = buffer.getvalue().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    # the transfer syntax is three bytes longer
    at = raw.index(b"\x02\x00\x10\x00UI") + 6
    raw = raw[:at] + struct.pack("<H", 22) + raw[at + 2 :]
    start = raw.index(b"\x08\x00")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packer.compress(raw[start : raw.index(b"\xe0\x7f\x10\x00OW") + 8] + struct.pack("<I", pixels))
    block = bytes(2**20)
    parts = [packer.compress(block) for _ in range(pixels // len(block))]
    return raw[:start] + body + b"".join(parts) + packer.flush()


def test_deflated_files_that_unpack_without_end_are_refused(tmp_path, monkeypatch):
    (tmp_path / "IM0").write_bytes(deflated(400 * 2**20))

    def unpack(*_, **__):
        raise AssertionError("the file was unpacked")

    monkeypatch.setattr(zlib, "decompress", unpack)
    with pytest.raises(InputError, match="unpacks to more than 256 MiB"):
        slice3d.load(tmp_path / "IM0")


def test_an_archive_behind_a_dicom_file_does_not_hide_it(tmp_path):
    folder = write(series(DATA, AFFINE)[:1], tmp_path / "one")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a.txt", "x")
    file = folder / "IM0000"
    file.write_bytes(file.read_bytes() + archive.getvalue())
    np.testing.assert_array_equal(slice3d.load(file).data, DATA[:, :, :1])


@pytest.mark.parametrize("name", ["study", "study.nii.gz", "study.mha"])
def test_pipes_are_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="no ordinary file"):
        slice3d.scan(tmp_path / name)
