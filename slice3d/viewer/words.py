"""Words from files and findings made safe to show: no control characters, only glyphs the font has."""

from __future__ import annotations

import unicodedata


def plain(text: str, limit: int = 600) -> str:
    """One line without control, format and bidirectional-override characters, cut at `limit` characters."""
    clean = "".join(" " if c.isspace() else c for c in str(text) if unicodedata.category(c)[0] != "C" or c.isspace())
    short = " ".join(clean.split())
    return short if len(short) <= limit else short[: limit - 1] + "…"


def title_of(structure: str) -> str:
    """`kidney_left` → `Kidney, left`."""
    words = plain(structure, 80).replace("_", " ").strip() or "unnamed"
    for side in ("left", "right"):
        if words.endswith(" " + side):
            words = f"{words[: -len(side) - 1]}, {side}"
    return words[0].upper() + words[1:]


def in_font(text: str) -> str:
    """`text` with characters that DejaVu Sans (shipped with matplotlib) cannot draw replaced by `?`."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    return "".join(c if c == " " or font.get_char_index(ord(c)) else "?" for c in plain(text))
