"""What happens to an interface shared with neighbours when one side of it is worked on alone."""

from __future__ import annotations

from dataclasses import replace

from slice3d.findings import Finding
from slice3d.mesh import Mesh


def apart(before: Mesh, after: Mesh) -> Mesh:
    """`after` with the finding `interfaces-no-longer-shared`, where `before` had its interfaces in common with others."""
    if after is before or not before.metadata.get("shared_interfaces"):
        return after
    text = (
        f"{before.name or 'mesh'} was changed alone and no longer meets its neighbours triangle by triangle: "
        "expect gaps and overlaps of the size of the change"
    )
    metadata = {**after.metadata, "shared_interfaces": False}
    return replace(after, metadata=metadata).with_findings([Finding("interfaces-no-longer-shared", text)])
