"""Cross-validation: no network is scored on a case that it, or the stage it began from, was trained on."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slice3d.errors import InputError
from slice3d.grid import Grid
from slice3d.training import cases, crossval, hippocampus, sarcoma
from slice3d.training.crossval import hd95, make_folds, reliability, score, summary, volume_ranges
from slice3d.training.structures import IGNORE
from slice3d.volume import Segmentation
from tests.training.builders import write_hippocampi


@given(count=st.integers(2, 6), extra=st.integers(0, 30), seed=st.integers(0, 5))
def test_folds_are_a_fair_deal_of_all_cases(count: int, extra: int, seed: int) -> None:
    names = [f"case_{n:02}" for n in range(count + extra)]
    folds = make_folds(names[::-1], count, seed=seed)
    assert sorted(name for fold in folds for name in fold) == names
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    assert folds == make_folds(names, count, seed=seed)


def test_folds_without_a_case_are_refused() -> None:
    with pytest.raises(InputError, match="4 folds of 3 cases"):
        make_folds(["a", "b", "c"], 4)


@pytest.mark.parametrize("shared", [True, False])
def test_nothing_held_out_is_drawn_in_either_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    seen: dict[str, set[str]] = {}
    begun: dict[str, str] = {}

    def fit(pool: Any, settings: Any, folder: Path, **rest: Any) -> Path:
        seen[folder.name] = set(pool.names)
        return folder / "last.ckpt"

    monkeypatch.setattr("slice3d.training.loop.fit", fit)
    monkeypatch.setattr(
        "slice3d.training.loop.warm_start", lambda ckpt, folder: begun.update({folder.name: ckpt.parent.name})
    )
    names = [f"case_{n}" for n in range(11)]
    for name in names:
        cases.save(cases.Case(name, np.zeros((4, 4, 4), np.float32), np.ones((4, 4, 4), np.uint8), (1, 1, 1)), tmp_path)
    folds = make_folds(names, 5)
    how = hippocampus.stages(hippocampus.Recipe(again=((5, 1e-3),)))
    crossval.train_folds(tmp_path, folds, how, tmp_path, shared=how[0] if shared else None)
    for number, held in enumerate(folds):
        history: set[str] = set()
        stage: str | None = f"fold-{number}-stage-1"
        while stage is not None:  # back to where its weights began
            history, stage = history | seen[stage], begun.get(stage)
        assert not history & set(held)
        assert seen[f"fold-{number}"] == seen[f"fold-{number}-stage-1"] == set(names) - set(held)
    assert len(begun) == (10 if shared else 5)
    assert begun["fold-0-stage-1"] == "fold-0"


def test_scores_of_a_known_overlap() -> None:
    grid = Grid((10, 12, 14), np.diag([1.0, 2.0, 1.0, 1.0]))
    truth, found = np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, np.uint8)
    truth[2:6, 2:6, 2:6], truth[2:6, 6:10, 2:6] = 1, 2
    found[2:6, 3:7, 2:6], found[2:6, 7:10, 2:6] = 1, 2
    names = {1: "hippocampus_anterior", 2: "hippocampus_posterior"}
    result = Segmentation(
        found, grid, names, groups={"hippocampus": (1, 2)},
        metadata={"reliability": {"hippocampus_anterior": {"soft_dice": 0.9}}},
    )  # fmt: skip

    class Package:
        structures = (*names.values(), "hippocampus")
        values = staticmethod(result.values)

    table = score(result, truth, Package, lesions=True)  # type: ignore[arg-type]
    assert table["hippocampus_anterior"]["dice"] == 0.75
    assert table["hippocampus_anterior"]["soft_dice"] == 0.9
    assert table["hippocampus"]["dice"] == pytest.approx(2 * 112 / (128 + 112), abs=1e-4)
    assert table["hippocampus"]["reference_ml"] == pytest.approx(0.256)
    assert (table["hippocampus"]["found"], table["hippocampus"]["missed"]) == (1, 0)
    assert "soft_dice" not in table["hippocampus_posterior"]
    assert "hd95_mm" in table["hippocampus"]
    nothing = replace(result, labels=np.zeros_like(found))
    row = score(nothing, truth, Package)["hippocampus"]  # type: ignore[arg-type]
    assert row["dice"] == 0
    assert "hd95_mm" not in row, "infinity is no JSON"
    assert hd95(row) == "–"
    unknown = np.where(found == 0, IGNORE, truth)  # nothing but what was drawn is known
    assert score(result, unknown, Package)["hippocampus"]["dice"] == 1  # type: ignore[arg-type]
    without = score(result, np.where(truth == 2, 0, truth), Package)  # type: ignore[arg-type]
    assert without["hippocampus_posterior"] == {"invented_ml": pytest.approx(0.096)}
    assert "dice" in without["hippocampus"]


def test_volumes_keep_their_size_whatever_it_is() -> None:
    small = {f"case_{n}": {"cochlea": {"reference_ml": 2.7e-4 + 1e-6 * n}} for n in range(10)}
    low, high = volume_ranges(small)["cochlea"]
    assert low == pytest.approx(0.75 * 2.745e-4, rel=1e-3)
    assert high == pytest.approx(1.25 * 2.745e-4, rel=1e-3)
    large = {f"case_{n}": {"liver": {"reference_ml": 1500.0 + 100 * (-1) ** n}} for n in range(10)}
    assert volume_ranges(large)["liver"] == [1100, 1900]


def test_calibration_and_summary_come_from_the_scores() -> None:
    rng = np.random.default_rng(3)
    scores, seen = {}, []
    for n in range(40):
        own = float(rng.uniform(0.6, 0.98))
        seen.append(own)
        scores[f"case_{n}"] = {"a": {"dice": 1.5 * own - 0.5, "soft_dice": own}, "b": {"dice": 0.5, "soft_dice": own}}
    found = reliability(scores, per_structure=True)
    assert found["structures"]["a"]["slope"] == pytest.approx(1.5)
    assert found["structures"]["b"] == pytest.approx({"intercept": 0.5, "slope": 0.0, "residual": 0.0, "cases": 40})
    assert found["seen"] == {"a": [min(seen), max(seen)], "b": [min(seen), max(seen)]}
    assert reliability(scores, per_structure=False)["structures"] == {}
    assert summary(scores)["b"] == {"mean": 0.5, "sd": 0.0, "median": 0.5, "min": 0.5, "max": 0.5, "cases": 40}


RECIPE = hippocampus.Recipe(folds=2, shared_steps=40, steps=10, again=())


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hippocampi(tmp_path_factory.mktemp("data"), cases=4)


@pytest.fixture(scope="module")
def finished(crops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole recipe, much shortened, on crops whose answer is easy."""
    out = tmp_path_factory.mktemp("run")
    hippocampus.train_hippocampus(crops, out, recipe=RECIPE)
    return out


