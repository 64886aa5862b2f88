"""Against a real server: find, fetch, push back, refuse, verify certificates."""

from __future__ import annotations

import hashlib
import shutil
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pydicom
import pytest

import slice3d
from slice3d.errors import InputError
from slice3d.pacs import Auth, fetched, find_studies, push, study_identity
from tests.pacs import orthanc

AUTH = Auth(user=orthanc.USER, password=orthanc.PASSWORD)


@pytest.fixture(scope="module")
def root(archive: int, study: Path) -> str:
    address = f"dicomweb+http://127.0.0.1:{archive}/dicom-web"
    assert push(sorted(study.iterdir()), address, auth=AUTH) == len(list(study.iterdir()))
    return address


def _uid(study: Path) -> str:
    return str(pydicom.dcmread(next(study.iterdir()), stop_before_pixels=True).StudyInstanceUID)


def test_a_study_comes_back_as_it_was(root: str, study: Path) -> None:
    (address,) = find_studies(f"{root}?ModalitiesInStudy=CT", auth=AUTH)
    assert address == f"{root}/studies/{_uid(study)}"
    with fetched(address, auth=AUTH) as folder:
        names = [p.name for p in folder.iterdir()]
        assert all(name[:6].isdigit() and name.endswith(".dcm") for name in names)
        assert folder.stat().st_mode & 0o077 == 0
        got, had = slice3d.load(folder), slice3d.load(study)
    assert not folder.exists()
    np.testing.assert_array_equal(got.data, had.data)
    np.testing.assert_allclose(got.grid.affine, had.grid.affine)


def test_one_series_of_it(root: str, study: Path) -> None:
    first = pydicom.dcmread(next(study.iterdir()), stop_before_pixels=True)
    with fetched(f"{root}/studies/{first.StudyInstanceUID}/series/{first.SeriesInstanceUID}", auth=AUTH) as folder:
        assert len(list(folder.iterdir())) == len(list(study.iterdir()))


def test_identity_is_known_without_fetching_and_changes_with_the_study(root: str, study: Path, tmp_path: Path) -> None:
    address = f"{root}/studies/{_uid(study)}"
    uids = sorted(str(pydicom.dcmread(p, stop_before_pixels=True).SOPInstanceUID) for p in study.iterdir())
    assert study_identity(address, auth=AUTH) == hashlib.sha256("\n".join(uids).encode()).hexdigest()


def test_results_go_back_into_the_study(root: str, archive: int, study: Path, tmp_path: Path) -> None:
    volume = slice3d.load(study)
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[5:12, 6:14, 3:8] = 1
    result = slice3d.Segmentation(labels, volume.grid, {1: "liver"})
    slice3d.save(result, tmp_path / "liver.dcm", source=volume)
    before = orthanc.count(archive, "series")
    assert push([tmp_path / "liver.dcm"], root, auth=AUTH) == 1
    assert orthanc.count(archive, "series") == before + 1
    assert orthanc.count(archive, "studies") == 1
    with fetched(f"{root}/studies/{_uid(study)}", auth=AUTH) as folder:
        stored = [pydicom.dcmread(p) for p in sorted(folder.iterdir())]
        (seg,) = [p for p, d in zip(sorted(folder.iterdir()), stored, strict=True) if d.Modality == "SEG"]
        back = slice3d.load_segmentation(seg, reference=volume)
    np.testing.assert_array_equal(back.mask("liver"), labels == 1)


def test_the_whole_archive_as_a_cohort(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slice3d.cohort import find_cases

    monkeypatch.setenv("SLICE3D_DICOMWEB_USER", orthanc.USER)
    monkeypatch.setenv("SLICE3D_DICOMWEB_PASSWORD", orthanc.PASSWORD)
    (case,) = find_cases(f"{root}?StudyDate=20000101")
    assert case.source.startswith(root)


@pytest.mark.parametrize(
    ("auth", "path", "words"),
    [
        (None, "/dicom-web", "refuses access"),
        (Auth(user=orthanc.USER, password="wrong"), "/dicom-web", "refuses access"),
        (Auth(token="nonsense"), "/dicom-web", "refuses access"),
        (AUTH, "/elsewhere", "404|DICOMweb"),
    ],
)
def test_refusals_are_one_line_without_secrets(auth: Auth | None, path: str, words: str, archive: int) -> None:
    with pytest.raises(InputError, match=words) as caught:
        find_studies(f"dicomweb+http://127.0.0.1:{archive}{path}?PatientName=DOE^JANE", auth=auth)
    assert "wrong" not in str(caught.value)
    assert "DOE" not in str(caught.value)


def test_a_study_that_is_not_there(root: str) -> None:
    with pytest.raises(InputError, match="does not hold"), fetched(f"{root}/studies/1.2.3.4", auth=AUTH):
        pytest.fail("it is not there")


def test_a_study_that_is_too_large(root: str, study: Path) -> None:
    with (
        pytest.raises(InputError, match="larger than"),
        fetched(f"{root}/studies/{_uid(study)}", auth=AUTH, max_bytes=10_000),
    ):
        pytest.fail("it is too large")


def test_nobody_there() -> None:
    from slice3d.cohort.reasons import classify

    with pytest.raises(InputError, match="does not answer") as caught:
        find_studies(f"dicomweb+http://127.0.0.1:{orthanc.free_port()}/dicom-web")
    assert classify(caught.value) == "resource"


class _Empty(BaseHTTPRequestHandler):
    """An archive without studies."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *args: object) -> None:
        pass


def test_certificates_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Empty) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"dicomweb://localhost:{server.server_port}/dicom-web"
        with pytest.raises(InputError, match="certificate cannot be verified"):
            find_studies(address, auth=AUTH)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert.pem"))
        with pytest.raises(InputError, match="no study"):
            find_studies(address, auth=AUTH)
        server.shutdown()
