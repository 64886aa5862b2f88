"""Structure names inside a NIfTI label map: the label table extension that Connectome Workbench introduced.

An XML header extension `CaretExtension/…/LabelTable/Label` with `Key` and colours, the name as text; TotalSegmentator
writes it with code 0, Workbench with 30. Other readers skip what they do not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

from slice3d import anatomy

_CODES = (0, 30)  # "ignore" and "caret" in the registry of NIfTI extension codes
_LONGEST = 1 << 20


def to_extension(names: Mapping[int, str]) -> Any:
    """The nibabel extension that holds `names`."""
    from nibabel.nifti1 import Nifti1Extension

    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(ElementTree.SubElement(root, "VolumeInformation", Index="0"), "LabelTable")
    for value in sorted(names):
        red, green, blue = (f"{c / 255:.4f}" for c in anatomy.color(names[value]))
        label = ElementTree.SubElement(volume, "Label", Key=str(value), Red=red, Green=green, Blue=blue, Alpha="1")
        label.text = names[value]
    return Nifti1Extension(0, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def from_extensions(extensions: Iterable[Any]) -> dict[int, str]:
    """Names out of a header's extensions; empty when none holds a readable label table."""
    for extension in extensions:
        if extension.get_code() not in _CODES:
            continue
        content = extension.get_content()
        text = content if isinstance(content, bytes) else str(content).encode()
        text = text.rstrip(b"\0 \n")
        # No entities: a table of names needs none, and nested ones can grow without bound.
        if b"LabelTable" not in text or b"<!" in text or len(text) > _LONGEST:
            continue
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError:
            continue
        return _names(root)
    return {}


def _names(root: ElementTree.Element) -> dict[int, str]:
    found: dict[int, str] = {}
    for label in root.iter("Label"):
        key, name = label.get("Key", ""), (label.text or "").strip()
        if key.isdecimal() and int(key) > 0 and name and name not in found.values():
            found[int(key)] = name
    return found
