"""Draws docs/pictures/figure-*.png with the very code that docs/figures.md shows: python docs/pictures/figures.py."""

import contextlib
import re
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
PAGE = (HERE.parent / "figures.md").read_text(encoding="utf-8")

with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
    Path("sample_data").symlink_to(HERE.parents[1] / "sample_data")
    values: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(block, values)
        if "ranking.png" in block:
            break
    for picture in ("montage", "dice", "bland-altman", "distance", "ranking"):
        image = Image.open(f"{picture}.png").convert("RGB")
        image.thumbnail((1000, 1000))
        image.quantize(128).save(HERE / f"figure-{picture}.png", optimize=True)
