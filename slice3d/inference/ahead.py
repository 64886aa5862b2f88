"""The next study is read while one is segmented."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """Draws from an iterator in one other thread: an item at a time, and ahead only when told to."""

    def __init__(self, items: Iterable[Item], reader: ThreadPoolExecutor) -> None:
        self._items = iter(items)
        self._reader = reader
        self._coming: Future[Item | None] | None = None

    def start(self) -> None:
        """Begin to draw the next item, unless that has begun already."""
        if self._coming is None:
            self._coming = self._reader.submit(next, self._items, None)

    def take(self) -> Item | None:
        """The next item, None after the last one. Raises what drawing it raised."""
        self.start()
        coming, self._coming = self._coming, None
        return coming.result() if coming else None


@contextmanager
def ahead_of(items: Iterable[Item]) -> Iterator[Ahead[Item]]:
    """`Ahead` over items; its thread has ended afterwards."""
    with ThreadPoolExecutor(1, "reading ahead") as reader:
        yield Ahead(items, reader)
