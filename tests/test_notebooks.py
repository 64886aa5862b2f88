"""Each notebook runs from a clean kernel on the sample data, and is kept without outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def _id(path: Path) -> str:
    return path.stem


def test_there_are_six() -> None:
    assert [path.name[0] for path in NOTEBOOKS] == list("123456")
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert all(f"`{path.stem}`" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_id)
def test_outputs_are_stripped(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
        assert not cell.metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_id)
def test_commands_in_notebooks_are_right(path: Path) -> None:
    import shlex

    from tests.test_docs import _parse

    for cell in nbformat.read(path, as_version=4).cells:
        for block in re.findall(r"```sh\n(.*?)```", cell.source, re.DOTALL) if cell.cell_type == "markdown" else ():
            for line in block.strip().splitlines():
                _parse(shlex.split(line, comments=True))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=_id)
def test_notebook_runs_from_a_clean_kernel(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.font_manager  # its list of fonts, made once, not by each kernel
    from nbclient import NotebookClient

    # `../sample_data` and `../out`, as beside the repository's own folder of notebooks
    here = tmp_path / "notebooks"
    here.mkdir()
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
    for name, folder in (("XDG_CACHE_HOME", "cache"), ("IPYTHONDIR", "ipython"), ("JUPYTER_RUNTIME_DIR", "runtime")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # other tests want the cores that idle threads would keep busy
    # Dask opens a local port for its state, and says so when another test holds the one that it likes
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:Port 8787 is already in use:UserWarning")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # so that figures are shown as they are to a reader
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=540, kernel_name="python3", resources={"metadata": {"path": str(here)}})
    kernels = []
    client.on_notebook_start = lambda **_: kernels.append(client.km.provisioner.process)
    client.execute()
    # nbclient may let go of a kernel that is still on its way out: whichever test runs then would be blamed
    assert [kernel.wait(60) for kernel in kernels] != []
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "image/png" in kinds  # a figure was drawn, not only named
    said = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert not said, f"a reader would see: {said[0][:500]}"
