"""How fast and with how much memory DICOM series become arrays: slice3d beside SimpleITK, dcm2niix and dicom2nifti.

    python benchmarks/loading.py --prepare FOLDER            # writes the synthetic series once (about 700 MB)
    python benchmarks/loading.py --data FOLDER [--study STUDY] [--out results/loading.json]
    python benchmarks/loading.py --data FOLDER --case rle --out results/loading.json    # one series; joins the file
    python benchmarks/loading.py --quick                     # small, a few seconds, nothing is written
    python benchmarks/loading.py --render results/loading.json

Every contender ends with the voxels in a numpy array. The rounds are interleaved, so that other work on the machine
hits all alike; processor time (of the process and its children) is given beside wall time because it does not depend on it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CODECS = ("uncompressed", "jpeg2000", "jpegls", "rle")
SYNTAX = {
    "uncompressed": "1.2.840.10008.1.2.1",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
    "jpegls": "1.2.840.10008.1.2.4.80",
    "rle": "1.2.840.10008.1.2.5",
}


def synthetic(slices: int, side: int) -> np.ndarray:
    """A noisy torso-like CT, stored values of 12 bits, (slices, rows, columns)."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = (x / 0.85) ** 2 + (y / 0.65) ** 2 < 1
    out = np.zeros((slices, side, side), dtype=np.uint16)
    for k in range(slices):
        plane = np.where(body, 1040.0, 24.0)
        for n in range(6):
            cx, cy = 0.5 * np.cos(n + k / 90), 0.4 * np.sin(2 * n + k / 70)
            plane[(x - cx) ** 2 + (y - cy) ** 2 < 0.02 + 0.003 * n] = 900 + 60 * n
        plane += rng.normal(0, 14, plane.shape)
        out[k] = np.clip(plane, 0, 4095)
    return out


def prepare(folder: Path, *, slices: int = 300, side: int = 512) -> None:
    """Write the same series uncompressed and with three compressions, and 2,000 header-only files."""
    import imagecodecs
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import generate_uid

    encoders: dict[str, Callable[[np.ndarray], bytes]] = {
        "jpeg2000": lambda p: imagecodecs.jpeg2k_encode(p, reversible=True, codecformat="j2k"),
        "jpegls": imagecodecs.jpegls_encode,
    }
    volume = synthetic(slices, side)
    uids = {codec: generate_uid() for codec in CODECS}
    study = "1.2.826.0.1.3680043.8.498.77"
    for codec in CODECS:
        (folder / codec).mkdir(parents=True, exist_ok=True)
        for k, plane in enumerate(volume):
            ds = Dataset()
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = SYNTAX[codec]
            ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, uids[codec], study + ".1"
            ds.PatientID = ds.PatientName = ds.StudyDate = ds.StudyTime = ""
            ds.Modality, ds.Manufacturer, ds.InstanceNumber = "CT", "synthetic", k + 1
            ds.SeriesNumber, ds.SeriesDescription = 1, codec
            ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
            ds.ImagePositionPatient, ds.ImageOrientationPatient = [-200, -200, 1.5 * k], [1, 0, 0, 0, 1, 0]
            ds.PixelSpacing, ds.SliceThickness = [0.78125, 0.78125], 1.5
            ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
            ds.Rows, ds.Columns = plane.shape
            ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
            ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
            ds.PixelData = plane.astype("<u2").tobytes()
            if codec in encoders:
                ds.PixelData = encapsulate([encoders[codec](plane)])
                ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
            elif codec == "rle":
                ds.file_meta.TransferSyntaxUID = SYNTAX["uncompressed"]
                ds.compress(SYNTAX["rle"], generate_instance_uid=False)
            pydicom.dcmwrite(folder / codec / f"{k:04d}.dcm", ds, enforce_file_format=True)
    _many(folder / "many", folder / "uncompressed" / "0000.dcm")
    _tilt(folder / "tilted", folder / "uncompressed")


def _many(folder: Path, template: Path) -> None:
    """2,000 files of 512 kB whose pixels are holes in the file system."""
    import pydicom

    folder.mkdir(exist_ok=True)
    content = template.read_bytes()
    uid = str(pydicom.dcmread(template, stop_before_pixels=True).SOPInstanceUID)
    pixels = content.index(b"\xe0\x7f\x10\x00") + 12
    for n in range(2000):
        fresh = content[:pixels].replace(uid.encode(), uid[:-5].encode() + f"{n:05d}".encode())
        with (folder / f"{n:04d}").open("wb") as file:
            file.write(fresh)
            file.truncate(len(content))


def _tilt(folder: Path, upright: Path) -> None:
    """The uncompressed series sheared, and one slice of it missing: what has to be resampled."""
    import pydicom

    folder.mkdir(exist_ok=True)
    files = sorted(upright.iterdir())
    for k, file in enumerate(files):
        if k != len(files) // 2:
            dataset = pydicom.dcmread(file)
            dataset.ImagePositionPatient = [-200, -200 + 0.1 * k, 1.5 * k]
            dataset.save_as(folder / file.name)


