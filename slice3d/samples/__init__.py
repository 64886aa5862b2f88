"""Sample studies made by equations: real files, exact truth."""

from slice3d.samples.study import StudyPaths, write_study
from slice3d.samples.torso import Torso, TorsoPhantom, torso

__all__ = ["StudyPaths", "Torso", "TorsoPhantom", "torso", "write_study"]
