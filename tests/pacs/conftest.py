"""One archive for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from slice3d.samples.study import write_study
from tests.pacs import orthanc


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    reason = orthanc.missing()
    if reason and os.environ.get("SLICE3D_REQUIRE_ORTHANC"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    with orthanc.orthanc(tmp_path_factory.mktemp("orthanc")) as port:
        yield port


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CT study of 20 to 30 slices."""
    return write_study(tmp_path_factory.mktemp("sample") / "study", spacing_mm=(12.0, 12.0, 20.0)).dicom
