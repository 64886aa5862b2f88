"""Trains the super-resolution weights that slice3d ships, from the shared data: `slice3d/superres/weights`.

    python benchmarks/train_superres.py --minutes 60 --mni t1_1mm.nii.gz [--start FOLDER]

In-plane detail of CT and MR studies (near-isotropic ones along all axes), a T1 template, and brains painted from label maps.
Left out are the volumes on which `benchmarks/superres.py` scores held-out methods: `superres/*` and s0009.
Stored are float16 weights and their SHA-256; a card is written by hand.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from slice3d import io
from slice3d.models.loading import write_weights
from slice3d.superres import pretrained
from slice3d.superres.network import SliceNetwork
from slice3d.superres.pairs import scale_of
from slice3d.superres.pretraining import Images, PretrainSettings, pretrain

DATA = Path(os.environ.get("SLICE3D_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
EVERY_AXIS = (
    "labelled/s0002/ct", "labelled/s0003/ct", "unlabelled/acrin-flt-breast-013", "unlabelled/cmb-crc-01068",
    "unlabelled/cort-liver",
)  # fmt: skip
IN_PLANE = ("labelled/spl/ct", "unlabelled/cptac-pda-00189")
STUDIES = ("ct-abdomen-contrast", "ct-20slices")
SHARES = {"ct": 0.43, "sarcoma": 0.22, "template": 0.04, "painted": 0.23}
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


def painted(rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
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
        yield from ((name, piece[::2]) for name, piece in planes(path.name, image.astype(np.float32), (0, 1, 2)))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--mni", type=Path, help="T1 template of 1 mm, e.g. ICBM 152 as nilearn ships it")
    parser.add_argument("--start", type=Path, help="folder of weights to train further")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights.safetensors")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    start = None if arguments.start is None else pretrained.network(pretrained.weights(arguments.start))
    arguments.out.mkdir(parents=True, exist_ok=True)

    def save(network: SliceNetwork, step: int) -> None:
        store(network, arguments.out)
        logging.info("step %d stored", step)

    settings = PretrainSettings(minutes=arguments.minutes, seed=arguments.seed)
    pretrain(sources(arguments.mni, arguments.seed), settings=settings, save=save, start=start)


def store(network: SliceNetwork, out: Path) -> None:
    """weights.safetensors in float16, and network.json with what a card must say about it."""
    import hashlib

    path = out / "weights.safetensors"
    write_weights({k: t.contiguous() for k, t in network.state_dict().items()}, path, half=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (out / "network.json").write_text(json.dumps({"network": network.settings, "sha256": digest}, indent=1) + "\n")


if __name__ == "__main__":
    main()
