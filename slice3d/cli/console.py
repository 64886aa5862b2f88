"""What commands share: a progress bar on standard error, one-line messages, JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from slice3d.progress import Progress, silent

if TYPE_CHECKING:
    from slice3d.findings import Finding


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """A `Progress` that draws one bar per stage with elapsed and remaining time; silent unless on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, fraction: float, /) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=min(max(fraction, 0.0), 1.0))

        yield report


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
