"""A real archive for tests: Orthanc with its DICOMweb plugin on loopback, with a store of its own."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "slice3d", "not-a-secret"


def missing() -> str:
    """Why there is no archive to test against; "" when there is one."""
    if shutil.which("Orthanc") is None or not PLUGIN.exists():
        return "Orthanc is not installed: apt-get install orthanc orthanc-dicomweb"
    return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def orthanc(folder: Path, *, certificate: Path | None = None) -> Iterator[int]:
    """Run it; gives its port."""
    port = free_port()
    settings = {
        "Name": "test", "StorageDirectory": str(folder / "store"), "IndexDirectory": str(folder / "store"),
        "HttpPort": port, "DicomServerEnabled": False, "RemoteAccessAllowed": True, "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD}, "Plugins": [str(PLUGIN)], "ConcurrentJobs": 1,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
    }  # fmt: skip
    if certificate is not None:
        settings |= {"SslEnabled": True, "SslCertificate": str(certificate)}
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("w") as log:
        server = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log, cwd=folder)
    try:
        _wait(port, server, folder / "orthanc.log")
        yield port
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(10)


def _wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"Orthanc ended: {log.read_text()[-2000:]}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("Orthanc did not start")


def count(port: int, what: str) -> int:
    """How many patients, studies, series or instances it holds, asked by its own interface."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{what}")
    manager = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    manager.add_password(None, request.full_url, USER, PASSWORD)
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(manager))
    with opener.open(request, timeout=10) as answer:
        return len(json.load(answer))
