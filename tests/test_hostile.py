"""Input made to harm: it is refused in one line, in little time and memory, and nothing in it runs."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

import slice3d
from slice3d.errors import ModelError, Slice3DError
from slice3d.samples.study import write_study
from tests.builders import oblique_grid

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("hostile") / "s", spacing_mm=(24.0, 24.0, 60.0)).dicom


def _volume() -> slice3d.Volume:
    data = np.random.default_rng(0).integers(-900, 900, (5, 7, 11)).astype(np.int16)
    return slice3d.Volume(data, oblique_grid(), modality="CT")


# --- memory: headers that promise more than any machine has


def _giants(folder: Path, dicom: Path) -> list[Path]:
    made = []
    slice3d.save(_volume(), folder / "ok.nii")
    raw = bytearray((folder / "ok.nii").read_bytes())
    struct.pack_into("<8h", raw, 40, 3, 32767, 32767, 32767, 1, 1, 1, 1)
    made.append(folder / "giant.nii")
    made[-1].write_bytes(raw)
    struct.pack_into("<8h", raw, 40, 7, 32767, 32767, 32767, 32767, 32767, 32767, 32767)
    made.append(folder / "seven.nii")
    made[-1].write_bytes(raw)
    struct.pack_into("<8h", raw, 40, 3, -5, 7, 11, 1, 1, 1, 1)
    made.append(folder / "negative.nii")
    made[-1].write_bytes(raw)
    head = "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 200000 200000 200000\n"
    head += "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nendian: little\nencoding: raw\n\n"
    made.append(folder / "giant.nrrd")
    made[-1].write_bytes(head.encode() + b"\0" * 100)
    text = (
        "ObjectType = Image\nNDims = 3\nDimSize = 90000 90000 90000\nElementType = MET_SHORT\nElementSpacing = 1 1 1\n"
    )
    made.append(folder / "giant.mha")
    made[-1].write_bytes((text + "ElementDataFile = LOCAL\n").encode() + b"\0" * 100)
    for name, rows, frames in (("giant", 65535, None), ("frames", 512, 2_000_000_000)):
        dataset: Any = pydicom.dcmread(next(dicom.iterdir()))
        dataset.Rows = dataset.Columns = rows
        if frames:
            dataset.NumberOfFrames = frames
        made.append(folder / f"{name}.dcm")
        dataset.save_as(made[-1])
    return made


def _limited(code: str, *arguments: object, gib: float = 3.0) -> str:
    """Run Python with a hard limit on its memory and one minute; what it printed."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({int(gib * 2**30)},) * 2)\n"
    done = subprocess.run(
        [sys.executable, "-c", limit + code, *map(str, arguments)], capture_output=True, text=True, timeout=170,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


_TRY = """
import sys, slice3d
from slice3d.errors import Slice3DError
for path in sys.argv[1:]:
    for verb in (slice3d.scan, slice3d.load):
        try:
            verb(path)
            print(verb.__name__, "ok")
        except Slice3DError as error:
            assert "\\n" not in str(error), error
            print(verb.__name__, "refused")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
def test_gigantic_dimensions_cost_no_memory(tmp_path: Path, dicom: Path) -> None:
    giants = _giants(tmp_path, dicom)
    lines = _limited(_TRY, *giants).splitlines()
    assert [line for line in lines if line.startswith("load")] == ["load refused"] * len(giants)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
def test_bombs_do_not_unfold(tmp_path: Path) -> None:
    import gzip

    with (
        zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("1.dcm", "w", force_zip64=True) as member,
    ):
        for _ in range(128):
            member.write(b"\0" * (1 << 20))
    slice3d.save(_volume(), tmp_path / "ok.nii")
    small = (tmp_path / "ok.nii").read_bytes()
    zeros = gzip.compress(b"\0" * (64 << 20), compresslevel=1)
    # 5 × 7 × 11 voxels, and 4 GiB after them that no header asks for
    (tmp_path / "long.nii.gz").write_bytes(gzip.compress(small) + zeros * 64)
    large = bytearray(small)
    struct.pack_into("<8h", large, 40, 3, 32000, 32000, 4, 1, 1, 1, 1)
    # 8 GiB promised by the header, 4 GiB there
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bytes(large)) + zeros * 64)
    lines = _limited(
        _TRY, *(tmp_path / name for name in ("bomb.zip", "bomb.nii.gz", "long.nii.gz")), gib=2.0
    ).splitlines()
    assert [line for line in lines if line.startswith("load")][:2] == ["load refused"] * 2


# --- structure: nesting, links, names that lead elsewhere


def test_sequences_without_end(tmp_path: Path, dicom: Path) -> None:
    head, item = b"\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff", b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    tail = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    for n, path in enumerate(sorted(dicom.iterdir())):
        raw = path.read_bytes()
        at = raw.index(b"\x08\x00\x60\x00CS")
        (tmp_path / f"{n}.dcm").write_bytes(raw[:at] + (head + item) * 20 + tail * 20 + raw[at:])
    np.testing.assert_array_equal(slice3d.load(tmp_path).data, slice3d.load(dicom).data)
    for name, nest in (("closed", (head + item) * 3000 + tail * 3000), ("open", (head + item) * 100_000)):
        (tmp_path / f"{name}.dcm").write_bytes(raw[:at] + nest + raw[at:])
        with pytest.raises(Slice3DError):
            slice3d.load(tmp_path / f"{name}.dcm")


def test_links_out_of_the_study_are_not_followed(tmp_path: Path, dicom: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    files = sorted(dicom.iterdir())
    for path in files[:-1]:
        (study / path.name).write_bytes(path.read_bytes())
    (study / files[-1].name).symlink_to(files[-1])
    (study / "passwd").symlink_to("/etc/passwd")
    (study / "elsewhere").symlink_to(dicom)
    listing = slice3d.scan(study)
    assert listing.files == len(files) - 1
    assert "links-left-out" in {f.code for f in listing.findings}


def test_a_zip_cannot_name_files_outside(tmp_path: Path, dicom: Path) -> None:
    path = next(dicom.iterdir())
    for name in ("../evil.dcm", "/tmp/evil.dcm", "C:\\evil.dcm", "a/../../evil.dcm"):
        with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
            archive.writestr(name, path.read_bytes())
        with pytest.raises(Slice3DError):
            slice3d.load(tmp_path / "study.zip")
    assert not (tmp_path.parent / "evil.dcm").exists()


# --- code: nothing that comes in is run


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def test_pickles_in_weights_are_not_unpickled(tmp_path: Path) -> None:
    import hashlib
    import pickle
    import shutil

    from slice3d.models import packages, read_package
    from slice3d.models.loading import load_network

    package = next(iter(packages().values()))
    copy = tmp_path / "evil"
    shutil.copytree(package.folder, copy)
    weights = copy / package.weights[0].file
    weights.write_bytes(pickle.dumps(_Payload(tmp_path / "ran")))
    text = (copy / "model.json").read_text()
    old = package.weights[0].sha256
    (copy / "model.json").write_text(text.replace(old, hashlib.sha256(weights.read_bytes()).hexdigest()))
    with pytest.raises(ModelError):
        load_network(read_package(copy))
    assert not (tmp_path / "ran").exists()


SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_markup_from_a_study_is_inert_in_the_report(tmp_path: Path) -> None:
    from html.parser import HTMLParser

    from slice3d import viewer

    finding = slice3d.Finding("odd", f"The description is {SCRIPT}", details={"text": SCRIPT})
    volume = slice3d.Volume(
        _volume().data, oblique_grid(), "CT", {"SeriesDescription": SCRIPT, "ConvolutionKernel": SCRIPT}, (finding,)
    )
    labels = np.zeros((5, 7, 11), np.uint8)
    labels[1:4, 2:6, 3:9] = 1
    result = slice3d.Segmentation(labels, volume.grid, {1: SCRIPT}, findings=(finding,))
    page = tmp_path / "report.html"
    viewer.report(volume, result, {}, page)
    html = page.read_text(encoding="utf-8")

    class Reader(HTMLParser):
        tags: list[tuple[str, dict[str, str | None]]]

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.append((tag, dict(attrs)))

    reader = Reader()
    reader.tags = []
    reader.feed(html)
    assert reader.tags
    assert not [tag for tag, attributes in reader.tags if any(name.startswith("on") for name in attributes)]
    assert not [tag for tag, attributes in reader.tags if attributes.get("src") == "x"]
    assert "<script>alert(1)" not in html
    assert "Content-Security-Policy" in html


# --- meshes that are none


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_meshes_with_nan_are_refused(value: float, tmp_path: Path) -> None:
    from slice3d.io.meshes import MESH_READERS

    triangle = np.array([[0, 0, 0], [1, 0, 0], [0, value, 0]], "<f4")
    stl = b"\0" * 80 + struct.pack("<I", 1) + b"\0" * 12 + triangle.tobytes() + b"\0\0"
    (tmp_path / "a.stl").write_bytes(stl)
    (tmp_path / "giant.stl").write_bytes(stl[:80] + struct.pack("<I", 0xFFFFFFFF) + stl[84:])
    (tmp_path / "a.glb").write_bytes(_glb(triangle))
    for path in (tmp_path / "a.stl", tmp_path / "giant.stl", tmp_path / "a.glb"):
        if path.suffix in MESH_READERS:
            with pytest.raises(Slice3DError):
                MESH_READERS[path.suffix](path)


def _glb(triangle: np.ndarray[Any, Any]) -> bytes:
    document = {
        "asset": {"version": "2.0"}, "buffers": [{"byteLength": 36}], "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}], "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
    }  # fmt: skip
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    body = triangle.tobytes()
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(body), 0x004E4942) + body
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


# --- fuzz: whatever bytes come, it is a result or one line


def _mutate(raw: bytes, choice: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(choice.randint(1, 6)):
        kind = choice.random()
        at = choice.randrange(min(len(data), 2000)) if data else 0
        if kind < 0.4 and data:
            data[at] = choice.randrange(256)
        elif kind < 0.6 and len(data) > 4:
            data[at : at + 4] = choice.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x01\0\0\x80"])
        elif kind < 0.75:
            del data[choice.randrange(len(data) or 1) :]
        elif kind < 0.9:
            data[at:at] = bytes(choice.randrange(256) for _ in range(choice.randint(1, 40)))
        else:
            del data[at : at + choice.randint(1, 60)]
    return bytes(data)


def _seeds(folder: Path, dicom: Path) -> list[Path]:
    volume = _volume()
    labels = np.zeros((5, 7, 11), np.uint8)
    labels[1:4, 2:6, 3:9] = 1
    made = [folder / f"seed{suffix}" for suffix in (".nii", ".nii.gz", ".nrrd", ".mha")]
    for path in made:
        slice3d.save(volume, path)
    made.append(folder / "seed.seg.nrrd")
    slice3d.save(slice3d.Segmentation(labels, volume.grid, {1: "liver"}), made[-1])
    mesh = slice3d.Mesh(
        np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9.0]]), np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    )
    for suffix in (".stl", ".glb", ".ply", ".obj"):
        made.append(folder / f"seed{suffix}")
        slice3d.save(mesh, made[-1])
    made.append(folder / "seed.dcm")
    made[-1].write_bytes(next(dicom.iterdir()).read_bytes())
    with zipfile.ZipFile(folder / "seed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in dicom.iterdir():
            archive.write(path, path.name)
    return [*made, folder / "seed.zip"]


def fuzz(folder: Path, dicom: Path, rounds: int) -> dict[str, Counter[str]]:
    """Read `rounds` mutations of each kind of file; how many were read and how many refused, by kind.

    Raises `AssertionError` for any other end and for an error of more than one line; the culprit is kept in `folder`.
    """
    from slice3d.io.meshes import MESH_READERS

    choice, ends = random.Random(20240607), dict[str, Counter[str]]()
    for seed in _seeds(folder, dicom):
        raw, suffix = seed.read_bytes(), "".join(seed.suffixes)
        read = MESH_READERS.get(suffix) or (slice3d.load_segmentation if ".seg" in suffix else slice3d.load)
        ends[suffix] = Counter(read=0, refused=0)
        for n in range(rounds):
            path = folder / f"fuzz{suffix}"
            path.write_bytes(_mutate(raw, choice))
            try:
                read(path)
                ends[suffix]["read"] += 1
            except Slice3DError as error:
                if "\n" in str(error):
                    raise AssertionError(f"{suffix}, mutation {n}: more than one line: {error}") from error
                ends[suffix]["refused"] += 1
            except Exception as error:  # the finding of a fuzz test is the input that led to it
                keep = folder / f"culprit-{n}{suffix}"
                keep.write_bytes(path.read_bytes())
                raise AssertionError(f"{suffix}, mutation {n}: {type(error).__name__}: {error}") from error
    return ends


@pytest.mark.filterwarnings("ignore")
def test_fuzz(tmp_path: Path, dicom: Path) -> None:
    """Whatever comes is read or refused in one line; `benchmarks/cohort.py --part fuzz` is the long form."""
    ends = fuzz(tmp_path, dicom, 25)
    assert len(ends) == 11
    assert all(end["refused"] and end.total() == 25 for end in ends.values())


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".vtp"])
def test_names_that_are_no_text_never_end_the_process(suffix: str, tmp_path: Path) -> None:
    name = os.fsdecode(b"DOE\xff\xfe" + suffix.encode())
    code = """
import sys, slice3d
from pathlib import Path
from slice3d.errors import Slice3DError
from slice3d.io.meshes import MESH_READERS
path = Path(sys.argv[1])
try:
    MESH_READERS[path.suffix](path) if path.suffix in MESH_READERS else slice3d.load(path)
    print("read")
except Slice3DError as error:
    print("refused")
"""
    if suffix == ".vtp":
        corners = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9.0]])
        slice3d.save(slice3d.Mesh(corners, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])), tmp_path / "a.vtp")
    else:
        slice3d.save(_volume(), tmp_path / f"a{suffix}")
    (tmp_path / f"a{suffix}").rename(tmp_path / name)
    said = _limited(code, tmp_path / name, gib=4.0).strip()
    assert said == ("read" if suffix.startswith(".nii") else "refused")
