"""Time, memory and agreement of the inference engine against other runners on the same weights.

    python benchmarks/inference.py --part speed --case 3mm-118 --contender slice3d
    python benchmarks/inference.py --part speed --case 3mm-118 --contender totalsegmentator --peer-python PATH
    python benchmarks/inference.py --part parity --peer-python PATH --data SHARED_DATA
    python benchmarks/inference.py --part reference --peer-python PATH      (tests/inference/reference)

Contenders: slice3d (a case, and a second one in the same process); slice3d-in-a-row (ten more, each read while the one
before is segmented); MONAI's plain sliding window (this interpreter); nnU-Net's own predictor and TotalSegmentator's
command (`--peer-python`, an environment with `nnunetv2` and `TotalSegmentator`). One contender a call, on the very same
checkpoint; end to end from a NIfTI file to a written label file, from the start of the process to its end. Peak memory
is the sum of proportional set sizes of the process and its children, sampled. Results are merged into `--out`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from tiny_nnunet import Plan, blobby_state, results_folder

# sizes of TotalSegmentator's published 3 mm and 1.5 mm configurations
CASES = {
    "3mm-118": Plan(
        (3.0,) * 3, (112, 112, 128), (32, 64, 128, 256, 320), 118,
        dataset="Dataset297_TotalSegmentator_total_3mm_1559subj",
        trainer="nnUNetTrainer_4000epochs_NoMirroring",
    ),
    "1.5mm-25": Plan(
        (1.5,) * 3, (128, 128, 128), (32, 64, 128, 256, 320, 320), 25,
        dataset="Dataset291_TotalSegmentator_part1_organs_1559subj", trainer="nnUNetTrainerNoMirroring",
    ),
}  # fmt: skip
# What the random weights label. In the real label maps with more than a hundred structures that were looked at, 6 to 12 %
# of the cells between 3 mm voxels, 3 to 7 % of those between 1.5 mm voxels have corners of different labels.
LABELS = {
    "everywhere": 0.0,  # all cells do: the most work there can be for whoever interpolates scores
    "sparse": 1.5,  # about a third of the cells at 3 mm, an eighth at 1.5 mm
    "real": 2.2,  # a tenth of the cells at 3 mm
}
RESULTS = Path(__file__).parent / "results" / "inference.json"


def study(path: Path, shape: tuple[int, int, int]) -> None:
    """Write a CT of 384 × 384 mm and 1 mm slices: a torso phantom, sampled coarsely and enlarged, with fresh noise."""
    import nibabel as nib
    from scipy import ndimage

    from slice3d.grid import Grid
    from slice3d.samples import TorsoPhantom, torso

    small = (128, 128, max(8, shape[2] // 4))
    spacing = np.array([384 / 128, 384 / 128, shape[2] / small[2]])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-192 + 6.5, -192 - 71.0, -391.25 + 250.0)
    coarse = torso(TorsoPhantom(), grid=Grid(small, affine), noise_hu=0.0).volume.data.astype(np.float32)
    fine = ndimage.zoom(coarse, np.array(shape) / small, order=1, grid_mode=True, mode="nearest")
    fine += np.random.default_rng(0).normal(0, 12, fine.shape).astype(np.float32)
    voxel = [384 / shape[0], 384 / shape[1], 1.0]
    image = nib.Nifti1Image(np.clip(np.rint(fine), -1024, 3071).astype(np.int16), np.diag([*voxel, 1.0]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


_SLICE3D = """
import json, sys, time, psutil
begin = psutil.Process().create_time()
from pathlib import Path
import slice3d
from slice3d.inference import Engine, InferenceSettings
from slice3d.models import package
source, target, cache, name, memory, precision = sys.argv[1:7]
imported = time.time()
engine = Engine(package(name, folder=Path(cache)), InferenceSettings(memory_gib=float(memory) or None, precision=precision))
loaded = time.time()
runs = []
for n in range(2):
    start, used = time.time(), time.process_time() if n else 0.0
    volume = slice3d.load(source)
    read = time.time()
    result = engine.predict(volume)
    done = time.time()
    slice3d.save(result, target)
    end = time.time()
    runs.append({"seconds": end - (begin if n == 0 else start), "read_s": read - start, "write_s": end - done, "cpu_s": time.process_time() - used, **dict(result.metadata["timings_s"])})
    keep = {k: result.metadata[k] for k in ("precision", "threads", "tiles", "memory_planned_gib", "memory_budget_gib")}
    labels = len(set(result.labels[::8, ::8, ::8].ravel().tolist()))
    print(json.dumps({"import_s": imported - begin, "load_s": loaded - imported, "runs": runs, "labels_found": labels, **keep}), flush=True)
    if len(sys.argv) > 7:
        break
