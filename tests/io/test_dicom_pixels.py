"""Stored bits become the values the modality means, for every transfer syntax a hospital sends."""

from __future__ import annotations

import subprocess

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import generate_uid

import slice3d
from slice3d.errors import InputError
from tests.io.dicom_files import asymmetric, enhanced, image, oblique, series, slice_affine, write
from tests.io.tools import needs

AFFINE = oblique()


def codes(volume):
    return {f.code for f in volume.findings}


def smooth(shape=(40, 32, 3), bits=12):
    """A picture that lossy codecs keep well: (i, j, k) stored values of `bits` bits."""
    i, j, k = np.indices(shape)
    values = (np.sin(i / 9.0) + np.cos(j / 7.0) + 0.2 * k + 2.0) / 5.0
    return np.rint(values * (2**bits - 1)).astype(np.uint16)


def compressed(stored, syntax, encode, **options):
    """A series of frames that `encode` compressed. stored: (i, j, k)."""
    datasets = series(stored.astype(float), AFFINE, slope=1.0, intercept=0.0, stored=stored.dtype, **options)
    for k, dataset in enumerate(datasets):
        dataset.PixelData = encapsulate([encode(np.ascontiguousarray(stored[:, :, k].T))])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
    return datasets


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("stored", [np.uint16, np.int16])
def test_uncompressed_syntaxes(tmp_path, syntax, stored):
    data = asymmetric()
    intercept = -1024.0 if stored is np.uint16 else 0.0
    volume = slice3d.load(write(series(data, AFFINE, stored=stored, intercept=intercept, syntax=syntax), tmp_path))
    assert volume.data.dtype == np.int16
    np.testing.assert_array_equal(volume.data, data)


def test_big_endian(tmp_path):
    data = asymmetric()
    datasets = series(data, AFFINE, syntax=uid.ExplicitVRBigEndian)
    for dataset in datasets:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    np.testing.assert_array_equal(slice3d.load(write(datasets, tmp_path)).data, data)


LOSSLESS = [
    (uid.JPEG2000Lossless, lambda p: imagecodecs.jpeg2k_encode(p, reversible=True, codecformat="j2k")),
    (uid.JPEG2000Lossless, lambda p: imagecodecs.jpeg2k_encode(p, reversible=True, codecformat="jp2")),
    (uid.HTJ2KLossless, lambda p: imagecodecs.htj2k_encode(p, reversible=True)),
    (uid.HTJ2K, lambda p: imagecodecs.htj2k_encode(p, reversible=True)),
    (uid.JPEGLSLossless, imagecodecs.jpegls_encode),
    (uid.JPEGLossless, imagecodecs.ljpeg_encode),
    (uid.JPEGLosslessSV1, imagecodecs.ljpeg_encode),
]


@pytest.mark.parametrize(("syntax", "encode"), LOSSLESS)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_syntaxes(tmp_path, syntax, encode, bits):
    stored = smooth(bits=bits).astype(np.uint8 if bits == 8 else np.uint16)
    datasets = compressed(stored, syntax, encode, extra={"BitsStored": bits, "HighBit": bits - 1})
    volume = slice3d.load(write(datasets, tmp_path))
    np.testing.assert_array_equal(volume.data, stored)


