"""Pictures and pages of results: `preview` (one picture), `report` (one HTML file)."""

from slice3d.viewer.preview import preview
from slice3d.viewer.report import ReportSettings, report

__all__ = ["ReportSettings", "preview", "report"]
