"""What the documentation shows runs: every Python block and every command of the docs and the README.

Each page runs in a folder of its own that holds `sample_data`, a small phantom as `study`, and files made of it. There the
network is replaced by the phantom's truth, since minutes of inference belong to tests/test_pipeline.py and to the notebooks;
everything around it is real. What cannot run has its reason above it on the page and is parsed against the command line.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

import slice3d
from slice3d.cli.main import main
from tests.docpages import PAGES, ROOT, Block, blocks, prose
from tests.io.tools import needs
from tests.training.builders import write_dataset


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"slice3d_docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = _load(ROOT / "docs" / "site" / "hooks.py")
# typer brings a click of its own, so what the parser raises is found through typer
REFUSED: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
COMMANDS: dict[str, Any] = dict(HOOKS.walk())


def _id(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- running -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study with its truth, a surface and a data set, made once."""
    from slice3d.samples import write_study

    folder = tmp_path_factory.mktemp("made")
    paths = write_study(folder / "phantom", spacing_mm=(6.0, 6.0, 7.0))
    paths.dicom.rename(folder / "study")
    paths.truth.rename(folder / "labels.nii.gz")
    slice3d.save(slice3d.surface(slice3d.load_segmentation(folder / "labels.nii.gz"), "liver"), folder / "liver.stl")
    write_dataset(folder / "dataset", cases=2)
    return folder


