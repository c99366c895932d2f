"""Colour scenes composed from real, labelled Fashion-MNIST images.

A scene is SIDE x SIDE RGB pixels: a cluttered background (a shaded wall, soft clouds of colour,
straight bars, faint pieces cut from other garments) and one real 28x28 garment in front of it, at a
random place, size and tint, under sensor noise. Everything follows from a generator's seed, and
pixels are whole numbers (u8): a PNG of a scene is exactly what the network gets.

With CIFAR-10's own files at hand, its 32x32 photographs take the place of scenes, enlarged to SIDE.
"""

import gzip
import pickle
import struct
from pathlib import Path

import torch
import torch.nn.functional as F

SIDE = 64
OBJECT_MIN_PX, OBJECT_MAX_PX = 40, 60  # the side of the garment's 28x28 picture in the scene
CLASSES = {
    "fashion": ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"],
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
}
VALIDATION = 5000  # of the training pictures, the last so many are held out
VALIDATION_SEED, TEST_SEED = 1_000, 2_000


def add_arguments(parser):
    parser.add_argument("--data", choices=["fashion", "cifar10"], default="fashion")
    parser.add_argument("--fashion-dir", default="/usr/share/datasets/fashion-mnist", help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--cifar-dir", help="folder of CIFAR-10's own files, binary or python version")


def held_out(args, split):
    """The fixed scenes [N, 3, SIDE, SIDE] and labels [N] of "validation" or "test"."""
    pictures, labels = load(args, split)
    generator = torch.Generator().manual_seed({"validation": VALIDATION_SEED, "test": TEST_SEED}[split])
    return torch.cat([compose(part, generator) for part in pictures.split(500)]), labels


def load(args, split):
    """Pictures in 0..1 and labels [N] of `split`: "train", "validation" or "test".

    Fashion-MNIST gives [N, 28, 28] (grey), CIFAR-10 [N, 3, 32, 32].
    """
    if args.data == "cifar10" and not args.cifar_dir:
        raise SystemExit("--data cifar10 needs --cifar-dir, the folder of CIFAR-10's own files")
    source = "test" if split == "test" else "train"
    if args.data == "cifar10":
        pictures, labels = load_cifar10(Path(args.cifar_dir), source)
    else:
        pictures, labels = load_fashion(Path(args.fashion_dir), source)
    part = {"train": slice(None, -VALIDATION), "validation": slice(-VALIDATION, None), "test": slice(None)}[split]
    return pictures[part].float() / 255, labels[part].long()


def load_fashion(folder, source):
    """The IDX files of the data set (Debian package dataset-fashion-mnist)."""
    prefix = {"train": "train", "test": "t10k"}[source]
    with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz") as f:
        _, count, rows, columns = struct.unpack(">IIII", f.read(16))
        images = torch.frombuffer(bytearray(f.read()), dtype=torch.uint8).view(count, rows, columns)
    with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz") as f:
        f.read(8)
        return images, torch.frombuffer(bytearray(f.read()), dtype=torch.uint8)


def load_cifar10(folder, source):
    """CIFAR-10's own files, either its binary version (data_batch_1.bin ...) or its python version (data_batch_1 ...).

    The python version is pickled, so it can run code: load it only if you trust where it came from.
    """
    names = [f"data_batch_{i}" for i in range(1, 6)] if source == "train" else ["test_batch"]
    pictures, labels = [], []
    for name in names:
        if (folder / f"{name}.bin").exists():
            rows = torch.frombuffer(bytearray((folder / f"{name}.bin").read_bytes()), dtype=torch.uint8).view(-1, 3073)
            pictures.append(rows[:, 1:])
            labels.append(rows[:, 0])
        else:
            with open(folder / name, "rb") as f:
                batch = pickle.load(f, encoding="bytes")
            pictures.append(torch.as_tensor(batch[b"data"]))
            labels.append(torch.tensor(batch[b"labels"]))
    return torch.cat(pictures).view(-1, 3, 32, 32), torch.cat(labels)


def compose(pictures, generator, flip=False):
    """Scenes [N, 3, SIDE, SIDE] (u8) of the given pictures; `flip` mirrors half of them (for training)."""
    n = len(pictures)
    if flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        pictures = torch.where(mirrored.view(-1, *[1] * (pictures.dim() - 1)), pictures.flip(-1), pictures)
    if pictures.dim() == 4:
        scenes = F.interpolate(pictures, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    else:
        scenes = compose_garments(pictures, generator)
    return (scenes * 255).round_().clamp_(0, 255).to(torch.uint8)


def compose_garments(pictures, generator):
    n = len(pictures)

    def uniform(low, high, *shape):
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    # A wall of one colour, shaded towards some side, with clouds of a few pixels to half a scene.
    x = torch.linspace(-1, 1, SIDE)
    scenes = uniform(0.12, 0.55, 1, 1, 1) + uniform(-0.13, 0.13, 3, 1, 1)
    scenes = scenes + uniform(-0.2, 0.2, 1, 1, 1) * x + uniform(-0.2, 0.2, 1, 1, 1) * x[:, None]
    for cells, strength in [(3, 0.16), (9, 0.09)]:
        clouds = uniform(-strength, strength, 3, cells, cells) * uniform(0.2, 1, 1, 1, 1)
        scenes += F.interpolate(clouds, size=(SIDE, SIDE), mode="bicubic", align_corners=False)

    # Straight bars: poles, shelves, the edges of walls.
    for _ in range(3):
        angle, offset, half_width = uniform(0, torch.pi, 1, 1), uniform(-0.9, 0.9, 1, 1), uniform(0.01, 0.09, 1, 1)
        distance = (x * angle.cos() + x[:, None] * angle.sin() - offset).abs_()
        bar = (1 - (distance - half_width) * (SIDE / 2)).clamp_(0, 1)
        scenes += bar[:, None] * (uniform(-0.15, 0.15, 1, 1, 1) + uniform(-0.05, 0.05, 3, 1, 1))

    # Faint pieces of two other garments: real texture, so that not every edge belongs to the object.
    for shift in (1, 2):
        other = pictures.roll(shift, 0)[:, None, 4:24, 4:24]
        piece = place(other, uniform(14, 36), uniform(-0.9, 0.9, 2))
        scenes += piece * (uniform(-0.16, 0.16, 1, 1, 1) + uniform(-0.05, 0.05, 3, 1, 1))

    # The garment: its grey values become shades of one tint; it covers what lies behind it.
    side = uniform(OBJECT_MIN_PX, OBJECT_MAX_PX)
    room = (1 - side / SIDE)[:, None]
    garment = place(pictures[:, None], side, uniform(-1, 1, 2) * room)
    cover = (garment * 4).clamp_(0, 1)
    tint = uniform(0.7, 1, 1, 1, 1) * (1 - uniform(0, 0.5, 3, 1, 1))
    scenes += cover * (garment * tint + 0.06 - scenes)
    return scenes.add_(torch.randn(scenes.shape, generator=generator), alpha=0.015)


def place(pictures, side_px, centre):
    """Scenes [N, C, SIDE, SIDE] that are empty but for each picture at `side_px` [N] around `centre` [N, 2] in -1..1."""
    scale = SIDE / side_px
    theta = torch.zeros(len(pictures), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = -centre * scale[:, None]
    grid = F.affine_grid(theta, [len(pictures), 1, SIDE, SIDE], align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False)
