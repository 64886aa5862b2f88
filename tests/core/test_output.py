from __future__ import annotations

import json
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
