"""Damaged files: a `Slice3DError` in one line or a right volume, never a crash, a hang, much memory or wrong
geometry.
"""

from __future__ import annotations

import contextlib
import io
import resource
import tempfile
import time
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.encaps import encapsulate

import slice3d
from slice3d.errors import InputError, Slice3DError
from tests.io.dicom_files import asymmetric, enhanced, oblique, series, write

AFFINE = oblique()
DATA = asymmetric((8, 6, 4))


def plain():
    return series(DATA, AFFINE)


def packed(syntax, encode):
    datasets = series(DATA, AFFINE, slope=1, intercept=-1024.0)
    for dataset in datasets:
        dataset.PixelData = encapsulate([encode(dataset.pixel_array)])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
    return datasets


def seg_file(folder):
    volume = slice3d.load(write(plain(), folder / "study"))
    labels = np.zeros(DATA.shape, np.uint8)
    labels[1:6, 1:5, 1:3] = 1
    slice3d.save(slice3d.Segmentation(labels, volume.grid, {1: "liver"}), folder / "seg.dcm", source=volume)
    return (folder / "seg.dcm").read_bytes()


def content(dataset):
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class Samples(dict):
    """A dictionary of files that does not print them."""

    def __repr__(self):
        return "samples"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Bytes of one file of each kind, and the loader for it."""
    folder = tmp_path_factory.mktemp("samples")
    grid = slice3d.Grid(DATA.shape, AFFINE)
    volume = slice3d.Volume(DATA, grid)
    labels = slice3d.Segmentation((DATA > 0).astype(np.uint8), grid, {1: "liver"})
    for name in ("v.nii", "v.nii.gz", "v.nrrd", "v.mha"):
        slice3d.save(volume, folder / name)
    slice3d.save(labels, folder / "s.seg.nrrd")
    out = Samples(
        (name, (folder / name).read_bytes()) for name in ("v.nii", "v.nii.gz", "v.nrrd", "v.mha", "s.seg.nrrd")
    )
    out["plain.dcm"] = content(plain()[0])
    out["multi.dcm"] = content(enhanced(DATA, AFFINE))
    out["j2k.dcm"] = content(
        packed(uid.JPEG2000Lossless, lambda p: imagecodecs.jpeg2k_encode(p, reversible=True, codecformat="j2k"))[0]
    )
    out["jls.dcm"] = content(packed(uid.JPEGLSLossless, imagecodecs.jpegls_encode)[0])
    out["jpeg.dcm"] = content(packed(uid.JPEGLosslessSV1, imagecodecs.ljpeg_encode)[0])
    rle = plain()[0]
    rle.compress(uid.RLELossless, generate_instance_uid=False)
    out["rle.dcm"] = content(rle)
    out["seg.dcm"] = seg_file(folder)
    return out


KINDS = ("v.nii", "v.nii.gz", "v.nrrd", "v.mha", "s.seg.nrrd", "plain.dcm", "multi.dcm", "j2k.dcm", "jls.dcm",
         "jpeg.dcm", "rle.dcm", "seg.dcm")  # fmt: skip


def attempt(name, data):
    """List and load bytes under a name; the volume or segmentation, or None after a proper refusal."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        started = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                loader = slice3d.load_segmentation if name in ("s.seg.nrrd", "seg.dcm") else slice3d.load
                refused = None
                for step in (slice3d.scan, loader):
                    try:
                        found = step(path)
                    except Slice3DError as error:
                        refused = str(error)
                        assert refused
                        assert "\n" not in refused
                        assert folder not in refused
                return None if refused else found
        finally:
            assert time.monotonic() - started < 30


@pytest.mark.parametrize("name", KINDS)
def test_every_sample_is_sound(samples, name):
    assert attempt(name, samples[name]) is not None


@pytest.mark.parametrize("name", KINDS)
def test_truncation_anywhere(samples, name):
    """Cut at every boundary between elements (DICOM) or at many places; what still loads has the same geometry."""
    whole = samples[name]
    sound = attempt(name, whole)
    cuts = set(np.linspace(0, len(whole) - 1, 40).astype(int)) | {len(whole) - 1, len(whole) - 2}
    if name.endswith(".dcm"):
        cuts |= boundaries(whole)
    for cut in sorted(cuts):
        found = attempt(name, whole[:cut])
        if found is not None:
            assert found.grid.matches(sound.grid, tolerance_mm=1e-3), cut


