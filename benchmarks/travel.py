"""Packs what a machine without a network needs to run this checkout: the checkout, wheels, images.

python -m benchmarks.travel --output=DIR --images=/usr/share/datasets/fashion-mnist

DIR/travel.tar has the commit's files, in `wheels/` the packages of requirements.txt that the machine lacks, and in
`images/` those of a data set; DIR/travel.md lists all of it with its bytes. --there says what the machine has: these
packages and all that they need stay here. On the machine, in the folder where the archive was unpacked:

    pip install --no-index --no-deps wheels/*.whl
    python -m benchmarks.accelerator --output=results --data_path=images
"""

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.accelerator import ROOT
from benchmarks.run import PACKED
from experiments.command_line import Parser, guarded, refuse, table
from sdd_jax.training.run_dir import commit

PROGRAM = "benchmarks.travel"
THERE = ("jax==0.11.2", "flax", "optax", "orbax-checkpoint", "chex")  # PyTorch needs nothing of ours that is large
LARGEST = 64 * 2**20


def main(arguments):
    """Writes archive and list; ends with 1 if the archive is too large."""
    parser = Parser(
        prog=f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets travel.tar and travel.md")
    parser.add_argument("--python", default=sys.executable, help="one of the machine's version; default: this one")
    parser.add_argument("--there", default=",".join(THERE), help=f"what the machine has; default {','.join(THERE)}")
    parser.add_argument("--images", type=Path, metavar="DIR", help="the files of a data set, which travel as images/")
    options = parser.parse_args(arguments)
    with guarded(PROGRAM), tempfile.TemporaryDirectory(prefix="travel_") as folder:
        options.output.mkdir(parents=True, exist_ok=True)
        wheels = fetch(Path(folder, "wheels"), options.python, options.there.split(","))
        archive = options.output / "travel.tar"
        git = ["git", "-C", str(ROOT), "archive", f"--output={archive.absolute()}", "HEAD"]
        subprocess.run(git, check=True)
        checkout = archive.stat().st_size
        images = sorted(options.images.iterdir()) if options.images else []
        packed = str(commit())
        if packed.endswith("+changes"):
            print("changes that are not committed stay here", file=sys.stderr)
        Path(folder, PACKED).write_text(f"{packed.removesuffix('+changes')}\n")
        with tarfile.open(archive, "a") as tar:
            tar.add(Path(folder, PACKED), PACKED)
            for path in wheels:
                tar.add(path, f"wheels/{path.name}")
            for path in images:
                tar.add(path.resolve(), f"images/{path.name}")
        rows = [
            ("the checkout", f"{checkout:,}"),
            *((path.name, f"{path.stat().st_size:,}") for path in wheels + images),
        ]
        size = archive.stat().st_size
        rows.append(("together", f"{size:,}"))
        text = "\n".join(table(("file", "bytes"), rows)) + "\n"
        (options.output / "travel.md").write_text(text)
        print(text, end="")
        if size > LARGEST:
            refuse(PROGRAM, f"{archive} has {size:,} bytes, more than {LARGEST:,}")


def fetch(folder, python, there):
    """The wheels that requirements.txt asks for beside what is there, fetched into `folder`."""
    needed = resolve(python, ["-r", str(ROOT / "requirements.txt"), *there])
    kept = resolve(python, there)
    asked = [f"{name}=={version}" for name, version in sorted(needed.items()) if name not in kept]
    pip(python, "download", "--quiet", "--no-deps", "--only-binary=:all:", f"--dest={folder}", *asked)
    return sorted(folder.iterdir())


def resolve(python, asked):
    """`{name: version}` of packages and of all that they need, as pip would install them."""
    told = pip(python, "install", "--dry-run", "--quiet", "--ignore-installed", "--report=-", *asked)
    return {one["metadata"]["name"].lower(): one["metadata"]["version"] for one in json.loads(told)["install"]}


def pip(python, *arguments):
    """What pip prints; `ValueError` with its last line if it fails."""
    command = [python, "-m", "pip", *arguments, "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"pip {arguments[0]} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


if __name__ == "__main__":
    main(sys.argv[1:])
