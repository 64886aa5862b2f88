"""What commands share: a progress bar on standard error, one-line messages, JSON for scripts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slice3d.progress import Progress, silent

if TYPE_CHECKING:
    from slice3d.findings import Finding


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """A `Progress` that draws one bar per stage with elapsed time and time to go; silent unless on a terminal.

    Colours follow `NO_COLOR`. A stage that only reports its beginning and end is shown as busy until it ends.
    """
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<12}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("to go"), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, fraction: float, /) -> None:
            done = min(max(fraction, 0.0), 1.0)
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None)
            bars.update(tasks[stage], completed=done, total=1.0 if done > 0 else None)

        yield report


def duration(seconds: float) -> str:
    """`8 s`, `3 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def link(path: Path) -> str:
    """The path as text; on a terminal that knows hyperlinks (OSC 8) one can click it."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "linux"):
        return str(path)
    return f"\x1b]8;;{path.resolve().as_uri()}\x1b\\{path}\x1b]8;;\x1b\\"


def say(text: str = "", *, quiet: bool = False) -> None:
    """Print for people, unless quiet."""
    if not quiet:
        print(text)


def say_json(value: Any) -> None:
    """Print one JSON document for scripts."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def fail(message: str) -> None:
    """One line on standard error."""
    print(f"slice3d: {' '.join(message.split())}", file=sys.stderr)


def say_findings(findings: tuple[Finding, ...], *, quiet: bool = False, indent: str = "") -> None:
    """One line per finding, warnings first."""
    marks = {"error": "!!", "warning": " !", "info": "  "}
    order = ("error", "warning", "info")
    for finding in sorted(findings, key=lambda f: order.index(f.severity)):
        say(f"{indent} {marks[finding.severity]} {finding.message}", quiet=quiet)
