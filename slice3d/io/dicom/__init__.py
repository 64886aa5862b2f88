"""DICOM: discovery, geometry from true slice positions, pixels, and writing back onto the original slices."""