def with_slice3d(folder: Path) -> np.ndarray:
    import slice3d

    return slice3d.load(folder).data


def with_simpleitk(folder: Path) -> np.ndarray:
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute())


def with_dcm2niix(folder: Path) -> np.ndarray:
    import nibabel

    with tempfile.TemporaryDirectory() as out:
        command = ["dcm2niix", "-z", "n", "-b", "n", "-f", "out", "-o", out, str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        return np.array(nibabel.load(Path(out) / "out.nii").dataobj)


def with_dicom2nifti(folder: Path) -> np.ndarray:
    import logging

    import dicom2nifti
    import nibabel

    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as out:
        dicom2nifti.dicom_series_to_nifti(str(folder), f"{out}/out.nii", reorient_nifti=False)
        return np.array(nibabel.load(f"{out}/out.nii").dataobj)


CONTENDERS: dict[str, Callable[[Path], np.ndarray]] = {
    "slice3d": with_slice3d,
    "SimpleITK": with_simpleitk,
    "dcm2niix": with_dcm2niix,
    "dicom2nifti": with_dicom2nifti,
}


def _cpu() -> float:
    return sum(
        u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def compare(folder: Path, rounds: int, converter_rounds: int) -> dict[str, Any]:
    """Median wall and processor seconds per contender; None where it cannot read the series."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    failed: dict[str, str] = {}
    for turn in range(rounds):
        for name, load in CONTENDERS.items():
            if name in failed or (name in ("dcm2niix", "dicom2nifti") and turn >= converter_rounds):
                continue
            wall, cpu = time.perf_counter(), _cpu()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    load(folder)
            except Exception as error:  # a contender that cannot read it is a result
                failed[name] = type(error).__name__
                continue
            times[name].append((time.perf_counter() - wall, _cpu() - cpu))
    out: dict[str, Any] = {}
    for name, pairs in times.items():
        if name in failed:
            out[name] = {"cannot": failed[name]}
            continue
        walls, cpus = zip(*pairs, strict=True)
        out[name] = {
            "wall_s": round(statistics.median(walls), 3),
            "cpu_s": round(statistics.median(cpus), 3),
            "wall_min_s": round(min(walls), 3),
            "rounds": len(pairs),
        }
    return out


PEAK = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = {paths!r}
from benchmarks.loading import CONTENDERS
from pathlib import Path
def status(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) / 1024
load = CONTENDERS[{name!r}]
warm = load(Path({small!r})).nbytes
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
data = load(Path({folder!r}))
print(status("VmHWM") - before, data.nbytes / 2**20)
"""


def peak(name: str, folder: Path, small: Path) -> dict[str, float]:
    """MiB taken at most while loading, beyond what the interpreter with its libraries holds; and the array's own
    size.
    """
    root = Path(__file__).resolve().parents[1]
    code = PEAK.format(paths=[str(root)], name=name, small=str(small), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    used, size = map(float, done.stdout.split()[-2:])
    return {"peak_mib": round(used, 1), "array_mib": round(size, 1), "allowed_mib": round(1.3 * size + 100, 1)}


def _bytes_read() -> int:
    """Bytes that this process has asked files for."""
    return next(
        int(line.split()[1]) for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")
    )


def machine() -> dict[str, Any]:
    """The machine in words, without its name."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ("numpy", "pydicom", "imagecodecs", "SimpleITK", "nibabel", "dicom2nifti", "pylibjpeg-rle")
    versions = {name: importlib.metadata.version(name) for name in packages}
    tool = subprocess.run(["dcm2niix", "--version"], capture_output=True, text=True, check=False)
    versions["dcm2niix"] = tool.stdout.strip().splitlines()[-1] if tool.stdout else "absent"
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 1),
        "versions": versions,
    }


def run(data: Path, study: Path | None, rounds: int, converter_rounds: int, wanted: list[str]) -> dict[str, Any]:
    """Everything in one run."""
    import slice3d

    cases = {codec: data / codec for codec in CODECS if (data / codec).is_dir()}
    cases = {title: path for title, path in cases.items() if not wanted or title in wanted}
    results: dict[str, Any] = {"machine": machine(), "rounds": rounds, "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        if study is not None and (not wanted or "real" in wanted):
            # only the images: the folder also holds texts and an archive, over which some contenders stumble
            copy = Path(folder) / "study"
            copy.mkdir()
            for file in sorted(study.glob("*.dcm")):
                shutil.copy(file, copy)
            cases = {"real study, uncompressed": copy, **cases}
        small = Path(folder) / "small"
        small.mkdir()
        for file in sorted((data / "uncompressed").iterdir())[:4]:
            shutil.copy(file, small)
        for title, path in cases.items():
            print(title, file=sys.stderr)
            first = slice3d.load(path)
            reference = with_simpleitk(path).transpose(2, 1, 0)
            same = bool(np.array_equal(first.data, reference))
            del reference
            entry = {"slices": first.grid.shape[2], "side": first.grid.shape[0], "voxels_as_SimpleITK": same}
            entry["load_average"] = round(os.getloadavg()[0], 1)
            del first
            entry["times"] = compare(path, rounds, converter_rounds)
            entry["memory"] = {name: peak(name, path, small) for name in ("slice3d", "SimpleITK")}
            results["cases"][title] = entry
            print(title, json.dumps(entry), file=sys.stderr)
        if (data / "tilted").is_dir() and (not wanted or "tilted" in wanted):
            results["repaired_memory"] = peak("slice3d", data / "tilted", small)
    many = data / "many"
    if many.is_dir() and (not wanted or "scan" in wanted):
        walls, before = [], _bytes_read()
        for _ in range(rounds):
            start = time.perf_counter()
            listing = slice3d.scan(many)
            walls.append(time.perf_counter() - start)
        results["scan_2000_files"] = {
            "files": listing.files,
            "wall_s": round(statistics.median(walls), 3),
            "read_mib": round((_bytes_read() - before) / rounds / 2**20, 1),
        }
    return results


def render(results: dict[str, Any]) -> str:
    """Two Markdown tables."""
    names = list(CONTENDERS)
    m = results["machine"]
    lines = [
        f"Machine: {m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, Python {m['python']}. Medians of "
        f"{results['rounds']} interleaved rounds (fewer where noted), files in the system's cache. "
        + ", ".join(f"{k} {v}" for k, v in m["versions"].items())
        + ".",
        "",
        "| series | " + " | ".join(f"{n}, wall (CPU) s" for n in names) + " | slice3d against SimpleITK |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    for title, entry in results["cases"].items():
        cells = []
        for name in names:
            t = entry["times"][name]
            few = f"; {t['rounds']} rounds" if t.get("rounds", results["rounds"]) < results["rounds"] else ""
            cells.append("cannot read it" if "cannot" in t else f"{t['wall_s']:.2f} ({t['cpu_s']:.2f}{few})")
        ours, theirs = entry["times"]["slice3d"], entry["times"]["SimpleITK"]
        ratio = f"{theirs['wall_s'] / ours['wall_s']:.2f}× wall, {theirs['cpu_s'] / ours['cpu_s']:.2f}× CPU"
        lines.append(f"| {entry['slices']} × {entry['side']}², {title} | " + " | ".join(cells) + f" | {ratio} |")
    lines += [
        "",
        "| series | array MiB | slice3d peak MiB | allowed (1.3 × + 100) | SimpleITK peak MiB |",
        "|---|---|---|---|---|",
    ]
    for title, entry in results["cases"].items():
        ours, theirs = entry["memory"]["slice3d"], entry["memory"]["SimpleITK"]
        lines.append(
            f"| {title} | {ours['array_mib']} | {ours['peak_mib']} | {ours['allowed_mib']} | {theirs['peak_mib']} |"
        )
    if "repaired_memory" in results:
        fixed = results["repaired_memory"]
        lines.append(
            f"| uncompressed, tilted and one slice missing: resampled, with the mask of what was estimated | "
            f"{fixed['array_mib']} | {fixed['peak_mib']} | {fixed['allowed_mib']} | |"
        )
    if "scan_2000_files" in results:
        lines += [
            "",
            f"`slice3d.scan` (what `slice3d info` shows) of 2,000 files of 512 kB, 1 GB in all: "
            f"{results['scan_2000_files']['wall_s']:.2f} s and {results['scan_2000_files']['read_mib']:.0f} MiB read, "
            "headers only.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--study", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--converter-rounds", type=int, help="fewer rounds for the two slow converters")
    parser.add_argument("--case", action="append", default=[], help="only this series (or `scan`); may be repeated")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--render", type=Path)
    options = parser.parse_args()
    if options.render:
        print(render(json.loads(options.render.read_text())))
    elif options.prepare:
        prepare(options.prepare)
    elif options.quick:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), slices=12, side=96)
            print(render(run(Path(folder), None, 2, 2, [])))
    elif options.data:
        converter_rounds = options.converter_rounds or options.rounds
        results = run(options.data, options.study, options.rounds, converter_rounds, options.case)
        if options.case and options.out and options.out.exists():
            before = json.loads(options.out.read_text())
            results = {**before, **results, "cases": {**before["cases"], **results["cases"]}}
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n")
        print(render(results))
    else:
        parser.error("name --quick, --prepare, --data or --render")


if __name__ == "__main__":
    main()