"""

_IN_A_ROW = """
import json, sys, time
from pathlib import Path
import slice3d
from slice3d.inference import Engine, InferenceSettings
from slice3d.models import package
source, target, cache, name, memory, precision = sys.argv[1:7]
engine = Engine(package(name, folder=Path(cache)), InferenceSettings(memory_gib=float(memory) or None, precision=precision))
alone = [engine.predict(slice3d.load(source)).metadata["timings_s"]["network"] for n in range(4)][1:]
networks, start = [], time.time()
for result in engine.predict_each(slice3d.load(source) for n in range(10)):
    slice3d.save(result, target)
    networks.append(result.metadata["timings_s"]["network"])
print(json.dumps({"cases": len(networks), "case_seconds": (time.time() - start) / len(networks), "network_s": networks, "network_alone_s": alone}))
"""

_MONAI = """
import json, sys, time
import nibabel as nib, numpy as np, torch
from monai.inferers import sliding_window_inference
from scipy import ndimage
from slice3d.models.loading import build_network
from slice3d.models.nnunet import translate, weights_of
from pathlib import Path
source, target, folder = sys.argv[1:4]
foreign = translate(Path(folder), name="peer")
network = build_network(foreign.description["network"]["class"], foreign.description["network"]["arguments"]).eval()
network.load_state_dict(weights_of(foreign.checkpoints[0]))
image = nib.load(source)
data = np.asarray(image.dataobj).astype(np.float32).transpose(2, 1, 0)
zoom = np.array(image.header.get_zooms()[:3])[::-1] / np.array(foreign.description["spacing_mm"])
tensor = torch.from_numpy(np.clip(ndimage.zoom(data, zoom, order=1, mode="nearest", grid_mode=True), -1000, 1000) / 300)[None, None]
with torch.inference_mode():
    scores = sliding_window_inference(tensor, foreign.description["patch_size"], 1, network, 0.5, mode="gaussian")
    if scores.shape[1] * data.size * 4 < float(sys.argv[4]) * 1024**3:
        labels = torch.nn.functional.interpolate(scores, data.shape, mode="trilinear").argmax(1)[0]
    else:  # the enlarged scores do not fit: enlarge finished labels, which is less work
        labels = scores.argmax(1, keepdim=True).byte()
        labels = torch.nn.functional.interpolate(labels, data.shape, mode="nearest")[0, 0]
