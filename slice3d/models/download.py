"""Fetching a model: resumable, with progress, checked against its published hash."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from slice3d.errors import MissingExtraError, ModelError
from slice3d.progress import Progress, silent

_BLOCK = 1 << 16


def fetch(url: str, folder: Path, *, sha256: str = "", progress: Progress = silent) -> Path:
    """Download `url` into `folder` and return the file; a broken download goes on where it stopped.

    sha256: expected hash, "" where none is published. Raises `ModelError` when the server cannot be reached or the hash
    differs (the file is then removed).
    """
    try:
        import pooch
    except ImportError as error:
        raise MissingExtraError("downloading needs the package pooch; run `pip install pooch`") from error
    import requests

    pooch.get_logger().setLevel(logging.WARNING)  # progress goes to the callback, not to standard error
    name = hashlib.sha256(url.encode()).hexdigest()[:16] + Path(url.split("?")[0]).suffix
    folder.mkdir(parents=True, exist_ok=True)
    try:
        path = pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}" if sha256 else None,
            fname=name,
            path=folder,
            downloader=_Resuming(folder / f"{name}.part", progress),
        )
    except ValueError as error:
        (folder / f"{name}.part").unlink(missing_ok=True)
        if "hash" in str(error).lower():
            raise ModelError(f"the download does not have the published SHA-256 {sha256[:12]}…; try again") from error
        raise ModelError(f"cannot download from {url!r}; expected an http(s) address") from error
    except (requests.RequestException, OSError) as error:
        raise ModelError(
            f"cannot download the model ({type(error).__name__}); check the connection, try again, or pass a file"
        ) from error
    return Path(path)


class _Resuming:
    """A pooch downloader that keeps what it has got so far in a `.part` file and asks the server for the rest."""

    def __init__(self, part: Path, progress: Progress) -> None:
        self.part, self.progress = part, progress

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> bool | None:
        import requests

        if check_only:
            return bool(requests.head(url, timeout=30).ok)
        have = self.part.stat().st_size if self.part.exists() else 0
        with requests.get(url, stream=True, timeout=30, headers={"Range": f"bytes={have}-"} if have else {}) as answer:
            if answer.status_code == 416:  # nothing is left to fetch
                answer.close()
            else:
                answer.raise_for_status()
                resumed = answer.status_code == 206
                total = int(answer.headers.get("content-length", 0)) + (have if resumed else 0)
                with self.part.open("ab" if resumed else "wb") as sink:
                    done = have if resumed else 0
                    for block in answer.iter_content(_BLOCK):
                        sink.write(block)
                        done += len(block)
                        self.progress("download", min(1.0, done / total) if total else 0.0)
                if total and done != total:
                    raise requests.ConnectionError(f"{done} of {total} bytes arrived")
        self.part.replace(output_file)
        return None
