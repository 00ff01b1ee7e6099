"""Makes a run's folder of a PyTorch or safetensors checkpoint, so that it serves as teacher.run.

sdd import ckpt_epoch_240.pth --model=resnet32x4 --num_classes=100 --workdir=runs/resnet32x4

The names in it are those of the official SDD code, mdistiller, RepDistiller, torchvision or timm. Every tensor must
find its place and every parameter its tensor. The folder notes the size of the images that the network was trained on,
which evaluate, export and predict then take: that of --image_size, of a file that export wrote, or of the stem (32 of
cifar, 224 of imagenet). docs/pytorch.md says more.
"""

from pathlib import Path

import jax
from absl import flags

from sdd_jax import saved
from sdd_jax.files import read_checkpoint, read_metadata, sha256
from sdd_jax.models import STEM_SIZES, create_model, same_network
from sdd_jax.torch_io import find_state_dict, from_state_dict
from sdd_jax.training.checkpoint import check_finite

ARGUMENTS = ("FILE",)


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("model", None, "The network's name here, such as resnet32x4.")
    flags.DEFINE_integer("num_classes", None, "How many classes it tells apart.", lower_bound=1)
    flags.DEFINE_string("stem", "cifar", "Its stem: cifar, imagenet or cub200.")
    flags.DEFINE_string("workdir", None, "The folder to make.")
    flags.DEFINE_integer("image_size", None, "The side of the images that it was trained on.", lower_bound=1)
    flags.DEFINE_string("entry", None, 'Which state dict, where the file holds several, such as "model_ema".')
    flags.DEFINE_string("prefix", None, 'The prefix of the names to take, such as "module.student."; others are left.')
    flags.mark_flags_as_required(["model", "num_classes", "workdir"])


def main(file: str) -> None:
    """Runs the command."""
    args, folder = flags.FLAGS, Path(flags.FLAGS.workdir)
    if ":" in args.model:
        raise ValueError(f"--model={args.model}: a network of your own is imported from Python: docs/own_network.md")
    model = create_model(args.model, args.num_classes, args.stem)
    checkpoint = read_checkpoint(file)
    noted = read_metadata(file)
    for name in ("model", "stem"):
        own = getattr(args, name)
        if (stated := noted.get(name, own)) != own and not (name == "model" and same_network(stated, own)):
            raise ValueError(f"--{name}={own}: {file} says that its network has the {name} {stated}")
    try:
        variables = from_state_dict(model, checkpoint, entry=args.entry, prefix=args.prefix)
    except ValueError as error:
        raise ValueError(saved.in_one_line(file, error)) from error
    check_finite(variables, file)
    size, whence = find_size(args.image_size, noted.get("image_size"), args.stem, file)
    digest = sha256(file)
    source = {"file": Path(file).name, "sha256": digest, "entry": args.entry, "prefix": args.prefix}
    network = {"name": args.model, "stem": args.stem, "num_classes": args.num_classes, "image_size": size}
    saved.write_imported(folder, variables=variables, source=source, **network)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(f"{args.model}, {parameters:,} parameters, {args.num_classes} classes, from {file} (SHA-256 {digest})")
    print(f"trained at {size}x{size} pixels, {whence}")
    tensors = find_state_dict(checkpoint, args.entry).items()
    kinds = {array.dtype.name for name, array in tensors if name.startswith(args.prefix or "")}
    for kind in sorted(kinds - {"float32", "int64"}):
        print(f"tensors of {kind} were {'rounded' if kind == 'float64' else 'widened'} to float32")
    print(f"as a teacher: --config.teacher.run={folder}")


def find_size(given: int | None, noted: str | None, stem: str, file: str) -> tuple[int, str]:
    """The side of the images that a network was trained on, and who says so; ``ValueError`` if nobody does."""
    if noted is not None and not (noted.isdecimal() and int(noted)):
        raise ValueError(f"{file}: its image_size must be a number of pixels, got {noted!r}")
    if given is not None and noted is not None and given != int(noted):
        raise ValueError(f"--image_size={given}: {file} says that its network was trained at {noted}x{noted} pixels")
    if noted is not None:
        return int(noted), "by the file"
    if given is not None:
        return given, "by --image_size"
    if (usual := STEM_SIZES[stem]) is None:
        raise ValueError(
            f"--image_size is missing: networks with the stem {stem} are trained at 224 pixels, as in the paper, and "
            "on smaller images, and the file does not say"
        )
    return usual, f"as is usual with the stem {stem} (--image_size says otherwise)"
