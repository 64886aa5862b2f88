"""Model packages: what is installed, what it can find, and (in `networks`) how it becomes a network."""

from slice3d.models.package import Intensity, ModelPackage, Sampling, Weights, read_package
from slice3d.models.registry import cache_folder, find, identity, package, packages

__all__ = [
    "Intensity",
    "ModelPackage",
    "Sampling",
    "Weights",
    "cache_folder",
    "find",
    "identity",
    "package",
    "packages",
    "read_package",
]
