"""Trains the super-resolution weights that slice3d ships, from the shared data: `slice3d/superres/weights`.

    python benchmarks/train_superres.py --stage planes --minutes 60 --mni t1_1mm.nii.gz --out FOLDER [--start FOLDER]
    python benchmarks/train_superres.py --stage volume --minutes 70 --mni t1_1mm.nii.gz --out FOLDER [--start FOLDER]

Planes: in-plane detail of CT and MR studies (near-isotropic ones along all axes), a T1 template, and brains painted from
label maps. Volume: the 3D network over the shipped plane network, from near-isotropic volumes (MR crops of the hippocampus
among them) and studies whose planes are averaged until they are. Left out are the volumes on which `benchmarks/superres.py`
scores: `superres/*` and s0009; the volume stage also leaves out the last 24 hippocampus crops and ts-example, and logs the
gain on them. Stored are float16 weights and their SHA-256; a card is written by hand.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from slice3d import io
from slice3d.models.loading import write_weights
from slice3d.superres import pretrained
from slice3d.superres.network import SliceNetwork
from slice3d.superres.pairs import scale_of
from slice3d.superres.pretraining import Images, PretrainSettings, pretrain
from slice3d.superres.unet import VolumeNetwork
from slice3d.superres.unet_training import Batch, Subject, VolumeTraining, make_batch, train_volume

DATA = Path(os.environ.get("SLICE3D_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
EVERY_AXIS = (
    "labelled/s0002/ct", "labelled/s0003/ct", "unlabelled/acrin-flt-breast-013", "unlabelled/cmb-crc-01068",
    "unlabelled/cort-liver",
)  # fmt: skip
IN_PLANE = ("labelled/spl/ct", "unlabelled/cptac-pda-00189")
STUDIES = ("ct-abdomen-contrast", "ct-20slices")
SHARES = {"ct": 0.43, "sarcoma": 0.22, "template": 0.04, "painted": 0.23}
VOLUME_SHARES = {"ct": 0.42, "hippocampus": 0.36, "painted": 0.10, "template": 0.04, "sarcoma": 0.08}
HELD_OUT = 24  # hippocampus crops, the last by name
# FreeSurfer numbers of the tissues that look alike in T1
TISSUES = (
    ((2, 7, 41, 46, 16, 28, 60, 85), 0.75),
    ((3, 8, 42, 47, 10, 11, 12, 13, 17, 18, 26, 49, 50, 51, 52, 53, 54, 58), 0.5),
    ((4, 5, 14, 15, 24, 43, 44, 72), 0.15),
)


def planes(name: str, data: np.ndarray, axes: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """The volume's planes across each of `axes`, on the network's scale."""
    shift, scale = scale_of(data)
    scaled = ((data - shift) / scale).astype(np.float16)
    for axis in axes:
        yield name, np.ascontiguousarray(np.moveaxis(scaled, axis, 0))


def ct() -> Iterator[tuple[str, np.ndarray]]:
    for names, axes in ((EVERY_AXIS, (0, 1, 2)), (IN_PLANE, (2,))):
        for name in names:
            volume = io.load(DATA / "ct-torso" / f"{name}.nii.gz")
            yield from planes(name, np.clip(np.asarray(volume.data, np.float32), -1024, 3000), axes)
    for name in STUDIES:
        volume = io.load(DATA / "dicom" / name)
        axis = int(np.argmax(volume.grid.spacing_mm))
        yield from planes(name, np.clip(np.asarray(volume.data, np.float32), -1024, 3000), (axis,))


def sarcoma() -> Iterator[tuple[str, np.ndarray]]:
    for path in sorted((DATA / "sarcoma-mr").glob("*_image.nii.gz")):
        data = np.asarray(io.load(path).data, np.float32)
        if min(data.shape[:2]) >= 90:
            yield from planes(path.name, data, (2,))


def painted(rng: np.random.Generator, step: int = 2) -> Iterator[tuple[str, np.ndarray]]:
    """Brains with random tissue intensities, texture, blur, a smooth field and noise."""
    from scipy import ndimage

    for path in sorted((DATA / "brain-labels").glob("training_seg_*.nii.gz")):
        labels = np.asarray(io.load_segmentation(path).labels).astype(int)
        found = np.argwhere(labels > 0)
        labels = labels[tuple(slice(max(0, a - 4), b + 5) for a, b in zip(found.min(0), found.max(0), strict=True))]
        table = rng.uniform(0.15, 1, 600)
        table[0] = 0.02
        if rng.random() < 0.7:
            for numbers, mean in TISSUES:
                table[list(numbers)] = mean + rng.normal(0, 0.05) + rng.normal(0, 0.03, len(numbers))
        image = table[labels].astype(np.float32)
        texture = ndimage.gaussian_filter(rng.normal(size=image.shape).astype(np.float32), 1.2)
        image += 0.03 * texture / texture.std() * (labels > 0)
        image = ndimage.gaussian_filter(image, rng.uniform(0.35, 0.65))
        field = ndimage.zoom(rng.normal(0, 0.15, (4, 4, 4)), np.divide(image.shape, 4), order=3)
        image *= np.exp(field[tuple(slice(n) for n in image.shape)])
        image = np.abs(image + rng.uniform(0.003, 0.025) * rng.normal(size=image.shape))
        yield from ((name, piece[::step]) for name, piece in planes(path.name, image.astype(np.float32), (0, 1, 2)))


def sources(mni: Path | None, seed: int) -> list[Images]:
    groups = {
        "ct": list(ct()),
        "sarcoma": list(sarcoma()),
        "painted": list(painted(np.random.default_rng(seed))),
    }
    if mni is not None:
        groups["template"] = list(planes("template", np.asarray(io.load(mni).data, np.float32), (0, 1, 2)))
    out = []
    for kind, images in groups.items():
        total = sum(np.sqrt(piece.size) for _, piece in images)
        out += [Images(name, piece, SHARES[kind] * float(np.sqrt(piece.size)) / total) for name, piece in images]
    return out


def scaled(data: np.ndarray) -> np.ndarray:
    """On the network's scale."""
    shift, scale = scale_of(data)
    return ((np.asarray(data, np.float32) - shift) / scale).astype(np.float16)


