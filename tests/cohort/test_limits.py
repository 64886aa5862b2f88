"""What a run may use: tries, memory, GPUs."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slice3d.cohort import Case, CohortSettings, Job, run_cohort
from slice3d.cohort.job import CaseInput
from slice3d.cohort.settings import gpus
from slice3d.cohort.store import Store
from slice3d.cohort.work import Process, Task, do_case
from slice3d.cohort.worker import CaseWorker
from slice3d.errors import InputError
from slice3d.progress import Progress
from tests.cohort.stubs import Stub, journal, make_cohort


def test_tries_are_limited_and_others_go_on_meanwhile(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "in", ["full-always", "1500", "1600"])
    settings = CohortSettings(workers=1, memory_gib=1, min_free_gib=0.001, threads=1, retries=2)
    result = run_cohort(cohort, tmp_path / "out", job=Job(Stub(str(tmp_path / "journal")), "s"), execution=settings)
    begun = [line[1] for line in journal(tmp_path / "journal") if line[0] == "begin"]
    assert begun.count("full-always") == 1 + settings.retries
    assert begun.index("1600") < len(begun) - 1  # they did not wait for the tries to end
    (row,) = result.table[result.table.status == "failed"].to_dict("records")
    assert (row["kind"], result.done) == ("resource", 2)
    assert "results: No space left" in row["reason"].replace("‹", "").replace("›", "")
    assert str(tmp_path) not in row["reason"]


def test_a_second_case_waits_until_half_of_the_memory_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-pressure: what is resident decides, and a case that is alone never waits."""
    import psutil

    resident = [90]
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(rss=resident[0]))
    first_runs, second_asked, order = threading.Event(), threading.Event(), []

    def case(given: CaseInput, out: Path, progress: Progress) -> None:
        name = given.study.name[-1]
        order.append(f"begin {name} at {resident[0]}")
        if name == "0":
            first_runs.set()
            assert second_asked.wait(30)
            time.sleep(0.5)  # long enough for the other to begin, if nothing held it
            order.append("end 0")
            resident[0] = 40
        raise InputError("enough seen")

    make_cohort(tmp_path / "in", ["1", "2"])
    store = Store(tmp_path / "out")
    store.prepare()
    process = Process(memory_bytes=100)
    settings = CohortSettings(min_free_gib=0.0, memory_gib=1.0)

    def do(n: int) -> None:
        study = Case(n, str(tmp_path / "in" / f"DOE_JANE_000{n}"))
        do_case(Task(study, str(store.out), Job(case, "x"), settings, "run", b"s"), process)

    threads = [threading.Thread(target=do, args=(n,)) for n in (0, 1)]
    threads[0].start()
    assert first_runs.wait(30)
    threads[1].start()
    second_asked.set()
    for thread in threads:
        thread.join(30)
    assert order == ["begin 0 at 90", "end 0", "begin 1 at 40"]


def _set_up(name: Any, gpus: tuple[str, ...]) -> None:
    worker = SimpleNamespace(name=name, memory_manager=SimpleNamespace(memory_limit=None))
    CaseWorker(gpus=gpus).setup(worker)


def test_each_worker_gets_one_gpu_of_those_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,MIG-GPU-1")
    assert gpus() == ("3", "5", "MIG-GPU-1")
    seen = []
    for number in range(4):
        _set_up(number, gpus=("3", "5", "MIG-GPU-1"))
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert seen == ["3", "5", "MIG-GPU-1", "3"]


