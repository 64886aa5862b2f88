"""Many studies in a row: the next one is read while one is segmented, where there is room."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from slice3d.errors import InputError, ModelError
from slice3d.inference import Engine, InferenceSettings
from slice3d.volume import Volume
from tests.inference.builders import oblique_volume, random_network, write_package

FLOAT32 = InferenceSettings(precision="float32", postprocess=False, device="cpu", threads=1)
THREAD = "reading ahead"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(write_package(tmp_path_factory.mktemp("models") / "tiny", random_network()), FLOAT32)


def studies() -> list[Volume]:
    """Three that differ."""
    volume = oblique_volume()
    return [volume, replace(volume, data=volume.data[::-1].copy()), replace(volume, data=volume.data // 2)]


def readers() -> list[threading.Thread]:
    """Threads still reading, after those that have nothing left to do had time to end."""
    for thread in (found := [t for t in threading.enumerate() if t.name.startswith(THREAD)]):
        thread.join(10)
    return [thread for thread in found if thread.is_alive()]


def test_results_are_those_of_one_by_one_and_in_order(engine: Engine) -> None:
    found = list(engine.predict_each(studies(), structures=["spleen"]))
    alone = [engine.predict(volume, structures=["spleen"]) for volume in studies()]
    assert [len(np.unique(one.labels)) for one in alone] == [2, 2, 2]
    for one, other in zip(found, alone, strict=True):
        assert np.array_equal(one.labels, other.labels)
        assert one.findings == other.findings
    assert not np.array_equal(found[0].labels, found[1].labels)
    assert list(engine.predict_each([])) == []
    assert not readers()


def test_next_study_is_read_during_inference_and_only_one_ahead(engine: Engine) -> None:
    drawn: list[tuple[int, str]] = []
    begun = threading.Event()

    def read() -> Iterator[Volume]:
        for n, volume in enumerate(studies()):
            drawn.append((n, threading.current_thread().name))
            if n == 1:
                begun.set()
            yield volume

    waited = []
    results = engine.predict_each(read(), progress=lambda *_: waited.append(begun.wait(30)))
    next(results)
    assert waited
    assert all(waited), "the second study is drawn before the first one is through"
    assert [n for n, _ in drawn] == [0, 1]
    assert all(name.startswith(THREAD) for _, name in drawn)
    results.close()
    assert not readers(), "a loop that is left leaves no thread behind"
    assert len(drawn) == 2


def test_without_room_for_a_second_study_nothing_is_read_ahead(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slice3d.inference.engine._size_gib", lambda _: 1e6)
    drawn = []
    results = engine.predict_each(drawn.append(n) or volume for n, volume in enumerate(studies()))
    for n, _ in enumerate(results):
        assert drawn == list(range(n + 1))
    assert drawn == [0, 1, 2]


def test_without_room_the_study_before_is_let_go_before_the_next_is_read(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slice3d.inference.engine._size_gib", lambda _: 1e6)
    alive: list[bool] = []
    before: list[weakref.ref[Volume]] = []

    def read() -> Iterator[Volume]:
        for n in range(3):
            alive.extend(ref() is not None for ref in before)
            volume = studies()[n]
            before[:] = [weakref.ref(volume)]
            yield volume
            del volume

    for result in engine.predict_each(read()):
        assert result.labels.any()
        del result
    assert alive == [False, False]


def test_who_stops_does_not_wait_for_a_slow_reader(engine: Engine) -> None:
    slow = threading.Event()

    def read() -> Iterator[Volume]:
        yield studies()[0]
        slow.wait(60)
        yield studies()[1]

    def cancel(*_: object) -> None:
        raise KeyboardInterrupt

    results = engine.predict_each(read(), progress=cancel)
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert not slow.is_set(), "stopped while the second study is still being read"
    results = engine.predict_each(read())
    next(results)
    results.close()
    assert not slow.is_set()
    slow.set()
    assert not readers()


@pytest.mark.parametrize("odd", [None, "study-2", 3])
def test_what_is_no_study_is_refused_when_its_turn_has_come(engine: Engine, odd: object) -> None:
    results = engine.predict_each([studies()[0], odd, studies()[1]])  # type: ignore[list-item]
    assert next(results).labels.any()
    with pytest.raises(InputError, match=r"expected a Volume, as `slice3d\.load` makes"):
        next(results)


def test_one_study_alone_is_for_predict(engine: Engine) -> None:
    with pytest.raises(InputError, match="got one Volume; expected several"):
        next(engine.predict_each(studies()[0]))  # type: ignore[arg-type]


def test_all_arrays_of_a_study_count(engine: Engine) -> None:
    from slice3d.inference.engine import _size_gib

    volume = studies()[0]
    marked = replace(
        volume, synthesised=np.zeros(volume.data.shape, bool), uncertainty=np.zeros(volume.data.shape, np.float32)
    )
    assert _size_gib([marked]) == pytest.approx(_size_gib([volume]) + 5 * volume.data.size / 1024**3)


def test_what_reading_raises_comes_when_its_turn_has(engine: Engine) -> None:
    def read() -> Iterator[Volume]:
        yield studies()[0]
        raise InputError("the second one is damaged")

    results = engine.predict_each(read())
    assert next(results).labels.any()
    with pytest.raises(InputError, match="second one is damaged"):
        next(results)
    assert list(results) == []
    assert not readers()


def test_budget_is_kept_as_in_a_single_run(engine: Engine) -> None:
    with pytest.raises(ModelError, match="raise --memory"):
        next(engine.predict_each(studies(), settings=replace(FLOAT32, memory_gib=0.1)))
    assert not readers()
