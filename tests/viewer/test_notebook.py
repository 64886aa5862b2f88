from __future__ import annotations

import base64
import importlib.util
import io
import re

import numpy as np
import pytest
from PIL import Image

from slice3d.errors import MissingExtraError
from slice3d.mesh import Mesh
from slice3d.viewer.notebook import html_of, widget_of
from tests.viewer.study import HOSTILE, study


def _picture(html: str) -> np.ndarray:
    found = re.search(r'base64,([^"]+)"', html)
    assert found
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB")).astype(int)


def test_values_show_a_picture_with_facts() -> None:
    volume, segmentation, meshes = study()
    image = html_of(volume)
    assert "40×30×12" in image
    assert _picture(image).std() > 10
    assert _picture(image).shape[1] >= 280  # 40 voxels are no stamp
    labels = html_of(segmentation)
    assert "Liver 7.20 ml" in labels
    assert "<script>" not in labels
    assert _picture(labels).max() > 80
    surface = html_of(meshes["liver"])
    assert "12 triangles" in surface
    assert _picture(surface).std() > 10
    assert "&lt;script&gt;" in html_of(Mesh(meshes["liver"].vertices, meshes["liver"].faces, HOSTILE))
    assert "0 triangles" in html_of(Mesh(np.zeros((0, 3)), np.zeros((0, 3), int), "nothing"))


def test_values_carry_the_notebook_protocol() -> None:
    volume, segmentation, meshes = study()
    for value in (volume, segmentation, meshes["liver"]):
        assert value._repr_html_() == html_of(value)
    if importlib.util.find_spec("ipyniivue") is not None:
        assert len(segmentation.show(over=volume).volumes) == 2
        assert len(volume.show().volumes) == len(meshes["spleen"].show().meshes) == 1


def test_show_gives_a_widget_or_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, segmentation, meshes = study()
    if importlib.util.find_spec("ipyniivue") is not None:
        assert len(widget_of(volume).volumes) == 1
        assert len(widget_of(segmentation, over=volume).volumes) == 2
        assert len(widget_of(meshes["liver"]).meshes) == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None)
    with pytest.raises(MissingExtraError, match=r"slice3d\[viewer\]"):
        widget_of(volume)