@pytest.mark.parametrize(("allowed", "expected"), [("", ()), ("-1", ()), ("2", ("2",)), ("1,-1,2", ("1",))])
def test_gpus_that_a_queue_allows(allowed: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert gpus() == expected
    _set_up(0, gpus=expected)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == allowed  # one or none: nothing to choose


def test_cycles_are_freed_after_each_case() -> None:
    import gc
    import weakref

    class Image:
        def __init__(self) -> None:
            self.me = self

    process, enabled = Process(), gc.isenabled()
    gc.disable()
    try:
        for _ in range(2):
            image = Image()
            gone = weakref.ref(image)
            del image
            assert gone() is not None
            process.tidy()
            assert gone() is None
        assert process.settled
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such arenas")
def test_freed_memory_goes_back_to_the_system_after_each_case() -> None:
    import subprocess
    import sys

    # 64 MiB in blocks too small to be mapped one by one, all freed but a few at the ends: the heap cannot shrink by itself
    code = (
        "import gc, psutil; from slice3d.cohort.work import Process\n"
        "def held(): return psutil.Process().memory_info().rss / 2**20\n"
        "process = Process(); process.tidy(); start = held()\n"
        "for _ in range(3):\n"
        "    blocks = [bytes([1]) * 8192 for _ in range(8192)]; kept = blocks[-1]; full = held() - start\n"
        "    del blocks; gc.collect(); before = held() - start; process.tidy(); print(full, before, held() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        full, before, after = map(float, line.split())
        assert full > 60
        assert before > 30  # else this test would show nothing
        assert after < 8
    assert len(done.stdout.splitlines()) == 3


def test_workers_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each computes on its part, what is asked for stays, and neither changes what a result is called."""
    from slice3d import pipeline
    from slice3d.cohort import pipeline_job
    from slice3d.cohort.drive import _plugin
    from slice3d.inference import InferenceSettings
    from slice3d.pipeline import RunSettings

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    shares = [_plugin(CohortSettings(workers=n, memory_gib=1)).threads for n in (1, 2, 5, 40)]
    assert shares == [12, 6, 2, 1]
    assert _plugin(CohortSettings(scheduler="tcp://127.0.0.1:1")).threads is None
    used: list[Any] = []
    monkeypatch.setattr(pipeline, "run", lambda *_, settings, **__: used.append(settings.inference.threads))
    for inference in (None, InferenceSettings(threads=5)):
        job = pipeline_job(RunSettings(organs=("liver",), inference=inference))
        for threads in (None, 6):
            job.function(CaseInput(tmp_path, threads=threads), tmp_path / "out", lambda *_: None)
    assert used == [None, 6, 5, 5]


@pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere Dask alone enforces it, 20 times a second")
def test_workers_never_hold_more_than_the_budget(tmp_path: Path) -> None:
    import psutil

    held: list[tuple[int, ...]] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            now = []
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    # a process that is forked but not yet started still shows the memory of this one
                    if any("spawn_main" in word for word in process.cmdline()):
                        now.append(process.memory_info().rss)
            held.append(tuple(now))

    cohort = make_cohort(tmp_path / "in", ["hungry 1", "hungry 2", "1500", "hungry 3", "1600"])
    settings = CohortSettings(workers=2, memory_gib=1.2, min_free_gib=0.001, threads=1)
    assert settings.budget().startswith("memory budget 1.2 GiB: 2 × 0.60 GiB")
    thread = threading.Thread(target=look)
    thread.start()
    try:
        result = run_cohort(cohort, tmp_path / "out", job=Job(Stub(str(tmp_path / "journal")), "s"), execution=settings)
    finally:
        done.set()
        thread.join()
    assert (result.done, result.failed) == (2, 3)
    assert set(result.table[result.table.status == "failed"].kind) == {"memory"}
    largest = max(max(now, default=0) for now in held) / 2**30
    assert 0.3 < largest < 0.6  # each came near its share, and never beyond
    assert max(sum(now) for now in held) / 2**30 < 1.2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_a_worker_keeps_the_memory_it_will_need_again() -> None:
    """Dask's own setting makes every large array a system call: a worker undoes it."""
    import subprocess
    import sys

    code = (
        "import resource, sys; from types import SimpleNamespace as S; from slice3d.cohort.worker import CaseWorker\n"
        "if sys.argv[1] == 'worker':\n    CaseWorker().setup(S(name=0, memory_manager=S(memory_limit=None)))\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "bytearray(8 << 20); before = faults()\n"
        "for _ in range(20):\n    bytearray(8 << 20)\n"
        "print(faults() - before)"
    )
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    faults = {
        who: int(
            subprocess.run([sys.executable, "-c", code, who], env=environment, capture_output=True, check=True).stdout
        )
        for who in ("dask", "worker")
    }
    assert faults["dask"] > 100  # else this test would show nothing
    assert faults["worker"] < faults["dask"] / 10


def test_without_gpus_the_kernel_limits_memory(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "from types import SimpleNamespace as S; from slice3d.cohort.worker import CaseWorker\n"
        "CaseWorker(memory_bytes=600 << 20).setup(S(name=0, memory_manager=S(memory_limit=None)))\n"
        "bytearray(100 << 20)\n"
        "try:\n    bytearray(700 << 20)\n    print('no limit')\nexcept MemoryError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "refused"


def test_a_cluster_that_cannot_start_is_an_error_and_not_a_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Cluster failed to start")

    monkeypatch.setattr("distributed.LocalCluster", refuse)
    with pytest.raises(InputError, match="fewer --workers"):
        run_cohort(make_cohort(tmp_path / "in", ["1"]), tmp_path / "out", job=Job(Stub(""), "s"))
