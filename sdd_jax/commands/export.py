"""Writes a run's network to a file for use elsewhere.

sdd export --workdir=runs/a --format=safetensors --output=resnet8.safetensors
sdd export --workdir=runs/a --format=onnx --output=resnet8.onnx
sdd export --workdir=runs/a --format=stablehlo --output=resnet8.stablehlo

safetensors holds the weights under PyTorch's names, as the official SDD code and torchvision have them: there,
model.load_state_dict(safetensors.torch.load_file("resnet8.safetensors")) reads it.

onnx and stablehlo hold the whole network: raw uint8 images [batch, height, width, channels] in, normalised inside,
logits [batch, classes] out, for any batch size. They need pip install -e ".[export]". An imported network names no
data, so the command does, for the normalisation of its images: --data=cifar100.
"""

from pathlib import Path

import jax
from absl import flags

from sdd_jax import __version__, saved
from sdd_jax.fields import SAVED
from sdd_jax.files import write_safetensors
from sdd_jax.own import ALLOW
from sdd_jax.saved import CHECKPOINT
from sdd_jax.serving.network import open_network, write_stablehlo
from sdd_jax.torch_io import to_state_dict

FORMATS = ("safetensors", "onnx", "stablehlo")


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", None, "The run's folder, trained or imported.")
    flags.DEFINE_enum("format", "safetensors", FORMATS, f"One of: {', '.join(FORMATS)}.")
    flags.DEFINE_string("output", None, "The file to write; one that exists is not overwritten.")
    flags.DEFINE_enum("checkpoint", "last", SAVED, CHECKPOINT)
    flags.DEFINE_string("data", None, "onnx, stablehlo: the data set of an imported network.")
    flags.DEFINE_string("data_path", None, "Where that set is, if its facts are to be read there.")
    flags.DEFINE_integer("image_size", None, "The side of its images; the network's own if left out.", lower_bound=1)
    flags.DEFINE_list("allow", [], ALLOW)
    flags.mark_flags_as_required(["workdir", "output"])


def main() -> None:
    """Runs the command."""
    args, folder, output = flags.FLAGS, Path(flags.FLAGS.workdir), Path(flags.FLAGS.output)
    if args.format == "safetensors":
        for name in ("data", "data_path"):
            if (given := getattr(args, name)) is not None:
                raise ValueError(f"--{name}={given}: safetensors holds the weights alone, it is for onnx and stablehlo")
        network, step = saved.read(folder, args.allow), saved.step_of(folder, args.checkpoint)
        if ":" in network.name:
            raise ValueError(f"{network.name} has no PyTorch names: docs/pytorch.md shows how to export from Python")
        tensors = to_state_dict(network.model, jax.device_get(saved.load_variables(folder, args.checkpoint)))
        metadata = {"model": network.name, "stem": network.stem, "num_classes": str(network.num_classes)}
        if args.image_size not in (None, network.image_size or args.image_size):
            known = f"{network.image_size}x{network.image_size}"
            raise ValueError(f"--image_size={args.image_size}: {folder} was trained at {known} pixels")
        if (size := args.image_size or network.image_size) is not None:
            metadata["image_size"] = str(size)  # which import reads
        write_safetensors(output, tensors, metadata | {"step": str(step), "sdd_jax": __version__})
        print(f"{output}: {network.name} of {folder}, step {step}, {len(tensors)} tensors with PyTorch's names")
        return
    given = {"data_name": args.data, "data_path": args.data_path, "image_size": args.image_size, "allow": args.allow}
    served = open_network(folder, checkpoint=args.checkpoint, **given)
    if (note := served.other_size()) is not None:
        print(note)
    if args.format == "onnx":
        from sdd_jax.serving.onnx_graph import write_onnx  # says how to get onnx where it is missing

        what = f"{write_onnx(served, output)} nodes"
    else:
        write_stablehlo(served, output)
        what = f"StableHLO; {output}.json says what it is"
    network, shape = served.network, ", ".join(map(str, ("batch", *served.info.image_shape)))
    print(
        f"{output}: {network.name} of {folder}, step {served.step}; uint8 [{shape}] in, normalised inside, "
        f"{network.num_classes} logits out, {what}"
    )
