from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slice3d.errors import InputError
from slice3d.output import Transaction


def _run(out: Path, files: dict[str, str]) -> None:
    with Transaction(out) as transaction:
        for name, text in files.items():
            (transaction.folder / name).write_text(text)
        transaction.write_json("manifest.json", {"outputs": transaction.hashes()})
        transaction.commit()


def _content(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir() if p.name != "manifest.json"}


def test_everything_appears_at_once(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with Transaction(out) as transaction:
        (transaction.folder / "liver.stl").write_text("solid")
        assert not out.exists()
        transaction.commit()
    assert _content(out) == {"liver.stl": "solid"}
    assert list(out.parent.iterdir()) == [out]


def test_a_failure_leaves_the_old_results(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _run(out, {"liver.stl": "first"})
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def fail_half_way() -> None:
        with Transaction(out) as transaction:
            (transaction.folder / "liver.stl").write_text("second")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail_half_way()
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]


def test_stale_results_go_and_strangers_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _run(out, {"liver.stl": "a", "spleen.stl": "b"})
    (out / "notes.txt").write_text("mine")
    _run(out, {"liver.stl": "c"})
    assert _content(out) == {"liver.stl": "c", "notes.txt": "mine"}


def test_a_manifest_cannot_name_files_outside(tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim.txt"
    victim.write_text("keep")
    _run(out, {"a": "1"})
    (out / "manifest.json").write_text(json.dumps({"outputs": {"../victim.txt": "", str(victim): ""}}))
    _run(out, {"a": "2"})
    assert victim.read_text() == "keep"


def test_hashes_name_every_file(tmp_path: Path) -> None:
    _run(tmp_path / "out", {"a": "1"})
    listed = json.loads((tmp_path / "out" / "manifest.json").read_text())["outputs"]
    assert listed == {"a": "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"}


def test_out_that_is_a_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("I am a file")
    with pytest.raises(InputError, match="'out' is a file"), Transaction(tmp_path / "out"):
        pytest.fail("work began")


def test_unwritable_out_is_refused_before_any_work(tmp_path: Path) -> None:
    # A file where a folder should be: not writable for root either, unlike permission bits.
    (tmp_path / "blocker").write_text("")
    with pytest.raises(InputError, match="cannot write to"), Transaction(tmp_path / "blocker" / "out"):
        pytest.fail("work began")


def test_a_full_disk_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No space left"), Transaction(tmp_path / "out"):
        raise OSError(28, "No space left on device")


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"), Transaction(tmp_path / "out") as transaction:
        transaction.write_json("metrics.json", {"dice": float("nan")})


def test_an_existing_folder_is_filled_from_inside_itself(tmp_path: Path) -> None:
    # It may be a mounted volume or a link to another disk: nothing can be moved to it from beside it.
    (tmp_path / "disk").mkdir()
    out = tmp_path / "out"
    out.symlink_to(tmp_path / "disk")
    with Transaction(out) as transaction:
        assert transaction.folder.resolve().parent == (tmp_path / "disk").resolve()
        (transaction.folder / "liver.stl").write_text("solid")
        transaction.commit()
    assert [p.name for p in out.iterdir()] == ["liver.stl"]
    assert out.is_symlink()


def test_a_manifest_that_lists_folders_removes_none(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "mine").mkdir(parents=True)
    (out / "manifest.json").write_text(json.dumps({"outputs": ["mine", "."]}))
    _run(out, {"a": "1"})
    assert (out / "mine").is_dir()
    assert (out / "a").read_text() == "1"


RUN = """
import os, signal, sys, time
from pathlib import Path
from slice3d.output import Transaction
out, mark, count, end = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
with Transaction(out) as transaction:
    for n in range(count):
        (transaction.folder / f"{n}.txt").write_text(mark)
    transaction.write_json("manifest.json", {"outputs": transaction.hashes()})
    print("ready", flush=True)
    sys.stdin.readline()
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    transaction.commit()
"""


def _start(out: Path, mark: str, count: int, end: str = "") -> subprocess.Popen[str]:
    call = [sys.executable, "-c", RUN, str(out), mark, str(count), end]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("there", [True, False])
def test_two_runs_that_end_at_once_leave_the_results_of_one(there: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()
    runs = [_start(out, mark, count) for mark, count in (("a", 300), ("b", 200))]
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
    assert [run.wait(60) for run in runs] == [0, 0]
    for run in runs:
        run.communicate()
    content = _content(out)
    assert (set(content.values()), len(content)) in ((({"a"}), 300), ({"b"}, 200))
    listed = json.loads((out / "manifest.json").read_text())["outputs"]
    assert set(listed) == set(content)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform == "win32", reason="locks of folders are POSIX's")
def test_what_a_killed_run_left_goes_with_the_next_and_a_live_one_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    dead, live = _start(out, "dead", 3, "killed"), _start(out, "live", 3)
    dead.communicate("\n")
    assert len(list(tmp_path.glob(".slice3d-*"))) == 2
    _run(out, {"a": "1"})
    assert len(list(tmp_path.glob(".slice3d-*"))) == 1
    live.communicate("\n")
    assert live.returncode == 0
    assert _content(out) == {f"{n}.txt": "live" for n in range(3)}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
