"""Many cases: nothing may hide, and finding less may never score better."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from typer import Typer
from typer.testing import CliRunner

from slice3d.errors import InputError
from slice3d.grid import Grid
from slice3d.metrics import evaluate_cases, rank, ranking_plot, summarise
from slice3d.metrics.cases import CaseSettings, pair_names
from slice3d.volume import Segmentation
from tests.metrics.shapes import blobs

GRID = Grid.from_spacing((20, 18, 12), (0.9, 1.1, 3.0))
NAMES = {1: "liver", 2: "tumour"}


def labels(liver_seed, tumour=True):
    data = blobs(GRID.shape, liver_seed).astype(np.uint8)
    if tumour:
        data[3:6, 4:8, 2:5] = 2
    return Segmentation(data, GRID, NAMES)


def scores(predictions, references):
    cases = {
        f"case{n}": (None if p is None else partial(lambda x: x, p), partial(lambda x: x, r))
        for n, (p, r) in enumerate(zip(predictions, references, strict=True))
    }
    return evaluate_cases(cases)


REFERENCES = [labels(1), labels(2), labels(3, tumour=False), labels(4)]


def test_counts_of_missed_invented_and_empty_cases():
    predictions = [labels(1), labels(2, tumour=False), labels(3), None]
    table = summarise(scores(predictions, REFERENCES))
    row = table.loc[("tumour", "dice")]
    assert (row["cases"], row["missed"], row["invented"], row["both_empty"]) == (4, 2, 1, 0)
    assert row["mean"] == pytest.approx(1 / 4)
    assert table.loc[("tumour", "hd_mm"), "mean"] == pytest.approx(0.75 * np.linalg.norm(GRID.size_mm))
    assert table.loc[("liver", "dice"), "missed"] == 1
    assert table.loc[("liver", "dice"), "low"] <= table.loc[("liver", "dice"), "mean"]


@pytest.mark.parametrize("metric", ["dice", "precision", "sensitivity", "nsd", "hd_mm", "hd95_mm", "assd_mm"])
def test_leaving_out_or_inventing_never_improves_a_mean(metric):
    wrong = Segmentation(np.roll(REFERENCES[0].labels, 5, axis=1), GRID, NAMES)  # bad, but there
    honest = [wrong, *REFERENCES[1:]]
    lazy = [labels(1, tumour=False), *REFERENCES[1:]]
    inventive = [wrong, REFERENCES[1], labels(3), REFERENCES[3]]
    means = [summarise(scores(p, REFERENCES)).loc[("tumour", metric), "mean"] for p in (honest, lazy, inventive)]
    sign = -1 if metric.endswith("mm") else 1
    assert sign * means[1] <= sign * means[0]
    assert sign * means[2] <= sign * means[0]


def test_both_empty_is_counted_not_scored():
    table = summarise(scores(REFERENCES, REFERENCES))
    assert table.loc[("tumour", "dice"), "both_empty"] == 1
    assert table.loc[("tumour", "dice"), "mean"] == 1
    assert table.loc[("tumour", "dice"), "undefined"] == 0


def test_summary_is_reproducible_and_checks_its_settings():
    table = scores([labels(9), labels(8), labels(7), labels(6)], REFERENCES)
    pd.testing.assert_frame_equal(summarise(table, seed=3), summarise(table, seed=3))
    with pytest.raises(InputError, match="confidence"):
        summarise(table, confidence=1.5)
    with pytest.raises(InputError, match="no cases"):
        evaluate_cases({})


def test_rank():
    good, bad = scores(REFERENCES, REFERENCES), scores([labels(1), None, labels(3), labels(8)], REFERENCES)
    table = rank({"good": good, "bad": bad})
    assert table.loc[("case1", "tumour"), "good"] == 1
    assert table.loc[("case1", "tumour"), "bad"] == 2
    assert table.loc[("case0", "liver")].tolist() == [1.5, 1.5]
    # rightly finding nothing beats inventing; where both found nothing there is nothing to rank
    assert table.loc[("case2", "tumour")].tolist() == [1, 2]
    again = rank({"a": good, "b": good}, metric="hd_mm")
    assert ("case2", "tumour") not in again.index
    assert len(ranking_plot({"good": good, "bad": bad}).axes) == 1
    with pytest.raises(InputError, match="at least two"):
        rank({"good": good})
    with pytest.raises(InputError, match="no metric"):
        rank({"good": good, "bad": bad}, metric="beauty")


def test_pairs_by_name():
    pairs, extra = pair_names(["a.seg.nrrd", "c.nii.gz"], ["a.nii.gz", "b.nii.gz"])
    assert pairs == {"a.nii.gz": "a.seg.nrrd", "b.nii.gz": None}
    assert extra == ["c.nii.gz"]


@pytest.fixture
def command(monkeypatch):
    from slice3d.cli.evaluate import evaluate

    stored = {}
    monkeypatch.setattr("slice3d.io.load_segmentation", lambda path: stored[path.name], raising=False)
    app = Typer(pretty_exceptions_enable=False)
    app.command()(evaluate)

    def write(path, segmentation):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        stored[path.name] = segmentation

    def run(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return write, run


def test_command_two_files(command, tmp_path):
    write, run = command
    write(tmp_path / "p.nii.gz", labels(1))
    write(tmp_path / "r.nii.gz", labels(2, tumour=False))
    result = run(tmp_path / "p.nii.gz", tmp_path / "r.nii.gz", "--out", tmp_path / "s.json", "--percentile", 50)
    assert result.exit_code == 0, result.output
    row = json.loads((tmp_path / "s.json").read_text())["methods"]["p"]["cases"]["r"]["tumour"]
    assert row["status"] == "invented"
    assert row["hd_mm"] is None
    assert "hd50_mm" in row
    assert run(tmp_path / "p.nii.gz", tmp_path / "r.nii.gz", "--out", tmp_path / "s.csv", "--quiet").exit_code == 0
    assert len(pd.read_csv(tmp_path / "s.csv")) == 2


def test_command_folders_count_a_missing_prediction(command, tmp_path):
    write, run = command
    for name, reference in zip("abc", REFERENCES, strict=False):
        write(tmp_path / "ref" / f"{name}.nii.gz", reference)
    write(tmp_path / "one" / "a.nii.gz", REFERENCES[0])
    write(tmp_path / "two" / "b.nii.gz", REFERENCES[1])
    plot = tmp_path / "rank.png"
    arguments = (tmp_path / "one", tmp_path / "ref", "--versus", tmp_path / "two", "--ranking", plot, "--json")
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)["methods"]["one"]["summary"]["liver"]["dice"]
    assert summary["missed"] == 2
    assert summary["mean"] == pytest.approx(1 / 3)
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize("extra", [("--out", "x.xlsx"), ("--ranking", "r.png"), ("--convention", "x")])
def test_command_refuses(command, tmp_path, extra):
    write, run = command
    write(tmp_path / "p.nii.gz", labels(1))
    result = run(tmp_path / "p.nii.gz", tmp_path / "p.nii.gz", *extra)
    assert isinstance(result.exception, InputError)
    assert isinstance(run(tmp_path / "p.nii.gz", tmp_path / "none.nii.gz").exception, InputError)
    assert isinstance(run(tmp_path, tmp_path / "p.nii.gz").exception, InputError)


def test_an_empty_prediction_is_a_miss_and_errors_name_their_case():
    reference = labels(3, tumour=False)
    nothing = Segmentation(np.zeros(GRID.shape, np.uint8), GRID, {})  # a file without voxels has no names either
    table = scores([reference, nothing], [reference, reference])
    assert table.loc[("case1", "liver"), "status"] == "missed"
    assert summarise(table).loc[("liver", "dice"), "mean"] == 0.5
    other = Segmentation(np.zeros((4, 4, 4), np.uint8), Grid.from_spacing((4, 4, 4), (1, 1, 1)), NAMES)
    with pytest.raises(InputError, match=r"case case1: .*--resample"):
        scores([reference, other], [reference, reference])
    with pytest.raises(InputError, match="reference names no structure"):
        scores([nothing], [nothing])


def test_what_a_reference_does_not_name_may_be_invented_there():
    """Label maps without names hold only the labels that occur: a healthy case has no tumour to name."""
    ill = labels(3)
    healthy = Segmentation(np.where(ill.labels == 2, 0, ill.labels), GRID, {1: ill.names[1]})
    nothing = Segmentation(np.zeros(GRID.shape, np.uint8), GRID, {})
    assert set(healthy.structures) < set(ill.structures)
    table = scores([ill, ill, ill, nothing], [ill, healthy, nothing, nothing])
    assert table["status"].unstack().loc[["case1", "case2", "case3"], ["liver", "tumour"]].to_numpy().tolist() == [
        ["ok", "invented"],
        ["invented", "invented"],
        ["both empty", "both empty"],
    ]
    summary = summarise(table)
    assert summary.loc[("tumour", "dice"), "mean"] == pytest.approx(1 / 3)
    assert summary.loc[("tumour", "dice"), "invented"] == 2
    with pytest.raises(InputError, match="no structure 'spleen' in the reference; it holds: liver"):
        evaluate_cases({"a": (lambda: ill, lambda: healthy)}, settings=CaseSettings(structures=("spleen",)))
