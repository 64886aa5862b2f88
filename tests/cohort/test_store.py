"""The output folder after a kill at any instant, and one case in one process without Dask."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from slice3d.cohort import Case, CohortSettings, Job
from slice3d.cohort.job import CaseInput
from slice3d.cohort.reasons import classify, explain, redact
from slice3d.cohort.store import RECORD, Record, Store
from slice3d.cohort.work import TIMED_OUT, Process, Task, do_case
from slice3d.errors import InputError, ModelError
from slice3d.progress import Progress
from tests.cohort.stubs import Stub, journal, make_cohort

SETTINGS = CohortSettings(min_free_gib=0.0, memory_gib=1.0)


class _Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "out")
    made.prepare()
    return made


def _task(tmp_path: Path, job: Job | None = None, settings: CohortSettings = SETTINGS, word: str = "1500") -> Task:
    if not (tmp_path / "in").exists():
        make_cohort(tmp_path / "in", [word])
    case = Case(1, str(tmp_path / "in" / "DOE_JANE_0000"))
    return Task(case, str(tmp_path / "out"), job or Job(Stub(str(tmp_path / "journal")), "stub"), settings, "run", b"s")


def _put(store: Store, key: str, content: str) -> None:
    result = store.staging("a") / "result"
    result.mkdir()
    (result / "liver.stl").write_text(content)
    store.commit(Record("a", key, "done"), result)


def _count_renames(store: Store, monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    rename, left = Path.rename, [allowed]

    def limited(self: Path, target: Path) -> Path:
        if left[0] == 0:
            raise _Killed
        left[0] -= 1
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", limited)


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_killed_between_the_renames_of_a_commit(
    allowed: int, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _put(store, "old", "old")
    with monkeypatch.context() as patch, contextlib.suppress(_Killed):
        _count_renames(store, patch, allowed)
        _put(store, "new", "new")
    # The work of the second run was complete: it is found, whatever was left undone.
    found = store.finished("a", "new")
    assert found is not None
    assert (store.folder("a") / "liver.stl").read_text() == "new"
    assert store.finished("a", "old") is None
    assert not (store.inner / "staging" / "a").exists()


def test_killed_before_the_commit_keeps_what_was_there(store: Store) -> None:
    _put(store, "old", "old")
    (store.staging("a") / "result").mkdir()
    (store.inner / "staging" / "a" / "result" / "liver.stl").write_text("half")
    assert store.finished("a", "new") is None
    assert store.finished("a", "old") is not None
    assert (store.folder("a") / "liver.stl").read_text() == "old"
    assert list(store.staging("a").iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": 3}', '{"case": "a", "key": "k", "status": "done", "x": 1}'])
def test_a_damaged_record_is_no_record(text: str, store: Store) -> None:
    _put(store, "key", "x")
    (store.folder("a") / RECORD).write_text(text)
    assert store.finished("a", "key") is None


@pytest.mark.parametrize("harm", ["deleted", "cut"])
def test_a_case_whose_files_are_gone_or_cut_is_not_finished(harm: str, store: Store) -> None:
    _put(store, "key", "surface")
    path = store.folder("a") / "liver.stl"
    path.unlink() if harm == "deleted" else path.write_text("")  # as after a power cut
    assert store.finished("a", "key") is None
    _put(store, "key", "surface")
    assert store.finished("a", "key") is not None
    (store.folder("a") / "note.txt").write_text("what a user puts beside them does not matter")
    assert store.finished("a", "key") is not None


def test_a_worker_that_dies_on_a_case_is_believed_only_so_often(tmp_path: Path, store: Store) -> None:
    def die(case: CaseInput, out: Path, progress: Progress) -> None:
        raise _Killed

    task = _task(tmp_path, Job(die, "die"), replace(SETTINGS, deaths=3))
    for _ in range(3):
        with pytest.raises(_Killed):
            do_case(task, Process())
    record = do_case(task, Process())
    assert (record.status, record.kind, record.attempts) == ("failed", "crash", 3)
    with pytest.raises(_Killed):  # the next run tries again
        do_case(replace(task, run="another"), Process())


def test_a_worker_that_died_after_committing_leaves_nothing(tmp_path: Path, store: Store) -> None:
    task = _task(tmp_path)
    record = do_case(task, Process())
    assert record.status == "done"
    store.begin_attempt(record.case, record.key)
    store.staging(record.case)
    assert do_case(task, Process()).status == "done"
    assert not list((store.inner / "attempts").iterdir())
    assert not list((store.inner / "staging").iterdir())


def test_time_out_ends_the_process_after_noting_it_and_spares_the_neighbour(tmp_path: Path, store: Store) -> None:
    ended = threading.Event()

    def wait(case: CaseInput, out: Path, progress: Progress) -> None:
        ended.wait(10)
        raise InputError("ended")

    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    neighbour = []
    process = Process(end=end, running={"neighbour": lambda: neighbour.append("taken back")})
    task = _task(tmp_path, Job(wait, "wait"), replace(SETTINGS, timeout_s=0.2))
    keep: list[Record | None] = []
    process.end = lambda code: (keep.append(_only_failure(store)), end(code))[-1]
    do_case(task, process)
    assert codes == [TIMED_OUT]
    assert neighbour == ["taken back"]
    assert keep[0] is not None
    assert keep[0].kind == "timeout"


def _only_failure(store: Store) -> Record | None:
    (path,) = (store.inner / "failed").iterdir()
    from slice3d.cohort.store import _record

    return _record(path)


def test_loading_overlaps_with_inference_which_is_done_one_at_a_time(tmp_path: Path, store: Store) -> None:
    events: list[tuple[str, str]] = []

    def case(given: CaseInput, out: Path, progress: Progress) -> None:
        name = given.study.name[-1]
        events.append((name, "load"))
        progress("segment", 0.0)
        events.append((name, "begin"))
        time.sleep(0.15)
        progress("segment", 0.5)
        events.append((name, "end"))
        progress("segment", 1.0)
        progress("surfaces", 0.0)
        time.sleep(0.05)
        raise InputError("enough seen")

    make_cohort(tmp_path / "in", ["1", "2"])
    process = Process()
    tasks = [
        replace(_task(tmp_path, Job(case, "x")), case=Case(n, str(tmp_path / "in" / f"DOE_JANE_000{n}")))
        for n in (0, 1)
    ]
    threads = [threading.Thread(target=do_case, args=(task, process)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    inside = [what for _, what in events if what != "load"]
    assert inside == ["begin", "end", "begin", "end"]
    assert [what for _, what in events].index("end") > 1, "the second case was not loaded during inference of the first"
    assert [what for _, what in events[:3]].count("load") == 2
    assert not process.gate.locked()


def test_a_full_disk_is_waited_for_and_then_a_reason(tmp_path: Path, store: Store) -> None:
    settings = replace(SETTINGS, min_free_gib=1e9, disk_wait_s=0.1)
    record = do_case(_task(tmp_path, settings=settings), Process())
    assert record.kind == "resource"
    assert "GiB free" in record.reason
    assert journal(tmp_path / "journal") == []


def test_a_disk_that_fills_while_writing_is_tried_again(tmp_path: Path, store: Store) -> None:
    task = _task(tmp_path, word="full-once")
    first, second = do_case(task, Process()), do_case(task, Process())
    assert (first.kind, second.status) == ("resource", "done")


def test_results_of_the_future_are_results(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # a clock that was wrong, then set right: neither file times nor the time of day decide anything
    import os

    task = _task(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    first = do_case(task, Process())
    for path in (tmp_path / "out").rglob("*"):
        os.utime(path, (4e9, 4e9))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert do_case(task, Process()) == first
    assert len(journal(tmp_path / "journal")) == 2


def test_a_path_of_300_characters(tmp_path: Path, store: Store) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100) / ("f" * 100)
    make_cohort(deep, ["1500"])
    task = replace(_task(tmp_path), case=Case(1, str(deep / "DOE_JANE_0000")))
    assert do_case(task, Process()).status == "done"


def test_a_study_beyond_the_limits_is_refused_before_it_is_read(tmp_path: Path, store: Store) -> None:
    task = _task(tmp_path, settings=replace(SETTINGS, max_study_gib=1e-9))
    assert "raise max_study_gib" in do_case(task, Process()).reason
    (tmp_path / "in" / "DOE_JANE_0000" / "two").write_text("2")
    task = _task(tmp_path, settings=replace(SETTINGS, max_study_files=1))
    assert "raise max_study_files" in do_case(task, Process()).reason


def test_a_link_out_of_a_study_does_not_count(tmp_path: Path, store: Store) -> None:
    task = _task(tmp_path)
    first = do_case(task, Process())
    (tmp_path / "in" / "DOE_JANE_0000" / "link").symlink_to(__file__)
    assert do_case(task, Process()) == first


def test_read_only_output_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        Store(tmp_path / "file").prepare()
    with pytest.raises(InputError, match="cannot write"):
        Store(tmp_path / "file" / "out").prepare()


def test_kinds() -> None:
    caused = InputError("could not write")
    caused.__cause__ = OSError(errno.ENOSPC, "No space")
    assert classify(caused) == "resource"
    assert classify(InputError("x")) == "input"
    assert classify(ModelError("x")) == "model"
    assert classify(MemoryError()) == "memory"
    assert classify(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")) == "memory"
    assert classify(RuntimeError("shapes differ")) == "bug"
    assert classify(KeyError("x")) == "bug"


def test_reasons_show_no_names() -> None:
    study = Path("/data/cohort/DOE^JANE 1970-01-02")
    files = [study / "series DOE" / "JANE_DOE.dcm", study / "1.dcm", study / "ab"]
    text = f"JANE_DOE.dcm in 'series DOE' of {study} is damaged: 1.dcm, abdomen 'DOE^JANE 1970-01-02' JANE_DOE"
    shown = redact(text, study, files)
    assert "DOE" not in shown
    assert "1970" not in shown
    assert "abdomen" in shown
    assert explain(KeyError("DOE"), study, files).startswith("unexpected KeyError in")
    assert "DOE" not in explain(OSError(5, "error", str(study)), study, files)
