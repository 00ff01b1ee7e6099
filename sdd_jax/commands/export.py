"""Writes a run's network to a file for use elsewhere.

python -m sdd_jax export --workdir=runs/a --format=safetensors --output=resnet8.safetensors

The names in it are PyTorch's, as the official SDD code and torchvision have them: there,
model.load_state_dict(safetensors.torch.load_file("resnet8.safetensors")) reads it.
"""

from pathlib import Path

import jax
from absl import flags

from sdd_jax import saved
from sdd_jax._version import __version__
from sdd_jax.tensor_files import write_safetensors
from sdd_jax.torch_io import to_state_dict

FORMATS = ("safetensors",)


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", None, "The run's folder, trained or imported.")
    flags.DEFINE_enum("format", "safetensors", FORMATS, f"One of: {', '.join(FORMATS)}.")
    flags.DEFINE_string("output", None, "The file to write; one that exists is not overwritten.")
    flags.DEFINE_enum("checkpoint", "last", saved.WHICH, "Which checkpoint: last or best.")
    flags.mark_flags_as_required(["workdir", "output"])


def main() -> None:
    """Runs the command."""
    folder, output = Path(flags.FLAGS.workdir), Path(flags.FLAGS.output)
    network = saved.read(folder)
    if ":" in network.name:
        raise ValueError(
            f"{network.name} has no table of PyTorch names: docs/pytorch.md shows how to export from Python"
        )
    step = saved.steps(folder)[flags.FLAGS.checkpoint]
    state_dict = to_state_dict(network.model, jax.device_get(saved.load_variables(folder, step)))
    metadata = {"model": network.name, "stem": network.stem, "num_classes": str(network.num_classes)}
    write_safetensors(output, state_dict, metadata | {"step": str(step), "sdd_jax": __version__})
    print(f"{output}: {network.name} of {folder}, step {step}, {len(state_dict)} tensors with PyTorch's names")
