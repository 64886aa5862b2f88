"""Pictures and pages of results: `preview` (one picture), `report` (one HTML file)."""

from slice3d.viewer.preview import preview

__all__ = ["preview"]