def averaged(data: np.ndarray, factor: int) -> np.ndarray:
    """(i, j, k) → every `factor`² pixels of a plane averaged."""
    i, j = (n // factor for n in data.shape[:2])
    cut = np.asarray(data[: i * factor, : j * factor], np.float32)
    return cut.reshape(i, factor, j, factor, -1).mean((1, 3))


def hounsfield(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    volume = io.load(path)
    return np.clip(np.asarray(volume.data, np.float32), -1024, 3000), volume.grid.spacing_mm


def volumes(mni: Path | None, seed: int) -> dict[str, list[Subject]]:
    """Near-isotropic volumes by kind; "held" are those that are only watched."""
    folder = DATA / "ct-torso"
    ct = [Subject(f"ct/{name}", scaled(hounsfield(folder / f"{name}.nii.gz")[0])) for name in EVERY_AXIS]
    # its slices are thick: the normal lies within its planes
    name = "unlabelled/cptac-pda-00189"
    ct.append(Subject(f"ct/{name}", scaled(hounsfield(folder / f"{name}.nii.gz")[0]), axes=(0, 1)))
    data, spacing = hounsfield(DATA / "dicom" / STUDIES[0])
    axis = int(np.argmax(spacing))
    thin = averaged(np.moveaxis(data, axis, 2), round(max(spacing) / min(spacing)))
    ct.append(Subject("ct/dicom", scaled(thin)))
    crops, held = [], []
    paths = sorted((DATA / "hippocampus" / "imagesTr").glob("*.nii.gz"))
    for number, path in enumerate(paths):
        watch = number >= len(paths) - HELD_OUT
        kind = "hippocampus, not trained on" if watch else "hippocampus"
        crop = Subject(f"{kind}/{path.name}", scaled(np.asarray(io.load(path).data)), side=32)
        if sorted(crop.data.shape)[1] >= crop.side:
            (held if watch else crops).append(crop)
    example = scaled(hounsfield(folder / "ts-example" / "ct.nii.gz")[0])
    held += [Subject("ct, not trained on/ts-example", example)] * 12
    sarcomas = []
    for path in sorted((DATA / "sarcoma-mr").glob("*_image.nii.gz")):
        small = averaged(np.asarray(io.load(path).data), 3)
        middle = sorted(small.shape)[1]
        if middle >= 32:
            sarcomas.append(Subject(f"sarcoma/{path.name}", scaled(small), side=32 if middle < 48 else 48))
    brains = itertools.islice(painted(np.random.default_rng(seed), step=1), 0, 24, 3)
    out = {"ct": ct, "hippocampus": crops, "painted": [Subject(f"painted/{n}", d) for n, d in brains]}
    if mni is not None:
        out["template"] = [Subject("template", scaled(np.asarray(io.load(mni).data)))]
    return {**out, "sarcoma": sarcomas, "held": held}


def subjects(mni: Path | None, seed: int) -> tuple[list[Subject], list[Subject]]:
    """What to train on, with its shares, and what only to watch."""
    kinds = volumes(mni, seed)
    held = kinds.pop("held")
    out = []
    for kind, members in kinds.items():
        total = sum(np.sqrt(s.data.size) for s in members)
        out += [replace(s, share=VOLUME_SHARES[kind] * float(np.sqrt(s.data.size)) / total) for s in members]
    return out, held


def train_over_planes(arguments: argparse.Namespace) -> None:
    card = pretrained.weights()
    plane_network = pretrained.network(card)
    trained, held = subjects(arguments.mni, 0)
    settings = VolumeTraining(
        minutes=arguments.minutes, steps=arguments.steps, seed=arguments.seed, learning_rate=arguments.learning_rate
    )
    start = VolumeNetwork()
    if arguments.start is not None:
        from slice3d.models.loading import read_weights

        stored = read_weights(arguments.start / "volume.safetensors")
        start.load_state_dict({name: tensor.float() for name, tensor in stored.items()}, strict=False)
    seen = replace(settings, pixels=(4.0, 6.0), voxels=2 * 48 * 48 * 12)
    rng = np.random.default_rng(7)
    drawn = (make_batch(subject, plane_network, seen, rng) for subject in held)
    watched: list[Batch] = [batch for batch in drawn if batch is not None]

    def save(network: VolumeNetwork, step: int) -> None:
        store(network, arguments.out, "volume")
        logging.info("step %d stored", step)

    train_volume(trained, plane_network, settings=settings, save=save, start=start, watched=watched)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("planes", "volume"), required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, help="of the volume stage, instead of minutes")
    parser.add_argument("--learning-rate", type=float, default=VolumeTraining.learning_rate, help="of the volume stage")
    parser.add_argument("--mni", type=Path, help="T1 template of 1 mm, e.g. ICBM 152 as nilearn ships it")
    parser.add_argument("--start", type=Path, help="folder of weights to train further")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "volume":
        train_over_planes(arguments)
        return
    start = None if arguments.start is None else pretrained.network(pretrained.weights(arguments.start))

    def save(network: SliceNetwork, step: int) -> None:
        store(network, arguments.out, "weights")
        logging.info("step %d stored", step)

    settings = PretrainSettings(minutes=arguments.minutes, seed=arguments.seed)
    pretrain(sources(arguments.mni, arguments.seed), settings=settings, save=save, start=start)


def store(network: Any, out: Path, name: str) -> None:
    """NAME.safetensors in float16, and NAME.json with what a card must say about it."""
    import hashlib

    path = out / f"{name}.safetensors"
    # a parameter with several names is listed once
    write_weights({k: t.detach().contiguous() for k, t in network.named_parameters()}, path, half=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (out / f"{name}.json").write_text(json.dumps({"network": network.settings, "sha256": digest}, indent=1) + "\n")


if __name__ == "__main__":
    main()