def boundaries(whole):
    """Where top-level elements start, and one byte into each."""
    dataset = pydicom.dcmread(io.BytesIO(whole))
    starts = [element.file_tell - 12 for element in dataset if getattr(element, "file_tell", None)]
    spots = [
        s
        for start in starts[:: max(1, len(starts) // 40)]
        for s in (start, start + 4, start + 6, start + 8, start + 12)
    ]
    return {s for s in spots if 0 < s < len(whole)}


@pytest.mark.parametrize("name", KINDS)
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_random_bytes(samples, name, changes):
    damaged = bytearray(samples[name])
    head = min(len(damaged), 4096)
    for where, value in changes:
        # mostly in the header, where the structure is
        damaged[int(where * (head - 1))] = value
    found = attempt(name, bytes(damaged))
    if found is not None:
        assert np.isfinite(found.grid.affine).all()
        assert min(found.grid.spacing_mm) > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 6 * 2**20  # kB


@given(data=st.binary(max_size=400), magic=st.booleans(), name=st.sampled_from(KINDS))
@settings(max_examples=120, deadline=None)
def test_noise(data, magic, name):
    attempt(name, (bytes(128) + b"DICM" if magic and name.endswith(".dcm") else b"") + data)


CHANGES = {
    "no position": lambda d: delattr(d, "ImagePositionPatient"),
    "two numbers": lambda d: set_raw(d, "ImagePositionPatient", b"1\\2 "),
    "NaN position": lambda d: set_raw(d, "ImagePositionPatient", b"nan\\0\\0 "),
    "infinite position": lambda d: set_raw(d, "ImagePositionPatient", b"inf\\0\\0 "),
    "words": lambda d: set_raw(d, "ImagePositionPatient", b"left\\of\\it"),
    "no orientation": lambda d: delattr(d, "ImageOrientationPatient"),
    "NaN orientation": lambda d: set_raw(d, "ImageOrientationPatient", b"nan\\0\\0\\0\\1\\0 "),
    "no spacing": lambda d: delattr(d, "PixelSpacing"),
    "zero spacing": lambda d: set_raw(d, "PixelSpacing", b"0\\0 "),
    "NaN spacing": lambda d: set_raw(d, "PixelSpacing", b"nan\\1 "),
    "no rows": lambda d: delattr(d, "Rows"),
    "no bits": lambda d: set_raw(d, "BitsAllocated", b""),
    "13 bits": lambda d: setattr(d, "BitsAllocated", 13),
    "more rows than bytes": lambda d: setattr(d, "Rows", 65535),
    "many frames": lambda d: set_raw(d, "NumberOfFrames", b"2000000000"),
    "negative frames": lambda d: set_raw(d, "NumberOfFrames", b"-5"),
    "NaN slope": lambda d: set_raw(d, "RescaleSlope", b"nan "),
    "wrong slope": lambda d: set_raw(d, "RescaleSlope", b"1,0 "),
}
HARMLESS = {"negative frames"}


def set_raw(dataset, keyword, value):
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    tag = Tag(tag_for_keyword(keyword))
    dataset["PixelData"].VR = "OW"
    dataset[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("everywhere", [True, False])
def test_missing_and_impossible_values(tmp_path, change, everywhere):
    """In every file: refused. In one of them: refused, or that slice is reported and the rest keeps its place."""
    datasets = plain()
    for dataset in datasets if everywhere else datasets[1:2]:
        CHANGES[change](dataset)
    folder = write(datasets, tmp_path)
    volume = None
    with contextlib.suppress(InputError):
        volume = slice3d.load(folder)
    if volume is None:
        return
    expected = slice3d.Grid(DATA.shape, AFFINE)
    for k in range(volume.grid.shape[2]):
        place = expected.to_index(volume.grid.to_world((0, 0, k)))
        np.testing.assert_allclose(place[:2], 0, atol=1e-3)
    if not everywhere and change not in HARMLESS:
        assert volume.findings, "one slice was dropped or changed without a word"
    if everywhere:
        assert change in HARMLESS, "an impossible study loaded"


def test_a_billion_rows(tmp_path):
    """Rows as a 32-bit number, which some writers do: nothing is allocated for it."""
    dataset = plain()[0]
    whole = content(dataset)
    place = whole.index(b"\x28\x00\x10\x00US\x02\x00")
    damaged = whole[:place] + b"\x28\x00\x10\x00UL\x04\x00" + (10**9).to_bytes(4, "little") + whole[place + 10 :]
    (tmp_path / "a").write_bytes(damaged)
    with pytest.raises(InputError, match="1000000000 rows"):
        slice3d.load(tmp_path / "a")


def test_wrong_lengths(tmp_path):
    whole = content(plain()[0])
    for tag in (b"\x20\x00\x32\x00DS", b"\x28\x00\x30\x00DS", b"\x08\x00\x60\x00CS"):
        place = whole.index(tag) + 6
        for length in (0, 1, 3, 65534, 65535):
            damaged = whole[:place] + length.to_bytes(2, "little") + whole[place + 2 :]
            found = attempt("a.dcm", damaged)
            if found is not None and tag != b"\x08\x00\x60\x00CS":
                assert found.grid.matches(slice3d.Grid((8, 6, 1), AFFINE), tolerance_mm=0.01)


def test_truncated_series_names_the_file(tmp_path):
    folder = write(plain(), tmp_path)
    victim = folder / "IM0002"
    victim.write_bytes(victim.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"IM0002 is truncated: .* copy it again"):
        slice3d.load(folder)


def test_seg_without_frames_is_refused_clearly(tmp_path):
    seg_file(tmp_path)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.NumberOfFrames = 0
    dataset.PixelData = b""
    dataset.save_as(tmp_path / "empty.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match="without frames"):
        slice3d.load_segmentation(tmp_path / "empty.dcm")
    with pytest.raises(InputError, match="without image pixels"):
        slice3d.load(tmp_path / "empty.dcm")


def test_special_files_do_not_block(tmp_path):
    import os

    folder = write(plain(), tmp_path / "s")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder)
    np.testing.assert_array_equal(slice3d.load(folder).data, DATA)
