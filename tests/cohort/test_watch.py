"""A folder that studies are sent to, with transfers that stall, break off and go on."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from slice3d.cohort import CohortSettings, Job, WatchSettings, watch
from slice3d.cohort.store import Record
from slice3d.cohort.watch import _Inbox
from slice3d.errors import InputError
from tests.cohort.stubs import Stub, journal, manifest

SETTINGS = CohortSettings(workers=1, memory_gib=1.0, min_free_gib=0.0, threads=1, timeout_s=60)


def _study(inbox: Path, name: str, text: str) -> Path:
    folder = inbox / name
    folder.mkdir(exist_ok=True)
    (folder / "study.txt").write_text(text)
    return folder


def _settled(inbox: _Inbox) -> list[str]:
    return [Path(case.source).name for case in inbox._settled()]


def test_a_study_is_given_out_once_when_nothing_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: 0.0)  # the time of day plays no part
    inbox = _Inbox(tmp_path, b"salt", WatchSettings(settle_s=10.0))
    assert _settled(inbox) == []
    folder = _study(tmp_path, "A", "1")
    seen = []
    for second in range(60):
        now[0] = 100.0 + second
        if second == 5:
            (folder / "image.part").write_text("")  # a transfer in progress
        if second == 25:
            (folder / "image.part").rename(folder / "image.dcm")
        if second == 40:
            (folder / "late.dcm").write_text("more")
        seen += [(second, name) for name in _settled(inbox)]
    assert seen == [(35, "A"), (50, "A")]


def test_what_comes_later_replaces_what_came_first(tmp_path: Path) -> None:
    inbox, out = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    records: list[Record] = []
    stop = threading.Event()
    job = Job(Stub(str(tmp_path / "journal")), "stub")

    def run() -> None:
        settings = WatchSettings(settle_s=0.5, poll_s=0.1)
        records.extend(watch(inbox, out, job=job, settings=settings, execution=SETTINGS, stop=stop.is_set))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        _study(inbox, "DOE_JANE", "corrupt")  # broke off in the middle of a file
        _study(inbox, "ROE_RICHARD", "1600")
        _wait(lambda: (out / "index.html").exists() and "corrupt" in str(journal(tmp_path / "journal")))
        _wait(lambda: len(list((out / "cases").iterdir())) == 1)
        _study(inbox, "DOE_JANE", "1500")
        _wait(lambda: len(list((out / "cases").iterdir())) == 2)
        _study(inbox, "DOE_JANE", "1550")
        _wait(lambda: "1550" in (out / "cohort.csv").read_text())
    finally:
        stop.set()
        thread.join(60)
    assert [(r.status, r.kind) for r in records].count(("failed", "input")) == 1
    cases = sorted(p.name for p in (out / "cases").iterdir())
    assert len(cases) == 2
    assert all(manifest(out, case) for case in cases)
    assert not [p for p in out.rglob("*") if "DOE" in p.name or (p.is_file() and b"DOE" in p.read_bytes())]


def _wait(condition: object, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.1)
    pytest.fail("it did not happen")


def test_folders_that_cannot_be_watched(tmp_path: Path) -> None:
    job = Job(Stub(""), "stub")
    with pytest.raises(InputError, match="not a folder"):
        next(watch(tmp_path / "none", tmp_path / "out", job=job))
    with pytest.raises(InputError, match="taken for studies"):
        next(watch(tmp_path, tmp_path / "out", job=job))
    with pytest.raises(InputError, match="settle_s"):
        WatchSettings(settle_s=0)
