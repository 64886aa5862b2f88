"""Defaults out of slice3d.toml: they count, the command line wins, and what is wrong with them is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from slice3d.errors import InputError

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What `segment` hands to the pipeline, which is stubbed."""
    seen: dict[str, object] = {}

    def run(study: Path, out: Path, *, settings: object, **_: object) -> object:
        seen.update(study=study, out=out, settings=settings)

        class Result:
            def summary(self) -> dict[str, object]:
                return {"seen": True}

        return Result()

    monkeypatch.setattr("slice3d.pipeline.run", run)
    return seen


def test_file_in_the_working_folder_sets_defaults_and_the_command_line_wins(
    tmp_path: Path, slice3d: Call, settings: dict[str, object]
) -> None:
    (tmp_path / "slice3d.toml").write_text(
        '[segment]\norgan = ["liver", "spleen"]\nout = "results"\nreport = false\non_gap = "refuse"\nmemory = "8GiB"\n'
        'precision = "bf16"\n'
        "json = true\n[models.add]\nreplace = true\n"
    )
    code, printed, err = slice3d("segment", "study")
    assert (code, err) == (0, "")
    assert json.loads(printed) == {"seen": True}
    used = settings["settings"]
    assert used.organs == ("liver", "spleen")  # type: ignore[attr-defined]
    assert (used.report, used.on_gap, used.on_tilt) == (False, "refuse", "resample")  # type: ignore[attr-defined]
    assert used.inference.memory_gib == 8  # type: ignore[attr-defined]
    assert used.inference.precision == "bfloat16"  # type: ignore[attr-defined]
    assert settings["out"] == Path("results")
    slice3d("segment", "study", "--organ", "aorta", "--report", "--out", "elsewhere")
    assert settings["settings"].organs == ("aorta",)  # type: ignore[attr-defined]
    assert settings["settings"].report  # type: ignore[attr-defined]
    assert settings["out"] == Path("elsewhere")


def test_a_named_file_is_used_instead_of_the_one_here(
    tmp_path: Path, slice3d: Call, settings: dict[str, object]
) -> None:
    (tmp_path / "slice3d.toml").write_text("not TOML at all")
    (tmp_path / "mine.toml").write_text('[segment]\norgan = "liver,spleen"\njson = true\n')
    assert slice3d("--config", "mine.toml", "segment", "study", "--out", "out")[0] == 0
    assert settings["settings"].organs == ("liver", "spleen")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[segment]\norgans = ['liver']", "did you mean 'organ'?"),
        ("[segmnt]\norgan = 'liver'", "did you mean 'segment'?"),
        ("organ = 'liver'", "organ is no command"),
        ("[models]\nfolds = 1", "models.folds is no command"),
        ("[models.add]\nfold = 1", "did you mean 'folds'?"),
        ("[segment]\nreport = 'no'", "report in [segment] is 'no'; expected true or false"),
        ("[segment]\non_gap = 'ignore'", "on_gap in [segment] is 'ignore'"),
        ("[batch]\nworkers = 'many'", "workers in [batch] is 'many'"),
        ("[batch]\nworkers = [1, 2]", "expected plain text or numbers"),
        ("[segment]\norgan = [['liver']]", "expected a list of plain text or numbers"),
        ("[models.add]\ntrust = true", "trust in [models.add] cannot be a default; type --trust"),
        ("segment = 3", "expected a table, [segment]"),
        ("[segment", "slice3d.toml is not TOML"),
        ("[segment]\nstudy = 'here'", "study in [segment] is no option"),
        ("[segment]\nhelp = true", "help in [segment] is no option"),
    ],
)
def test_what_is_wrong_is_one_line(text: str, says: str, tmp_path: Path, slice3d: Call) -> None:
    (tmp_path / "slice3d.toml").write_text(text)
    code, printed, err = slice3d("segment", "study", "--out", "out")
    assert code == 2
    assert printed == ""
    assert err.count("\n") == 1
    assert err.startswith("slice3d: slice3d.toml")
    assert says in err


def test_a_file_that_is_not_there_is_named(slice3d: Call) -> None:
    code, _, err = slice3d("--config", "gone.toml", "models", "list")
    assert code == 2
    assert err == "slice3d: cannot read gone.toml: No such file or directory; expected a TOML file of defaults\n"


@pytest.mark.parametrize(("command", "made_by"), [("batch", "run_cohort"), ("watch", "pipeline_job")])
@pytest.mark.parametrize(("option", "expected"), [((), "auto"), (("--precision", "bf16"), "bfloat16")])
def test_precision_reaches_every_case_of_a_cohort(
    slice3d: Call, monkeypatch: pytest.MonkeyPatch, command: str, made_by: str, option: tuple[str, ...], expected: str
) -> None:
    seen = []

    def stop(*given: object, settings: object = None, **_: object) -> None:
        seen.append(settings or given[0])
        raise InputError("stop here")

    monkeypatch.setattr(f"slice3d.cohort.{made_by}", stop)
    code, _, err = slice3d(command, "studies", "--organ", "liver", "--out", "out", "--quiet", *option)
    assert code == 2
    assert "stop here" in err
    assert seen[0].inference.precision == expected
