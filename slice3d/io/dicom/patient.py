"""Patient and study attributes that derived objects share with their source, made valid (PS3.3 C.7.1, C.7.2)."""

from __future__ import annotations

import re
from typing import Any


def repair_patient(image: Any) -> None:
    """Invalid values that would be copied into a result are dropped; de-identified files often carry some."""
    if "PatientAge" in image and not re.fullmatch(r"\d{3}[DWMY]", str(image.PatientAge or "")):
        del image.PatientAge
    if "DeidentificationMethod" in image and not image.DeidentificationMethod:
        image.DeidentificationMethod = "not stated by the source images"
    for keyword, pattern in (
        ("StudyDate", r"\d{8}"),
        ("PatientBirthDate", r"\d{8}"),
        ("StudyTime", r"\d{2,6}(\.\d{1,6})?"),
    ):
        if image.get(keyword) and not re.fullmatch(pattern, str(image.get(keyword))):
            setattr(image, keyword, "")
    if str(image.get("PatientSex") or "") not in ("", "M", "F", "O"):
        image.PatientSex = ""
