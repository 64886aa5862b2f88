"""The short form of the fault run; the long one is `benchmarks/cohort.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cohort.faults import fault_run, small_disk
from tests.cohort.real import install_model


def test_nothing_is_lost_when_workers_and_the_scheduler_die_and_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    install_model(tmp_path / "cache")
    outcome = fault_run(tmp_path, studies=16, kills=2, restarts=1, corrupt=3)
    with small_disk(tmp_path / "probe", 1) as mountable:
        assert outcome.disk_full == mountable
    assert (outcome.worker_kills, outcome.scheduler_restarts) == (2, 1)
    assert (outcome.complete, outcome.failed) == (13, 3)
    assert (outcome.without_reason, outcome.leftovers) == (0, ())
    # a case that was finished is not done again; one may be killed between its end and its commit
    assert outcome.twice <= outcome.worker_kills
    # one case per killed worker, all that were under way when the scheduler died or the disk was full
    assert outcome.begun_again <= outcome.worker_kills + 2 * outcome.scheduler_restarts + 2 * outcome.disk_full + 2
