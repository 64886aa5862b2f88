"""Pictures and pages of results: `preview` (one picture), `report` (one HTML file)."""

from slice3d.viewer.preview import preview
from slice3d.viewer.report import ReportSettings, niivue_source, report

__all__ = ["ReportSettings", "niivue_source", "preview", "report"]
