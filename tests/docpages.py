"""The pages of the documentation, cut into blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(
        p for p in (ROOT / "docs").rglob("*.md") if p.relative_to(ROOT / "docs").parts[0] not in ("site", "docker")
    ),
]

_FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (\S.*?) -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block: language, text, line of its first line, and why it is not run, if it is not."""

    language: str
    text: str
    line: int
    not_run: str

    def commands(self) -> list[tuple[int, str]]:
        """(line, command) with continued lines joined and comments left out."""
        out: list[tuple[int, str]] = []
        joined = re.sub(r"\\\n\s*", " ", self.text)
        for number, line in enumerate(joined.splitlines(), start=self.line):
            if line.strip() and not line.lstrip().startswith("#"):
                out.append((number, line.strip()))
        return out


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    text = page.read_text(encoding="utf-8")
    out = []
    for found in _FENCE.finditer(text):
        reason = _NOT_RUN.search(text[: found.start()])
        line = text.count("\n", 0, found.start(3)) + 1
        out.append(Block(found[2], found[3], line, reason[1] if reason else ""))
    return out


def prose(page: Path) -> str:
    """The page without its fenced blocks and comments."""
    return re.sub(r"<!--.*?-->", "", _FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.DOTALL)
