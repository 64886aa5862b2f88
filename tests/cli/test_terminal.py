"""The command as a process: terminals and pipes, completion, colours, exit codes, signals."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import slice3d
from slice3d.cli import console
from slice3d.cli.complete import models, organs
from slice3d.cli.main import EXIT_CODES, app
from tests.builders import oblique_grid

pty = pytest.importorskip("pty")
COLOUR = re.compile(r"\x1b\[[0-9;]*\b(?:3[0-7]|9[0-7]|38;[0-9;]+)m")

# `segment` as the shell calls it, with a network that answers at once, or never.
SCRIPT = """
import sys, time
import numpy as np
import slice3d.pipeline
from slice3d.cli.main import main

def answer(volume, *_, progress, **__):
    progress("inference", 0.5)
    if "--device" in sys.argv:
        time.sleep(120)
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[4:11, 5:12, 3:8] = 1
    return slice3d.Segmentation(labels, volume.grid, {1: "liver"}, metadata={"structures": ("liver",)})

slice3d.pipeline.segment = answer
main()
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    grid = oblique_grid((17, 15, 12))
    path = tmp_path / "ct.nii.gz"
    slice3d.save(slice3d.Volume(np.zeros(grid.shape, np.int16), grid, modality="CT"), path)
    return path


def _command(study: Path, out: Path, *more: str) -> list[str]:
    arguments = ["segment", str(study), "--organ", "liver", "--out", str(out), "--no-report", *more]
    return [sys.executable, "-c", SCRIPT, *arguments]


def _on_terminal(command: list[str], **env: str) -> tuple[int, str]:
    """Run with standard output and error on a pseudo-terminal; (exit code, what it showed)."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **env},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        ready, _, _ = select.select([ours], [], [], 300)
        try:
            block = os.read(ours, 65536) if ready else b""
        except OSError:  # Linux' way of saying that the other end is closed
            block = b""
        if not block:
            break
        shown += block
    os.close(ours)
    return process.wait(timeout=60), shown.decode("utf-8", "replace")


def test_on_a_terminal_there_are_bars_with_time_to_go_and_clickable_paths(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, shown = _on_terminal(_command(study, out))
    assert code == 0
    assert "to go" in shown
    assert "inference" in shown
    assert COLOUR.search(shown)
    assert f"\x1b]8;;{(out / 'preview.png').as_uri()}\x1b\\" in shown
    code, shown = _on_terminal(_command(study, out), NO_COLOR="1")
    assert code == 0
    assert "to go" in shown
    assert not COLOUR.search(shown)


def test_in_a_pipe_there_is_only_text(study: Path, tmp_path: Path) -> None:
    done = subprocess.run(_command(study, tmp_path / "out"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert str(tmp_path / "out" / "preview.png") in done.stdout
    assert "liver  " in done.stdout


def test_help_colours_follow_no_color() -> None:
    command = [sys.executable, "-m", "slice3d.cli.main", "--help"]
    assert COLOUR.search(_on_terminal(command)[1])
    assert not COLOUR.search(_on_terminal(command, NO_COLOR="1")[1])


def test_sigterm_leaves_nothing_behind(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "liver.stl").write_text("an earlier result")
    process = subprocess.Popen(_command(study, out, "--device", "cpu"), stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if list(out.glob(".slice3d-*")):
            break
        time.sleep(0.2)
    assert list(out.glob(".slice3d-*"))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert [path.name for path in out.iterdir()] == ["liver.stl"]
    assert err.startswith("slice3d: stopped")
    assert err.count("\n") == 1


def test_links_only_where_they_can_be_clicked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a report.html"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert console.link(path) == f"\x1b]8;;{path.as_uri()}\x1b\\{path}\x1b]8;;\x1b\\"
    assert "%20" in console.link(path)
    for term in ("dumb", "linux"):
        monkeypatch.setenv("TERM", term)
        assert console.link(path) == str(path)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert console.link(path) == str(path)


def test_completion_of_structures_and_models() -> None:
    assert organs("kid") == ["kidney_left", "kidney_right", "kidneys"]
    assert organs("liver,spl") == ["liver,spleen"]
    assert organs("nothing") == []
    assert "ct-torso" in models("ct")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    """What the shell's completion function asks for, and the function itself."""
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'slice3d'; from slice3d.cli.main import main; main()"]

    def ask(line: str) -> str:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        typed = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        env = {**os.environ, **words, **typed, "_SLICE3D_COMPLETE": f"complete_{shell}"}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    assert "segment" in ask("slice3d seg")
    assert "spleen" in ask("slice3d segment study --organ spl")
    source = subprocess.run(
        command, env={**os.environ, "_SLICE3D_COMPLETE": f"source_{shell}"}, capture_output=True, text=True, check=True
    ).stdout
    assert "_SLICE3D_COMPLETE" in source


def test_every_command_speaks_json() -> None:
    import typer.main

    root = typer.main.get_command(app)
    commands = {**root.commands, **root.commands["models"].commands}  # type: ignore[attr-defined]
    del commands["models"]
    assert len(commands) > 15
    silent = [name for name, c in commands.items() if not any("--json" in p.opts for p in c.params)]
    assert silent == []


def test_exit_codes_are_in_the_help_and_in_the_documents() -> None:
    import slice3d.errors as errors

    help_text = str(app.info.epilog)
    page = (Path(__file__).parents[2] / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    for code, meaning in EXIT_CODES.items():
        assert f"{code} {meaning}" in help_text
    documented = [int(line.split("|")[1]) for line in page.splitlines() if line[:3].strip("| ").isdigit()]
    assert documented == list(EXIT_CODES)
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    assert {kind.exit_code for kind in kinds if issubclass(kind, errors.Slice3DError)} <= set(EXIT_CODES)
