"""The next study is read while one is segmented."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Ahead(Iterator[Item], Generic[Item]):
    """Draws from an iterator in one other thread: an item at a time, and ahead only when told to."""

    def __init__(self, items: Iterable[Item], reader: ThreadPoolExecutor) -> None:
        self._items = iter(items)
        self._reader = reader
        self._coming: Future[Item] | None = None

    def start(self) -> None:
        """Begin to draw the next item, unless that has begun already."""
        self._coming = self._coming or self._reader.submit(next, self._items)

    def __next__(self) -> Item:
        coming = self._coming or self._reader.submit(next, self._items)
        self._coming = None
        return coming.result()


@contextmanager
def ahead_of(items: Iterable[Item]) -> Iterator[Ahead[Item]]:
    """`Ahead` over items. What is being read when it is left is read to its end; only the interpreter's own end waits."""
    reader = ThreadPoolExecutor(1, "reading ahead")
    try:
        yield Ahead(items, reader)
    finally:
        # whoever stops a run does not wait for a slow archive; and a thread cannot wait for itself, when it is
        # garbage collection there that closes a loop left long ago
        reader.shutdown(wait=False, cancel_futures=True)
