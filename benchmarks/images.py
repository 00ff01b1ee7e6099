"""Images per second from JPEG files to a batch that training takes, beside the plain PIL pipeline of PyTorch users."""

import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import timing
from experiments.command_line import table
from sdd_jax import data
from sdd_jax.data import images, train_data
from sdd_jax.mesh import make_mesh

COUNT, HEIGHT, WIDTH, SIZE = 128, 375, 500, 224  # files; ImageNet's photographs are about 400 x 350 in the mean
BATCH, WARM_UP, STEPS, ROUNDS = 32, 4, 64, 5  # a worker process that starts later than the first is not waited for
PIPELINES = (("one core, no pipeline", None), ("2 worker processes", 2))


def section():
    """Times both pipelines in turns; lines of markdown."""
    with tempfile.TemporaryDirectory(prefix="benchmark_images_") as folder:
        kilobytes = write_photographs(Path(folder)) / COUNT / 1000
        rows = []
        for name, workers in PIPELINES:
            rows.append(cells(name, *rounds(ours(Path(folder), workers), plain(Path(folder), workers))))
    return [
        "## Images",
        "",
        f"Images per second from JPEG files of {WIDTH} x {HEIGHT} pixels ({kilobytes:.0f} kB in the mean, in the page "
        f"cache): read, decode, RandomResizedCrop to {SIZE}, flip, batches of {BATCH}. Ours ends with uint8, which the "
        "step normalises on the device; the plain one, PIL as torchvision calls it and PyTorch's DataLoader, ends with "
        f"normalised float32. The median of {ROUNDS} rounds in turns; a round starts anew, and its clock after "
        f"{WARM_UP} of its {WARM_UP + STEPS} batches.",
        "",
        *table(("", "ours", "plain PIL", "ours / plain", "quartiles"), rows),
    ]


def cells(name, our_seconds, plain_seconds):
    """A row of the table, from the seconds of each round."""
    rates = (f"{STEPS * BATCH / statistics.median(seconds):.0f}" for seconds in (our_seconds, plain_seconds))
    median, low, high = timing.ratio(plain_seconds, our_seconds)
    return (name, *rates, f"{median:.2f}", f"{low:.2f} to {high:.2f}")


def rounds(*pipelines, steps=None, count=None):
    """The seconds of each pipeline for `steps` batches, in each of `count` rounds; None: `STEPS`, `ROUNDS`."""
    seconds, steps = [[] for _ in pipelines], steps or STEPS
    for _ in range(count or ROUNDS):
        for start, taken in zip(pipelines, seconds, strict=True):
            batches = start()
            for _ in range(WARM_UP):
                next(batches)
            began = time.perf_counter()
            for _ in range(steps):
                next(batches)
            taken.append(time.perf_counter() - began)
            batches.close()
    return seconds


def write_photographs(folder):
    """JPEG files with the detail of photographs, in one class; how many bytes the training files have together."""
    rng = np.random.default_rng(0)
    for part, count in (("train", COUNT), ("test", 1)):
        (folder / part / "only").mkdir(parents=True)
        for number in range(count):
            coarse = rng.integers(0, 256, (HEIGHT // 12, WIDTH // 12, 3), dtype=np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
            pixels = np.clip(smooth + rng.normal(scale=6, size=smooth.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / part / "only" / f"{number}.jpg", quality=92, subsampling="4:2:0")
    return sum(path.stat().st_size for path in (folder / "train" / "only").iterdir())


def ours(folder, workers):
    """`start()` returns this project's batches: by hand in this thread, or as training reads them."""
    dataset = data.load(
        "image_folder", path=folder, select_on="test", image_size=SIZE, in_memory=False, workers=workers or 0
    )

    def by_hand():
        records, rng = dataset.train.records, np.random.default_rng(0)
        for step in itertools.count():
            numbers = (number % COUNT for number in range(step * BATCH, (step + 1) * BATCH))
            decoded = (images.decode(records.read(number)[0], "") for number in numbers)
            yield np.stack([images.train_image(image, dataset.augment, SIZE, rng)[0] for image in decoded])

    def as_training():
        source = train_data(dataset, seeds=[0], epochs=1000, batch_size=BATCH, steps_per_call=1, mesh=make_mesh())
        try:
            for step in itertools.count():
                yield source.own(step)["image"].block_until_ready()
        finally:
            source.close()

    return by_hand if workers is None else as_training


def plain(folder, workers):
    """`start()` returns the batches of PIL and PyTorch: normalised float32, as torchvision's reference training has."""
    import torch

    torch.set_num_threads(1)
    paths, info = sorted((folder / "train" / "only").iterdir()), data.INFO["imagenet"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (info.mean, info.std))

    class Photographs(torch.utils.data.Dataset):
        def __len__(self):
            return BATCH * (WARM_UP + STEPS)

        def __getitem__(self, number):
            rng = np.random.default_rng()
            with open(paths[number % len(paths)], "rb") as file:
                image = Image.open(file).convert("RGB")
            box = images.random_box(image.width, image.height, rng)
            image = image.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
            return (pixels - mean) / std

    def start():
        yield from torch.utils.data.DataLoader(Photographs(), batch_size=BATCH, num_workers=workers or 0)

    return start
