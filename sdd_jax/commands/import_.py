"""Makes a run's folder of a PyTorch or safetensors checkpoint, so that it serves as teacher.run.

python -m sdd_jax import ckpt_epoch_240.pth --model=resnet32x4 --num_classes=100 --workdir=runs/resnet32x4

The names in it are those of the official SDD code, mdistiller, RepDistiller or torchvision. Every tensor must find its
place and every parameter its tensor. docs/pytorch.md says more.
"""

from pathlib import Path

import jax
import numpy as np
from absl import flags

from sdd_jax import saved
from sdd_jax.models import create_model
from sdd_jax.tensor_files import file_sha256, read_checkpoint
from sdd_jax.torch_io import find_state_dict, from_state_dict

ARGUMENTS = ("FILE",)


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
        raise ValueError(
            f"--model={args.model}: a network of your own is imported from Python, see docs/own_network.md"
        )
    model = create_model(args.model, args.num_classes, args.stem)
    checkpoint = read_checkpoint(file)
    try:
        variables = from_state_dict(model, checkpoint, entry=args.entry, prefix=args.prefix)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    digest = file_sha256(file)
    source = {"file": Path(file).name, "sha256": digest, "entry": args.entry, "prefix": args.prefix}
    saved.write_imported(
        folder, name=args.model, stem=args.stem, num_classes=args.num_classes, variables=variables, source=source
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(f"{args.model}, {parameters:,} parameters, {args.num_classes} classes, from {file} (SHA-256 {digest})")
    kinds = {np.asarray(array).dtype for array in find_state_dict(checkpoint, args.entry).values()}
    if np.dtype("float64") in kinds:
        print("its float64 tensors were rounded to float32")
    print(f"as a teacher: --config.teacher.run={folder}")
