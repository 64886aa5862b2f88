"""numpy ↔ VTK, without copies where VTK allows it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def image(values: NDArray[Any]) -> Any:
    """vtkImageData over a C-contiguous (i, j, k) array, without a copy; its x runs along k, its z along i."""
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonDataModel import vtkImageData

    out = vtkImageData()
    out.SetDimensions(*reversed(values.shape))
    array = numpy_to_vtk(values.reshape(-1))
    array.SetName("values")
    out.GetPointData().SetScalars(array)
    return out


def polydata(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> Any:
    """vtkPolyData of triangles; points stay float64."""
    from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray
    from vtkmodules.vtkCommonCore import vtkPoints
    from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData

    points = vtkPoints()
    points.SetDataTypeToDouble()
    points.SetData(numpy_to_vtk(np.ascontiguousarray(vertices, dtype=np.float64), deep=True))
    offsets = numpy_to_vtkIdTypeArray(np.arange(0, 3 * len(faces) + 1, 3, dtype=np.int64), deep=True)
    connectivity = numpy_to_vtkIdTypeArray(np.ascontiguousarray(faces, dtype=np.int64).reshape(-1), deep=True)
    cells = vtkCellArray()
    cells.SetData(offsets, connectivity)
    out = vtkPolyData()
    out.SetPoints(points)
    out.SetPolys(cells)
    return out


def arrays(data: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(N, 3) points and (M, 3) triangles of a vtkPolyData that holds only triangles."""
    from vtkmodules.util.numpy_support import vtk_to_numpy

    if data.GetNumberOfPoints() == 0 or data.GetNumberOfPolys() == 0:
        return np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64)
    points = vtk_to_numpy(data.GetPoints().GetData()).astype(np.float64)
    faces = vtk_to_numpy(data.GetPolys().GetConnectivityArray()).astype(np.int64).reshape(-1, 3)
    return points, faces