def test_rle(tmp_path):
    data = asymmetric((40, 32, 3))
    datasets = series(data, AFFINE)
    for dataset in datasets:
        dataset.compress(uid.RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(slice3d.load(write(datasets, tmp_path)).data, data)


@pytest.mark.parametrize(
    ("syntax", "encode", "bits", "tolerance"),
    [
        (uid.JPEGBaseline8Bit, lambda p: imagecodecs.jpeg8_encode(p.astype(np.uint8), level=98), 8, 3),
        (uid.JPEGExtended12Bit, lambda p: imagecodecs.jpeg8_encode(p, level=98, bitspersample=12), 12, 24),
        (uid.JPEGLSNearLossless, lambda p: imagecodecs.jpegls_encode(p, level=2), 12, 2),
        (uid.JPEG2000, lambda p: imagecodecs.jpeg2k_encode(p, level=90, codecformat="j2k"), 12, 16),
    ],
)
def test_lossy_syntaxes(tmp_path, syntax, encode, bits, tolerance):
    stored = smooth(bits=bits).astype(np.uint8 if bits == 8 else np.uint16)
    datasets = compressed(stored, syntax, encode, extra={"BitsStored": bits, "HighBit": bits - 1})
    volume = slice3d.load(write(datasets, tmp_path))
    assert np.abs(volume.data.astype(int) - stored).max() <= tolerance


@pytest.mark.parametrize("codec", ["+e1", "+el", "+ee", "+eb"])
def test_what_another_toolkit_compressed(tmp_path, codec):
    needs("dcmcjpeg")
    stored = smooth()
    plain = series(stored.astype(float), AFFINE, intercept=0.0, extra={"BitsStored": 12, "HighBit": 11})
    (tmp_path / "out").mkdir()
    write(plain, tmp_path / "in")
    for file in sorted((tmp_path / "in").iterdir()):
        subprocess.run(
            ["dcmcjpeg", codec, "--uid-never", str(file), str(tmp_path / "out" / file.name)],
            check=True,
            capture_output=True,
        )
    volume = slice3d.load(tmp_path / "out")
    if codec in ("+e1", "+el"):
        np.testing.assert_array_equal(volume.data, stored)
    else:
        # pydicom's decoder is the independent reader of the lossy ones
        files = sorted((pydicom.dcmread(f) for f in (tmp_path / "out").iterdir()), key=lambda d: d.InstanceNumber)
        expected = np.stack(
            [d.pixel_array.T * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in files], axis=2
        )
        assert np.abs(volume.data - expected).max() <= 1.01 * float(files[0].RescaleSlope)


def test_jpeg_ls_of_another_toolkit(tmp_path):
    needs("dcmcjpls")
    stored = smooth()
    write(series(stored.astype(float), AFFINE, intercept=0.0, extra={"BitsStored": 12, "HighBit": 11}), tmp_path / "in")
    (tmp_path / "out").mkdir()
    for file in sorted((tmp_path / "in").iterdir()):
        subprocess.run(
            ["dcmcjpls", "+el", str(file), str(tmp_path / "out" / file.name)], check=True, capture_output=True
        )
    np.testing.assert_array_equal(slice3d.load(tmp_path / "out").data, stored)


def test_compressed_multiframe(tmp_path):
    data = asymmetric((16, 12, 5))
    dataset = enhanced(data, AFFINE)
    frames = [
        imagecodecs.jpegls_encode(np.ascontiguousarray((data[:, :, k].T + 1024).astype(np.uint16))) for k in range(5)
    ]
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = uid.JPEGLSLossless
    np.testing.assert_array_equal(slice3d.load(write([dataset], tmp_path)).data, data)


@pytest.mark.parametrize("value", [-3024, -2000, -32768])
def test_padding_becomes_air(tmp_path, value):
    data = np.maximum(asymmetric(), -1000)
    marked = data.copy()
    marked[:2] = value
    datasets = series(marked, AFFINE, stored=np.int16, intercept=0.0)
    for dataset in datasets:
        dataset.add_new("PixelPaddingValue", "SS", value)
    volume = slice3d.load(write(datasets, tmp_path))
    assert (volume.data[:2] == -1024).all()
    np.testing.assert_array_equal(volume.data[2:], data[2:])
    finding = next(f for f in volume.findings if f.code == "padding-replaced")
    assert finding.details["voxels"] == 2 * data.shape[1] * data.shape[2]


def test_padding_declared_inside_the_range_of_tissue_is_left_alone(tmp_path):
    data = asymmetric()
    datasets = series(data, AFFINE, stored=np.int16, intercept=0.0)
    for dataset in datasets:
        dataset.add_new("PixelPaddingValue", "SS", 0)
    volume = slice3d.load(write(datasets, tmp_path))
    np.testing.assert_array_equal(volume.data, data)
    assert "padding-replaced" not in codes(volume)


def test_rescale_that_differs_from_slice_to_slice(tmp_path):
    stored = np.random.default_rng(1).integers(0, 30000, (9, 7, 4)).astype(np.int16)
    uids = {"series": generate_uid(), "study": generate_uid()}
    slopes = [0.37, 1.91, 0.0421, 7.5]
    files = [
        image(
            stored[:, :, k].T, slice_affine(AFFINE, k), number=k, modality="PT", slope=slopes[k], intercept=0.0, **uids
        )
        for k in range(4)
    ]
    volume = slice3d.load(write(files, tmp_path))
    assert volume.data.dtype == np.float32
    np.testing.assert_allclose(volume.data, stored * np.array(slopes), rtol=1e-6)


def test_unsigned_values_beyond_sixteen_signed_bits(tmp_path):
    stored = np.random.default_rng(1).integers(0, 65535, (9, 7, 4)).astype(np.uint16)
    datasets = series(stored.astype(float), AFFINE, intercept=0.0, modality="MR", slope=None)
    volume = slice3d.load(write(datasets, tmp_path))
    np.testing.assert_array_equal(volume.data, stored)
    assert volume.data.dtype == np.int32


def test_bits_above_the_stored_ones_are_no_part_of_the_value(tmp_path):
    data = asymmetric(seed=4)
    datasets = series(data, AFFINE, extra={"BitsStored": 12, "HighBit": 11})
    for dataset in datasets:
        stored = np.frombuffer(dataset.PixelData, "<u2") & 0x0FFF
        dataset.PixelData = (stored | 0xF000).tobytes()
    np.testing.assert_array_equal(slice3d.load(write(datasets, tmp_path)).data, np.minimum(data, 3071))


def test_sign_is_extended_from_the_stored_bits(tmp_path):
    data = np.clip(asymmetric(seed=5), -2048, 2047)
    datasets = series(data, AFFINE, stored=np.int16, intercept=0.0, extra={"BitsStored": 12, "HighBit": 11})
    for dataset in datasets:
        dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") & 0x0FFF).tobytes()
    np.testing.assert_array_equal(slice3d.load(write(datasets, tmp_path)).data, data)


def test_display_inversion_applies_to_signal_and_not_to_hounsfield_units(tmp_path):
    data = asymmetric()
    ct = slice3d.load(write(series(data, AFFINE, extra={"PhotometricInterpretation": "MONOCHROME1"}), tmp_path / "ct"))
    np.testing.assert_array_equal(ct.data, data)
    stored = (data + 1000).astype(np.uint16)
    extra = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    mr = series(stored.astype(float), AFFINE, slope=None, modality="MR", extra=extra)
    volume = slice3d.load(write(mr, tmp_path / "mr"))
    np.testing.assert_array_equal(volume.data, 4095 - stored)
    assert "inverted" in codes(volume)


def test_real_world_values_where_there_is_no_rescale(tmp_path):
    stored = asymmetric() + 1000
    mapping = Dataset()
    mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 0.5, 10.0
    mapping.RealWorldValueFirstValueMapped, mapping.RealWorldValueLastValueMapped = 0, 65535
    datasets = series(stored.astype(float), AFFINE, slope=None, modality="MR")
    for dataset in datasets:
        dataset.RealWorldValueMappingSequence = [mapping]
    np.testing.assert_allclose(slice3d.load(write(datasets, tmp_path)).data, stored * 0.5 + 10, rtol=1e-6)


def test_modality_lookup_table(tmp_path):
    stored = np.random.default_rng(0).integers(0, 64, (9, 7, 4))
    table = (np.arange(64) ** 2).astype(np.uint16)
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [64, 0, 16], "US"
    item.LUTData = table.tobytes()
    item["LUTData"].VR = "OW"
    datasets = series(stored.astype(float), AFFINE, slope=None, modality="MR", extra={"ModalityLUTSequence": [item]})
    np.testing.assert_array_equal(slice3d.load(write(datasets, tmp_path)).data, table[stored])


def test_philips_private_scale(tmp_path):
    stored = asymmetric() + 1000
    datasets = series(stored.astype(float) * 4 - 8, AFFINE, slope=None, modality="MR")
    for k, dataset in enumerate(datasets):
        dataset.PixelData = np.ascontiguousarray(stored[:, :, k].T.astype("<u2")).tobytes()
        dataset.RescaleSlope, dataset.RescaleIntercept = "4", "-8"
        block = dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
        block.add_new(0x0E, "FL", 0.0125)
    volume = slice3d.load(write(datasets, tmp_path))
    np.testing.assert_allclose(volume.data, (stored - 2) / 0.0125, rtol=1e-5)
    assert "philips-scaling" in codes(volume)


def test_enhanced_ct_with_rescale_per_frame(tmp_path):
    data = asymmetric((6, 5, 4))
    groups = []
    for k in range(4):
        transform = Dataset()
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = 1, -1024 + 100 * k, "HU"
        groups.append({"PixelValueTransformationSequence": transform})
    dataset = enhanced(data, AFFINE, groups=groups)
    expected = data + 100 * np.arange(4)
    np.testing.assert_array_equal(slice3d.load(write([dataset], tmp_path)).data, expected)


def test_colour_pictures_are_refused_as_a_volume(tmp_path):
    datasets = series(
        asymmetric(), AFFINE, extra={"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    )
    for dataset in datasets:
        dataset.PixelData = bytes(3 * dataset.Rows * dataset.Columns)
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
    with pytest.raises(InputError, match="colour pictures"):
        slice3d.load(write(datasets, tmp_path))


def test_a_film_is_refused_by_name(tmp_path):
    stored = smooth(bits=8).astype(np.uint8)
    datasets = compressed(stored, uid.MPEG4HP41, lambda p: p.tobytes(), extra={"BitsStored": 8, "HighBit": 7})
    with pytest.raises(InputError, match=r"MPEG-4.*expected one for still pictures"):
        slice3d.load(write(datasets, tmp_path))


def test_a_stream_of_another_size_than_its_header_is_refused(tmp_path):
    stored = smooth()
    datasets = compressed(stored, uid.JPEGLSLossless, imagecodecs.jpegls_encode)
    for dataset in datasets:
        dataset.Rows = 30000
    with pytest.raises(InputError, match="where its header says 30000"):
        slice3d.load(write(datasets, tmp_path))


def test_signed_stream_under_an_unsigned_header_is_refused(tmp_path):
    stored = smooth().astype(np.int16) - 2000
    encode = lambda p: imagecodecs.jpeg2k_encode(p, reversible=True, codecformat="j2k")  # noqa: E731
    datasets = compressed(stored, uid.JPEG2000Lossless, encode, extra={"PixelRepresentation": 0})
    with pytest.raises(InputError, match="negative"):
        slice3d.load(write(datasets, tmp_path))


def test_unsigned_stream_under_a_signed_header_keeps_the_bits(tmp_path):
    stored = smooth().astype(np.int16) - 2000
    encode = lambda p: imagecodecs.jpeg2k_encode(p.view(np.uint16), reversible=True, codecformat="j2k")  # noqa: E731
    volume = slice3d.load(write(compressed(stored, uid.JPEG2000Lossless, encode), tmp_path))
    np.testing.assert_array_equal(volume.data, stored)
