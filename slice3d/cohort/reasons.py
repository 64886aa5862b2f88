"""Why a case failed: a kind for the machine and one line for people, without names of files, folders or persons."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from slice3d.cohort.store import Kind
from slice3d.errors import MissingExtraError, ModelError, QualityError, Slice3DError

_RESOURCE = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.EROFS,
    errno.ECONNRESET, errno.ECONNREFUSED, errno.EPIPE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EAGAIN, errno.EBUSY,
}  # fmt: skip
# what torch's allocators say, on CPU and CUDA
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|cannot allocate memory", re.IGNORECASE)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def classify(error: BaseException) -> Kind:
    """What kind of failure this is; the cause of an error counts as much as the error."""
    for link in _chain(error):
        if isinstance(link, MemoryError) or (isinstance(link, RuntimeError) and _NO_MEMORY.search(str(link))):
            return "memory"
        if isinstance(link, OSError) and link.errno == errno.ENOMEM:
            return "memory"
        if isinstance(link, ConnectionError | TimeoutError) or (isinstance(link, OSError) and link.errno in _RESOURCE):
            return "resource"
    if isinstance(error, ModelError | MissingExtraError):
        return "model"
    if isinstance(error, QualityError):
        return "quality"
    return "input" if isinstance(error, Slice3DError) else "bug"


def explain(error: BaseException, source: Path, files: Iterable[Path], out: Path | None = None) -> str:
    """One line about a failure. Only slice3d's own messages are shown: others may quote what they met in a file."""
    kind = classify(error)
    if isinstance(error, Slice3DError):
        return redact(" ".join(str(error).split()), source, files, out)[:500]
    if kind == "memory":
        return "not enough memory within this worker's budget; fewer workers, a larger --memory or a crop would help"
    if isinstance(error, OSError):
        number = error.errno
        return f"the system refused a read or write ({errno.errorcode.get(number or 0, type(error).__name__)})"
    return f"unexpected {type(error).__name__} in {_where(error)}; please report it with the study's kind of scanner"


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    place = "an unknown place"
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.startswith("slice3d"):
            place = f"{module}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def redact(text: str, source: Path, files: Iterable[Path], out: Path | None = None) -> str:
    """`text` without the path of a study or the names in it, nor that of the results: whole paths first, then names,
    longest first.
    """
    if out is not None:
        text = re.sub(rf"{re.escape(str(out))}[^\s:;]*", "‹results›", text)
    names: dict[str, str] = {str(source): "‹study›", str(source.parent): "‹cohort›", source.name: "‹study›"}
    for path in files:
        names.setdefault(str(path), "‹file›")
        for part in path.relative_to(source).parts if source in path.parents else (path.name,):
            names.setdefault(part, "‹file›")
        names.setdefault(path.name.partition(".")[0], "‹file›")
    # a name of one or two characters says nothing about anybody, and replacing it would spoil the sentence
    for name in sorted((n for n in names if len(n) > 2), key=len, reverse=True):
        text = re.sub(rf"(?<![\w‹]){re.escape(name)}(?![\w›])", names[name], text)
    return text