nib.save(nib.Nifti1Image(labels.numpy().astype(np.uint8).transpose(2, 1, 0), image.affine), target)
"""

_NNUNET = """
import json, sys, time
import numpy as np, torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
source, target, folder = sys.argv[1:4]
torch.set_num_threads(int(sys.argv[4]))
predictor = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(folder, (0,), "checkpoint_final.pth")
image, properties = SimpleITKIO().read_images([source])
labels = predictor.predict_single_npy_array(image, properties, None, None, False)
SimpleITKIO().write_seg(labels, target, properties)
"""


def command(contender: str, folder: Path, source: Path, target: Path, options: argparse.Namespace) -> list[str]:
    python = options.peer_python
    if contender.startswith("slice3d"):
        more = ["once"] if options.once else []
        code = _SLICE3D if contender == "slice3d" else _IN_A_ROW
        return [sys.executable, "-c", code, str(source), str(target), str(options.scratch / "cache"), _package(options),
                str(options.memory), options.precision, *more]  # fmt: skip
    if contender == "monai":
        return [sys.executable, "-W", "ignore", "-c", _MONAI, str(source), str(target), str(folder),
                str(machine()["memory_gib"] / 2)]  # fmt: skip
    if python is None:
        raise SystemExit(f"{contender} needs --peer-python")
    if contender == "nnunetv2":
        return [python, "-W", "ignore", "-c", _NNUNET, str(source), str(target), str(folder), str(os.cpu_count())]
    # not `resolve`: a virtual environment's interpreter is a link, its commands lie beside the link
    tool = str(Path(python).absolute().parent / "TotalSegmentator")
    return [tool, "-i", str(source), "-o", str(target), "--fast", "--ml", "-d", "cpu", "-q"]


def measured(line: list[str], env: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Seconds, CPU seconds and peak GiB of the process and all its children; standard output.

    load_average (of the minute before) says whether the machine was doing something else: CPU seconds suffer less.
    """
    import psutil

    load = os.getloadavg()[0]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.time()
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            total = 0
            try:
                parent = psutil.Process(child.pid)
                for process in (parent, *parent.children(recursive=True)):
                    total += process.memory_full_info().pss
            except psutil.Error:
                continue
            peak[0] = max(peak[0], total / 1024**3)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, error = child.communicate()
    seconds = time.time() - start
    stop.set()
    watcher.join()
    if child.returncode:
        raise SystemExit(f"{line[0]} ended with {child.returncode}: {error.strip()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_gib": round(peak[0], 2)}
    return {**found, "load_average": round(load, 1)}, out


def _weights(options: argparse.Namespace) -> Path:
    root: Path = options.scratch / f"weights-{options.labels}"
    return root


def _package(options: argparse.Namespace) -> str:
    return f"{options.case}-{options.labels}"


def prepare(options: argparse.Namespace) -> tuple[Path, Path]:
    """Results folder and study of the case, made once below `options.scratch`."""
    from slice3d.models.install import AddSettings, add

    plan = CASES[options.case]
    root = _weights(options)
    found = list((root / plan.dataset).glob("*/plans.json"))
    folder = (
        found[0].parent
        if found
        else results_folder(root, plan, [blobby_state(plan, background=LABELS[options.labels])])
    )
    if not (options.scratch / "cache" / _package(options)).exists():
        add(folder, settings=AddSettings(name=_package(options), folder=options.scratch / "cache"))
    source = options.scratch / f"ct-{options.size}x{options.size}x{options.slices}.nii.gz"
    if not source.exists():
        study(source, (options.size, options.size, options.slices))
    return folder, source


def speed(options: argparse.Namespace) -> dict[str, Any]:
    folder, source = prepare(options)
    if options.contender == "prepare":
        return {}
    target = options.scratch / f"labels-{options.contender}-{_package(options)}-{options.slices}.nii.gz"
    home = options.scratch / "home"
    home.mkdir(exist_ok=True)
    (home / "config.json").write_text(
        json.dumps({"totalseg_id": "totalseg_benchmark", "send_usage_stats": False, "prediction_counter": 0})
    )
    weights = str(_weights(options))
    places = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "TOTALSEG_WEIGHTS_PATH")
    env = {**os.environ, **dict.fromkeys(places, weights), "TOTALSEG_HOME_DIR": str(home)}
    if options.contender.startswith("slice3d"):
        env.setdefault("GOMP_SPINCOUNT", "1000")  # as `slice3d` sets it; Python's users may, too
    found, out = measured(command(options.contender, folder, source, target, options), env)
    size = [options.size, options.size, options.slices]
    row: dict[str, Any] = {
        "case": options.case, "labels": options.labels, "size": size, "contender": options.contender, **found
    }  # fmt: skip
    if options.contender == "slice3d":
        details = json.loads(out.strip().splitlines()[-1])
        runs = details["runs"]
        first = runs[0]
        # the process goes on with a second case
        row["seconds"], row["cpu_seconds"] = round(first["seconds"], 1), round(first["cpu_s"], 1)
        row["outside_network_share"] = round(1 - first["network"] / first["seconds"], 3)
        if len(runs) > 1:
            second = runs[1]
            row["second_case_seconds"] = round(second["seconds"], 1)
            row["second_case_cpu_seconds"] = round(second["cpu_s"], 1)
            row["second_case_outside_network_share"] = round(1 - second["network"] / second["seconds"], 3)
        row["details"] = details
    elif options.contender == "slice3d-in-a-row":
        details = json.loads(out.strip().splitlines()[-1])
        row["case_seconds"] = round(details["case_seconds"], 2)
        network = sum(details["network_s"]) / details["cases"]
        row["outside_network_share"] = round(1 - network / details["case_seconds"], 3)
        # reading the next study slows the network down; this share is of the network's time without that
        alone = float(np.median(details["network_alone_s"]))
        row["beyond_network_alone_share"] = round(1 - alone / details["case_seconds"], 3)
        row["details"] = details
    elif options.contender in ("nnunetv2", "monai"):
        row["agreement_with_slice3d"] = _agreement(target, options)
    return row