@pytest.fixture
def sandbox(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for path in (ROOT / "sample_data", *made.iterdir()):
        (tmp_path / path.name).symlink_to(path)
    truths = [slice3d.load_segmentation(p) for p in (made / "labels.nii.gz", ROOT / "sample_data" / "truth.nii.gz")]

    def predict(volume: slice3d.Volume, package: Any, *, structures: tuple[str, ...], **_: Any) -> slice3d.Segmentation:
        truth = next(t for t in truths if t.grid.matches(volume.grid))
        metadata = {"name": package.name, "version": package.version, "structures": structures}
        wanted = {v for s in structures for v in truth.values(s)}
        labels = np.where(np.isin(truth.labels, sorted(wanted)), truth.labels, 0).astype(np.uint8)
        names = {v: n for v, n in truth.names.items() if v in wanted}
        groups = {n: v for n, v in truth.groups.items() if set(v) <= wanted}
        return slice3d.Segmentation(labels, volume.grid, names, groups, metadata=metadata)

    monkeypatch.setattr("slice3d.inference.predict", predict)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def _run_command(line: int, command: str, page: Path, patch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command, comments=True)
    where = f"{_id(page)}:{line}: {command}"
    assert words[0] == "slice3d", f"{where} is not a slice3d command; say above the block why it is not run"
    patch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code, f"{where} ended with exit code {stopped.value.code}"


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.language in ("python", "sh") and not b.not_run for b in blocks(p))], ids=_id
)
def test_every_block_runs(page: Path, sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.not_run:
            continue
        if block.language == "python":
            code = "\n" * (block.line - 1) + block.text  # so that a traceback names the page's own line
            exec(compile(code, _id(page), "exec"), names)
        elif block.language == "sh":
            for line, command in block.commands():
                _run_command(line, command, page, monkeypatch)
    if page.name == "README.md":
        assert (sandbox / "liver.stl").is_symlink() or (sandbox / "liver.stl").stat().st_size > 10_000
        assert (sandbox / "out" / "report.html").is_file()


# --- parsing what does not run -------------------------------------------------------------------------------------


def _parse(words: list[str]) -> None:
    """Raise `AssertionError` or `REFUSED` where the command line would refuse these words."""
    if words[1].startswith("--"):
        assert words[1] in {flag for p in HOOKS.root().params for flag in p.opts}, f"slice3d has no option {words[1]}"
        return
    depth = 2 if " ".join(words[:2]) in COMMANDS else 3
    name = " ".join(words[:depth])
    assert name in COMMANDS, f"there is no command {name!r}"
    COMMANDS[name].make_context(name, list(words[depth:]))


def _check_other(words: list[str]) -> None:
    """What is known of foreign commands: targets of the Makefile, extras, scripts."""
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, f"the Makefile has no target {words[1]!r}"
    for extra in re.findall(r"slice3d\[([\w,-]+)\]", " ".join(words)):
        known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        assert set(extra.split(",")) <= set(known), f"pyproject.toml has no extra {extra}"
    for file in (w for w in words if w.endswith((".py", ".Dockerfile"))):
        assert (ROOT / file).is_file(), f"{file} does not exist"
    image = next((n for n, w in enumerate(words) if w.startswith("slice3d:")), None)
    if words[:2] == ["docker", "run"] and image is not None:
        _parse(["slice3d", *words[image + 1 :]])


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_what_does_not_run_is_at_least_right(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, f"{_id(page)}:{block.line}", "exec")
        if block.language == "sh":
            for line, command in block.commands():
                words = shlex.split(command, comments=True)
                try:
                    _parse(words) if words[0] == "slice3d" else _check_other(words)
                except (AssertionError, REFUSED) as error:
                    pytest.fail(f"{_id(page)}:{line}: {command}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_no_command_hides_from_the_tests(page: Path) -> None:
    """A command outside a `sh` block, or a Python block under another name, would not be seen."""
    for block in blocks(page):
        assert block.language in ("python", "sh", "text", "toml", "json"), f"line {block.line}: {block.language!r}"
        if block.language == "text":
            assert not re.search(r"^\$? ?(slice3d|python|import|pip) ", block.text, re.MULTILINE), block.line
    assert not re.search(r"^(    |\t)(slice3d|make|pip|pipx|docker|python|import|from) ", prose(page), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_commands_named_in_prose_exist(page: Path) -> None:
    """`slice3d evaluate PRED REF --resample` in a sentence: the command and its options are known."""
    for found in re.findall(r"`slice3d ([^`]+)`", prose(page)):
        words = found.split()
        name = next((n for n in (f"slice3d {' '.join(words[:d])}" for d in (2, 1)) if n in COMMANDS), None)
        if name is None:
            assert words[0] in ("models", "--help", "--version", "COMMAND") or words[0].startswith("--"), found
            continue
        known = {flag for p in COMMANDS[name].params for flag in (*p.opts, *p.secondary_opts)} | {"--help"}
        used = {re.sub(r"[=\].,…].*", "", w.lstrip("[")) for w in words if w.lstrip("[").startswith("--")}
        assert used <= known, f"{found}: {used - known}"


def test_the_parser_refuses_what_the_command_line_refuses() -> None:
    # The rule is only worth something if it can fail.
    for wrong in (
        "slice3d segmnt x",
        "slice3d segment x --organ liver --out y --fast",
        "slice3d mesh labels.nii.gz",
        "slice3d --fast",
    ):
        with pytest.raises((AssertionError, REFUSED)):
            _parse(wrong.split())
    with pytest.raises(AssertionError):
        _check_other(["pip", "install", "slice3d[everything]"])
    assert blocks(ROOT / "docs" / "cohort.md")[0].not_run


# --- completeness --------------------------------------------------------------------------------------------------


def _shown_commands() -> set[str]:
    shown: set[str] = set()
    for page in PAGES:
        for block in blocks(page):
            for _, command in block.commands() if block.language == "sh" else ():
                words = shlex.split(command, comments=True)
                shown |= {" ".join(words[:d]) for d in (2, 3)}
    return shown


def test_every_command_is_shown_by_example() -> None:
    missing = sorted(set(COMMANDS) - _shown_commands())
    assert not missing, f"no example in the docs for {missing}"


def test_every_option_has_a_help_text() -> None:
    bare = [
        f"{name} {p.name}" for name, command in COMMANDS.items() for p in command.params
        if p.name != "help" and not getattr(p, "help", None)
    ]  # fmt: skip
    assert not bare
    assert all((command.help or "").strip() for command in COMMANDS.values())


PUBLIC_MODULES = sorted(
    module for page in (ROOT / "docs" / "reference").glob("*.md")
    for module in re.findall(r"<!-- fill: reference ([\w.]+) -->", page.read_text(encoding="utf-8"))
)  # fmt: skip


def test_every_public_module_has_a_page() -> None:
    from slice3d import _MODULES, _PUBLIC

    expected = {"slice3d", *(f"slice3d.{name}" for name in _MODULES), *_PUBLIC.values()} - {"slice3d.training"}
    within = {"slice3d.grid", "slice3d.volume", "slice3d.mesh", "slice3d.findings"}  # their names are those of slice3d
    assert expected - within <= set(PUBLIC_MODULES)
    assert any(module.startswith("slice3d.training.") for module in PUBLIC_MODULES)


def test_every_public_name_has_a_docstring() -> None:
    bare = []
    for module in PUBLIC_MODULES:
        for name in HOOKS.names(module):
            value = getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2])
            if callable(value) and not (value.__doc__ or "").strip():
                bare.append(name)
            if isinstance(value, type) and (value.__doc__ or "").startswith(f"{value.__name__}("):
                bare.append(name)  # what dataclass writes where nobody wrote anything
    assert not bare


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    call = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "-f",
        "docs/site/mkdocs.yml",
        "-d",
        str(out),
    ]
    # a proxy that is not there: a build that fetches something fails
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, env=os.environ | nowhere)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_site_documents_every_public_name(site: Path) -> None:
    ids = {i for page in (site / "reference").glob("*.html") for i in re.findall(r'id="([\w.]+)"', page.read_text())}
    missing = [n for module in PUBLIC_MODULES for n in HOOKS.names(module) if n not in ids and n != "slice3d.models"]
    assert not missing


