"""Case functions without a model, fast enough to lose a hundred times. Workers import this module."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from slice3d.cohort.job import CaseInput
from slice3d.errors import InputError
from slice3d.output import Transaction
from slice3d.progress import Progress


@dataclass(frozen=True)
class Stub:
    """Takes `seconds`, appends a line to `journal` for every piece of work begun and ended, obeys words in the study.

    A study is a folder whose file `study.txt` holds a number (the volume in ml) or a word: `corrupt`, `hang`, `die`,
    `memory`, `hungry`, `bug`, `full-once`, `full-always`, `script`.
    """

    journal: str
    seconds: float = 0.0

    def __call__(self, case: CaseInput, out: Path, progress: Progress) -> None:
        text = (case.study / "study.txt").read_text()
        self._note("begin", text)
        with Transaction(out) as transaction:
            progress("load", 0.0)
            self._obey(text, case)
            progress("segment", 0.0)
            time.sleep(self.seconds)
            progress("segment", 1.0)
            progress("surfaces", 0.0)
            name = "<script>alert(1)</script>" if "script" in text else "liver"
            volume = float(text.split()[0]) if text[0].isdigit() else 1.0
            (transaction.folder / "liver.stl").write_bytes(text.encode() * 1000)
            transaction.write_json("metrics.json", {"structures": {name: {"volume_ml": volume, "components": 1}}})
            transaction.write_json(
                "manifest.json",
                {
                    "slice3d": "0", "model": {"name": "stub", "version": "1"}, "timings_s": {"segment": self.seconds},
                    "findings": [], "outputs": transaction.hashes(),
                },
            )  # fmt: skip
            transaction.commit()
        self._note("end", text)

    def _note(self, what: str, text: str) -> None:
        with Path(self.journal).open("a") as file:  # one short write in append mode is atomic on a local file system
            file.write(f"{what} {text.strip()} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\n")

    def _obey(self, text: str, case: CaseInput) -> None:
        if "corrupt" in text:
            raise InputError(f"{case.study.name}/study.txt is damaged; expected a study; export it again")
        if "hang" in text:
            time.sleep(3600)
        if "die" in text:
            os._exit(9)
        if "memory" in text:
            bytearray(1 << 40)
        if "hungry" in text:
            kept = []
            while True:
                kept.append(b"x" * (8 << 20))
        if "bug" in text:
            raise KeyError(f"secret of {case.study}")
        if "full-always" in text:
            raise OSError(28, "No space left on device", str(case.study))
        if "full-once" in text:
            flag = Path(self.journal).with_name("was-full")
            if not flag.exists():
                flag.touch()
                raise OSError(28, "No space left on device", str(case.study))


def make_cohort(folder: Path, words: list[str]) -> Path:
    """One study per word; the names of the folders are names of persons, which must not appear anywhere."""
    for n, word in enumerate(words):
        study = folder / f"DOE_JANE_{n:04d}"
        study.mkdir(parents=True)
        (study / "study.txt").write_text(word)
    return folder


def journal(path: Path) -> list[list[str]]:
    """What the stubs noted: (what, study, process, threads)."""
    return [line.split(" ") for line in path.read_text().splitlines()] if path.exists() else []


def manifest(out: Path, case: str) -> dict[str, object]:
    result: dict[str, object] = json.loads((out / "cases" / case / "manifest.json").read_text())
    return result
