"""Makes a run's folder of a PyTorch or safetensors checkpoint, so that it serves as teacher.run.

sdd import ckpt_epoch_240.pth --model=resnet32x4 --num_classes=100 --workdir=runs/resnet32x4

The names in it are those of the official SDD code, mdistiller, RepDistiller or torchvision. Every tensor must find its
place and every parameter its tensor. docs/pytorch.md says more.
"""

from pathlib import Path

import jax
from absl import flags

from sdd_jax import saved
from sdd_jax.files import read_checkpoint, sha256
from sdd_jax.models import create_model
from sdd_jax.torch_io import find_state_dict, from_state_dict

ARGUMENTS = ("FILE",)
LISTED = 8  # how many tensors that do not fit are named; from_state_dict names all


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("model", None, "The network's name here, such as resnet32x4.")
    flags.DEFINE_integer("num_classes", None, "How many classes it tells apart.", lower_bound=1)
    flags.DEFINE_string("stem", "cifar", "Its stem: cifar, imagenet or cub200.")
    flags.DEFINE_string("workdir", None, "The folder to make.")
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
    try:
        variables = from_state_dict(model, checkpoint, entry=args.entry, prefix=args.prefix)
    except ValueError as error:
        first, *lines = str(error).splitlines()
        more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        raise ValueError("; ".join([f"{file}: {first}", *lines[:LISTED], *more])) from error
    digest = sha256(file)
    source = {"file": Path(file).name, "sha256": digest, "entry": args.entry, "prefix": args.prefix}
    saved.write_imported(
        folder, name=args.model, stem=args.stem, num_classes=args.num_classes, variables=variables, source=source
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(f"{args.model}, {parameters:,} parameters, {args.num_classes} classes, from {file} (SHA-256 {digest})")
    tensors = find_state_dict(checkpoint, args.entry).items()
    kinds = {array.dtype.name for name, array in tensors if name.startswith(args.prefix or "")}
    for kind in sorted(kinds - {"float32", "int64"}):
        print(f"tensors of {kind} were {'rounded' if kind == 'float64' else 'widened'} to float32")
    print(f"as a teacher: --config.teacher.run={folder}")
