"""What is handed out: wheel and source archive, extras, pins, container recipes, citation, version."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml

from slice3d import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKER = sorted((ROOT / "docs" / "docker").glob("*.Dockerfile"))


def _run(*command: object, cwd: Path | None = None, **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _built(folder: Path, ending: str) -> Path:
    (found,) = folder.glob(f"*{ending}")
    return found


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    _run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", out, cwd=ROOT)
    return _built(out, ".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the unpacked source archive, as a package index's users would build it."""
    out = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(out)
    (source,) = (path for path in out.iterdir() if path.is_dir())
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=source)
    return _built(out, ".whl")


def _tracked(folder: str) -> set[str]:
    """Files below `folder`, without what a run leaves behind."""
    found = (ROOT / folder).rglob("*")
    return {p.relative_to(ROOT).as_posix() for p in found if p.is_file() and "__pycache__" not in p.parts}


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = f"slice3d-{__version__}.dist-info/"
    assert {n for n in names if not n.startswith(info)} == _tracked("slice3d")
    for needed in (
        "slice3d/py.typed", "slice3d/models/packages/ct-torso/weights-0.safetensors",
        "slice3d/models/packages/mr-brain/weights.safetensors",
        "slice3d/viewer/page/report.js", f"{info}licenses/LICENSE",
    ):  # fmt: skip
        assert needed in names
    assert wheel.stat().st_size < 80e6  # PyPI takes 100 MB
    about = Parser().parsestr(zipfile.ZipFile(wheel).read(f"{info}METADATA").decode("utf-8"))
    assert about["Version"] == __version__
    assert set(about.get_all("Provides-Extra") or ()) >= {"viewer", "nnunet", "train", "cluster"}


def test_source_archive_holds_what_a_packager_needs_and_no_data(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt"} <= names
    assert {n for n in names if n.startswith("slice3d/")} == _tracked("slice3d")
    assert not [n for n in names if re.search(r"\.(nii|nii\.gz|dcm|nrrd|stl|png|ipynb)$", n)]
    assert not [n for n in names if n.startswith(("sample_data", "docs", "benchmarks", "notebooks"))]
    assert sdist.stat().st_size < 80e6


def test_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    """Away from the source tree: the command starts, finds its model, and its weights are whole."""
    target = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    _run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel)
    command = target / "bin" / "slice3d"
    assert command.is_file()
    env = {"PYTHONPATH": str(target), "PYTHONSAFEPATH": "1", "XDG_DATA_HOME": str(tmp_path)}

    def slice3d(*arguments: str) -> str:
        return _run(sys.executable, command, *arguments, cwd=tmp_path, **env)

    assert slice3d("--version").strip() == f"slice3d {__version__}"
    assert "segment" in slice3d("--help")
    installed = json.loads(slice3d("models", "list", "--json"))["installed"]
    assert {"ct-torso", "mr-brain"} <= {model["name"] for model in installed}
    assert "weights are as model.json says" in slice3d("models", "verify")
    where = _run(sys.executable, "-c", "import slice3d; print(slice3d.__file__)", cwd=tmp_path, **env)
    assert Path(where.strip()).is_relative_to(target)


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;~! ]", r, maxsplit=1)[0].lower().replace("_", "-") for r in requirements} - {"slice3d"}


def test_everything_installed_by_make_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = _names([line for line in lines if line and not line.startswith("#")])
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + [r for name, rows in extras.items() if name != "nnunet" for r in rows]
    assert _names(wanted) - {"tomli"} <= pinned  # tomli: for Pythons that are not pinned


def test_the_extras_that_messages_name_exist() -> None:
    named = {
        extra.strip()
        for path in [*(ROOT / "slice3d").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
        for found in re.findall(r"slice3d\[([a-z0-9, ]+)\]", path.read_text(encoding="utf-8"))
        for extra in found.split(",")
    }
    assert named
    assert named <= set(PROJECT["optional-dependencies"])


def _instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("path", DOCKER, ids=lambda p: p.stem)
def test_container_recipes_are_whole(path: Path) -> None:
    """They cannot be built here: that they parse, copy what there is, and pin what CI pins, can be said."""
    steps = _instructions(path)
    assert steps[0] == ("FROM", "python:3.11-slim-bookworm")
    assert {kind for kind, _ in steps} <= {"FROM", "ARG", "RUN", "COPY", "USER", "WORKDIR", "ENV", "ENTRYPOINT", "CMD"}
    copied = [source for kind, rest in steps if kind == "COPY" for source in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    ignore = path.with_name(path.name + ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignore[0] == "*"
    assert {line[1:] for line in ignore if line.startswith("!")} == set(copied)
    installs = [rest for kind, rest in steps if kind == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert all("--constraint /build/constraints.txt" in rest for rest in installs)
    for kind, rest in steps:
        if kind == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
            shlex.split(rest)
        elif kind in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(rest), list)
    assert ("ENTRYPOINT", '["slice3d"]') in steps
    assert ("USER", "slice3d") in steps
    # the libraries that CI installs for off-screen pictures
    assert set(re.findall(r"lib[a-z]+1\b", " ".join(r for _, r in steps))) == {"libegl1", "libgl1", "libxrender1"}


def test_there_is_a_recipe_for_cpu_and_one_for_gpu() -> None:
    assert [path.name for path in DOCKER] == ["cpu.Dockerfile", "gpu.Dockerfile"]


def test_citation_is_valid_and_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    # the keys of Citation File Format 1.2.0 that are used here, and the required ones
    assert set(citation) <= {
        "cff-version", "message", "type", "title", "abstract", "authors", "version", "license", "keywords",
        "date-released", "repository-code", "url", "doi",
    }  # fmt: skip
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    assert str(citation["version"]) == __version__
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"]
    assert all(isinstance(word, str) for word in citation["keywords"])


def test_version_is_semantic_and_in_the_changelog() -> None:
    assert re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?", __version__)
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert any(heading == "Unreleased" or heading.startswith(f"{__version__} ") for heading in headings)
