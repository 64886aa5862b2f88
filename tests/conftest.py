"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# a busy machine is no reason for a red test (pytest's own timeout stays), nor is chance where `.ci/run` checks a change: it
# draws the same examples each time, a developer's runs search further
settings.register_profile("slice3d", deadline=None, derandomize=bool(os.environ.get("SLICE3D_FIXED_EXAMPLES")))
settings.load_profile("slice3d")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data (`SLICE3D_TEST_DATA`, default `../shared/data` beside the repository)."""
    root = Path(os.environ.get("SLICE3D_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "manifest.json").is_file():
        message = f"real data absent: no {root.name}/manifest.json at SLICE3D_TEST_DATA or ../shared/data"
        if os.environ.get("SLICE3D_REQUIRE_DATA"):
            pytest.fail(message)
        pytest.skip(message)
    return root
