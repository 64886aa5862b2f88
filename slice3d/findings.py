"""Findings: what was noticed about a study or a result, kept as values that travel into the manifest and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing, in a plain sentence.

    `code` is stable and machine-readable (`"gantry-tilt"`, `"organ-cut-by-field-of-view"`), `message` is for people,
    and `details` holds the measured numbers (JSON-able values, units in the key names, no identifiers).
    """

    code: str
    message: str
    severity: Severity = "warning"
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "code": self.code,
            "message": self.message,
            "severity": self.severity,
            "details": dict(self.details),
        }