def _agreement(target: Path, options: argparse.Namespace) -> float | None:
    import nibabel as nib

    ours = options.scratch / f"labels-slice3d-{_package(options)}-{options.slices}.nii.gz"
    if not ours.exists():
        return None
    pair = [np.asarray(nib.load(p).dataobj).astype(np.uint8) for p in (ours, target)]
    return round(float((pair[0] == pair[1]).mean()), 5)


def machine() -> dict[str, Any]:
    import torch

    name = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return {
        "cpu": name, "cores": os.cpu_count(), "memory_gib": round(memory, 1),
        "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip


def merge(path: Path, section: str, rows: list[dict[str, Any]], keys: tuple[str, ...]) -> None:
    """Put rows into the results, in place of older ones of the same contender and case."""
    found = json.loads(path.read_text()) if path.exists() else {}
    new = {tuple(str(row[k]) for k in keys) for row in rows}
    old = [row for row in found.get(section, []) if tuple(str(row[k]) for k in keys) not in new]
    found[section] = sorted([*old, *rows], key=lambda row: [str(row[k]) for k in keys])
    found["machine"] = machine()
    path.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("speed", "parity", "reference"), default="speed")
    parser.add_argument("--case", choices=CASES, default="3mm-118")
    parser.add_argument("--labels", choices=LABELS, default="everywhere", help="what the random weights label")
    parser.add_argument("--contender", default="slice3d",
                        choices=("slice3d", "slice3d-in-a-row", "monai", "nnunetv2", "totalsegmentator", "prepare"))  # fmt: skip
    parser.add_argument("--size", type=int, default=512, help="pixels per row and column")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--memory", type=float, default=0.0, help="memory budget of slice3d in GiB (default: its own)")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--cts", type=int, default=3, help="parity: how many of the real CTs")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="parity: CPU threads")
    parser.add_argument("--once", action="store_true", help="no second case in the same process")
    parser.add_argument("--peer-python", help="interpreter of an environment with nnunetv2 and TotalSegmentator")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SLICE3D_TEST_DATA", "../shared/data")))
    parser.add_argument("--scratch", type=Path, help="folder to keep weights and studies in between calls")
    parser.add_argument("--out", type=Path, help=f"results to merge into, e.g. {RESULTS.name}")
    options = parser.parse_args()
    kept = tempfile.TemporaryDirectory()
    options.scratch = (options.scratch or Path(kept.name)).absolute()
    options.scratch.mkdir(parents=True, exist_ok=True)
    if options.part == "speed":
        row = speed(options)
        print(json.dumps(row, indent=1))
        if options.out and row:
            merge(options.out, "speed", [row], ("case", "labels", "size", "contender"))
        return
    import parity

    if options.peer_python is None:
        raise SystemExit(f"--part {options.part} needs --peer-python")
    if options.part == "reference":
        parity.write_reference(options.peer_python, Path(__file__).parents[1] / "tests" / "inference" / "reference")
        return
    for row in parity.run(options.peer_python, options.data, options.scratch, options.threads, options.cts):
        print(json.dumps(row), flush=True)
        if options.out:
            merge(options.out, "parity", [row], ("model", "folds", "case"))


if __name__ == "__main__":
    main()
