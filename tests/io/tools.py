"""Debian tools that check us from outside (dcm2niix, dcmtk, dicom3tools)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def needs(tool: str) -> str:
    """The path of a tool; skips without it, but fails where SLICE3D_REQUIRE_TOOLS says that it must be there (CI)."""
    found = shutil.which(tool)
    if found is None:
        if os.environ.get("SLICE3D_REQUIRE_TOOLS"):
            pytest.fail(f"{tool} is not installed, and SLICE3D_REQUIRE_TOOLS says that it must be")
        pytest.skip(f"{tool} is not installed (Debian: dcm2niix, dcmtk, dicom3tools)")
    return found


def validate(path: Path) -> list[str]:
    """The errors that dciodvfy reports about a DICOM file."""
    done = subprocess.run([needs("dciodvfy"), str(path)], capture_output=True, text=True, check=False, errors="replace")
    return [line for line in done.stderr.splitlines() if line.startswith("Error")]
