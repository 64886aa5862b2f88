"""The short form of the fault run; the long one is `benchmarks/cohort.py`."""

from __future__ import annotations

from pathlib import Path

from tests.cohort.faults import fault_run


def test_nothing_is_lost_or_done_twice_when_workers_and_the_scheduler_die(tmp_path: Path) -> None:
    outcome = fault_run(tmp_path, studies=24, kills=3, restarts=1, corrupt=3, seconds=0.1)
    assert (outcome.worker_kills, outcome.scheduler_restarts, outcome.disk_full) == (3, 1, 1)
    assert (outcome.done, outcome.failed) == (21, 3)
    assert (outcome.lost, outcome.without_reason, outcome.leftovers) == (0, 0, 0)
    # a case that was finished is not done again; one may be killed between its end and its commit
    assert outcome.twice <= outcome.worker_kills
    assert outcome.begun_again <= outcome.worker_kills + 2 * outcome.scheduler_restarts + outcome.disk_full
