"""Studies and results whose paths are no text, or longer than many programs bear."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pandas as pd
import pytest

from slice3d.cohort import CohortSettings, run_cohort
from tests.cohort.real import install_model, job, write_study


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
def test_a_real_cohort_below_paths_of_300_bytes_that_are_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    install_model(tmp_path / "cache")
    name = os.fsdecode(b"DOE\xff\xfe")
    deep = tmp_path / name / ("d" * 100) / ("e" * 100) / ("f" * 100)
    volume = write_study(deep / "in" / name, 1)
    for path in list((deep / "in" / name).iterdir()):
        path.rename(path.with_name(f"{name}{path.name}"))
    execution = CohortSettings(memory_gib=3.0, min_free_gib=0.0, threads=1)
    result = run_cohort(deep / "in", deep / "out", job=job(), execution=execution)
    assert (result.done, result.failed) == (1, 0), result.table.reason.tolist()
    assert result.table.volume_ml.tolist() == pytest.approx([volume], abs=0.01)
    (case,) = (deep / "out" / "cases").iterdir()
    assert {"case.json", "liver.stl", "segmentation.nii.gz", "segmentation.seg.nrrd"} <= {
        p.name for p in case.iterdir()
    }
    table = pd.read_csv(deep / "out" / "cohort.csv")
    assert table.case.tolist() == [case.name]
    assert len(os.fsencode(case)) > 300
    assert not [p for p in (deep / "out").rglob("*") if p.is_file() and b"DOE" in p.read_bytes()]