def test_the_site_documents_every_command_and_option(site: Path) -> None:
    page = (site / "reference" / "cli.html").read_text()
    missing = [
        f"{name} {flag}" for name, command in COMMANDS.items()
        for flag in (name, *(o for p in command.params if p.param_type_name == "option" for o in p.opts))
        if f"<code>{flag}</code>" not in page
    ]  # fmt: skip
    assert not missing


def test_the_site_shows_every_benchmark(site: Path) -> None:
    page = (site / "benchmarks.html").read_text()
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert results
    assert all(f"benchmarks/results/{path.name}" in page for path in results)


def test_the_site_shows_every_notebook_with_its_code(site: Path) -> None:
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        page = (site / "notebooks" / f"{path.stem}.html").read_text()
        cells = json.loads(path.read_text())["cells"]
        fenced = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown").count("```") // 2
        assert page.count("<pre>") == fenced + sum(c["cell_type"] == "code" for c in cells)


def test_the_site_opens_from_a_folder_without_a_network(site: Path) -> None:
    """Every kind of page in a real browser: no request, no error on the console, and the search finds something."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = needs("chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(offline=True, color_scheme="dark").new_page()
        page.set_default_timeout(240_000)  # a busy machine is no reason for a red test
        trouble: list[str] = []
        page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else trouble.append(r.url))
        for name in ("index", "benchmarks", "architecture", "reference/metrics", "reference/cli"):
            page.goto((site / f"{name}.html").as_uri())
            assert page.locator("h1").inner_text()
        page.locator("input[name=query]").click()
        page.locator("input[name=query]").press_sequentially("Hausdorff", delay=50)
        page.locator(".md-search-result__item").first.wait_for()
        browser.close()
    assert not trouble


def test_the_picture_of_the_layers_is_up_to_date() -> None:
    drawing = _load(ROOT / "docs" / "pictures" / "layers.py")
    picture = (ROOT / "docs" / "pictures" / "layers.svg").read_text(encoding="utf-8")
    assert drawing.described(drawing.rule()) in picture, "the rule changed: run python docs/pictures/layers.py"


# --- pages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_and_pictures_exist(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to {missing}"


def test_pages_name_no_machine_path() -> None:
    for page in [*PAGES, *sorted((ROOT / "benchmarks").rglob("*.json")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"/(home|work|root|Users)/", text), page.name
        assert os.uname().nodename not in text or len(os.uname().nodename) < 6, page.name


def test_blocks_are_cut_as_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n\n<!-- not run: why -->\n\n```sh\nslice3d a \\\n  --b  # c\n# d\n```\n\n```python\nx\n```\n")
    assert blocks(page) == [Block("sh", "slice3d a \\\n  --b  # c\n# d\n", 6, "why"), Block("python", "x\n", 12, "")]
    assert blocks(page)[0].commands() == [(6, "slice3d a  --b  # c")]