def test_the_recipe_makes_a_package_with_every_fold(finished: Path) -> None:
    from slice3d.models.package import read_package

    package = read_package(finished / "package")
    package.verify()
    assert len(package.weights) == 2
    assert package.structures == ("hippocampus_anterior", "hippocampus_posterior", "hippocampus")
    assert package.licence == "CC-BY-SA-4.0"
    facts = package.description["training"]
    assert sorted(case for held in facts["held_out_by_fold"] for case in held) == facts["cases"]
    assert package.reliability["default"]["cases"] == 12
    assert package.reliability["volume_ml"]["hippocampus"][0] < package.reliability["volume_ml"]["hippocampus"][1]
    assert all(case in (finished / "package" / "README.md").read_text() for case in facts["cases"])


def test_its_scores_can_be_computed_again_from_its_weights(finished: Path, crops: Path) -> None:
    from slice3d.models.package import read_package

    package = read_package(finished / "package")
    stored = json.loads((finished / "cross-validation.json").read_text())
    assert package.description["scores"] == stored["scores"]
    again = crossval.score_folds(package, hippocampus.read(crops).pairs, [held[:1] for held in stored["folds"]])
    assert again == {case: stored["scores"][case] for case in again}
    assert summary(stored["scores"])["hippocampus"]["mean"] > 0.6


def test_a_finished_run_is_not_trained_again(finished: Path, crops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = json.loads((finished / "cross-validation.json").read_text())["scores"]
    monkeypatch.setattr(crossval, "score_folds", lambda *args, **rest: scores)
    before = {p.parent.name: p.read_text() for p in finished.glob("*/history.jsonl")}
    hippocampus.train_hippocampus(crops, finished, recipe=RECIPE)
    assert {p.parent.name: p.read_text() for p in finished.glob("*/history.jsonl")} == before
    assert len(before) == 4


def test_card_of_the_sarcoma_model_counts_lesions_and_warns() -> None:
    folds = (("a", "c"), ("b",))
    row = {"dice": 0.7, "hd95_mm": 9.5, "volume_ml": 80.0, "reference_ml": 100.0, "soft_dice": 0.8,
           "found": 1, "missed": 0, "invented": 2}  # fmt: skip
    scores = {case: {"sarcoma": row} for case in "abc"}
    facts = sarcoma.package_facts(folds, [sarcoma.shared_settings(sarcoma.Recipe())], scores)
    assert "| a | 0 | 0.700 | 9.5 | 80 | 100 | 1 | 0 | 2 |" in facts.card
    assert "cannot screen" in facts.card
    assert facts.training["cases"] == ["a", "b", "c"]
    assert facts.reliability["structures"] == {}


def test_missing_data_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layout of MSD task 4"):
        hippocampus.read(tmp_path)
    with pytest.raises(InputError, match=r"sarcoma-mr/\*_mask"):
        sarcoma.read(tmp_path)


def test_two_processes_train_the_folds_together_and_one_prepares_scores_and_exports(
    crops: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path; from slice3d.training import crossval, hippocampus\n"
        "from slice3d.training.loop import Processes\n"
        "recipe = hippocampus.Recipe(folds=2, shared_steps=2, steps=2, again=())\n"
        "hippocampus.train_hippocampus(Path(sys.argv[1]), Path(sys.argv[2]), recipe=recipe, processes=Processes(2),\n"
        "                              report=lambda line: print(line, flush=True))\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script), str(crops),
         str(tmp_path / "run")],
        env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("anterior: Dice") == 1, "scored once"
    assert (tmp_path / "run" / "package" / "model.json").exists()
