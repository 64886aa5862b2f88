"""The command line as a user types it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from slice3d.cli.main import main


@pytest.fixture
def slice3d(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`slice3d(*arguments)` → exit code, what it printed, its errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["slice3d", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return call
