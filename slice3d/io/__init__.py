"""Reading studies and writing results: the four verbs `scan`, `load`, `load_segmentation` and `save`.

Each foreign format has one module; they are imported when the first file of that kind is met.
"""

from __future__ import annotations

from slice3d.io.read import load, load_4d, load_segmentation, scan
from slice3d.io.write import save

__all__ = ["load", "load_4d", "load_segmentation", "save", "scan"]
