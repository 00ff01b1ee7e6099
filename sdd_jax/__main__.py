"""``sdd COMMAND``, or ``python -m sdd_jax COMMAND``: finds the command; a user's mistake is one line and exit code 2.

Exit codes: 0 done, 1 failed, 2 the user's input or a refusal, 130 interrupted, 143 ended by SIGTERM.
"""

import importlib
import os
import runpy
import shutil
import sys
import textwrap
import traceback
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from sdd_jax import configs
from sdd_jax.config import NONE, closest
from sdd_jax.files import cache_folder
from sdd_jax.processes import Preempted
from sdd_jax.training.compiling import keep_freed_memory

COMMANDS = {
    "train": "train a network, plain or by distillation",
    "sweep": "search for weights: a grid of runs, the best by held-out images",
    "evaluate": "measure a run on the test set",
    "cache": "keep what a teacher says of every view that runs will see",
    "report": "compare runs on one page: curves, regions, calibration, what changed",
    "predict": "say what is on pictures, as a whole and region by region",
    "import": "make a run's folder of a PyTorch checkpoint, to serve as a teacher",
    "export": "write a run's network to a file for use elsewhere",
    "plan": "say what a run takes on TPUs, before any is rented",
}
SAVING = ("train", "sweep", "cache")  # commands that go on where they were
USAGE = """usage: sdd COMMAND [--flag=value ...]

{commands}

sdd COMMAND --help shows its flags and an example. A first run:
  sdd train --config=quickstart --workdir=runs/quickstart
python -m sdd_jax is the same program."""
# Errors of what the user named, with messages that need no other words.
OWN_LINES = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError, ImportError)
REQUIRED = "must have a value"  # in the message of absl's check of a flag that has to be given


class _OrNone(flags.ArgumentParser):
    """Parses a config's value, and ``none``, which unsets it; `sdd_jax.config` checks which fields may be unset."""

    def __init__(self, value: flags.ArgumentParser):
        super().__init__()
        self._value = value

    def parse(self, argument: str) -> int | float | bool | None:
        return None if argument == NONE else self._value.parse(argument)


def _help(module) -> str:
    """The module's docstring and its flags, no wider than the terminal or 100 columns; commands are not wrapped."""
    width = min(shutil.get_terminal_size().columns, 100)
    paragraphs = module.__doc__.strip().split("\n\n")
    words = [text if text.startswith("sdd ") else textwrap.fill(text, width) for text in paragraphs]
    lines = ["\n\n".join(words), "", "flags:"]
    for flag in flags.FLAGS.flags_by_module_dict()[module.__name__]:
        needed = " Needed." if any(REQUIRED in check.message for check in flag.validators) else ""
        has_default = flag.default not in (None, False, "", [])
        default = f" Default: {str(flag.default_as_str).strip(chr(39))}." if has_default else ""
        told = flag.help.partition("\n")[0].rstrip(";")  # absl adds a line where a flag may be given more than once
        text = f"--{flag.name}: {told}{needed}{default}"
        lines.append(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="      "))
    return "\n".join(lines)


def _end(message: str, code: int = 2) -> NoReturn:
    print(f"sdd: {message}", file=sys.stderr)
    sys.exit(code)


def _config_names() -> dict[str, Path]:
    """The configs that come with the package: name -> file."""
    files = sorted(Path(next(iter(configs.__path__))).glob("*.py"))
    return {path.stem: path for path in files if "def get_config(" in path.read_text()}


def with_config_files(argv: list[str]) -> list[str]:
    """The arguments with the file of a named config in the name's place."""
    given, after = [], False
    for argument in argv:
        if after or argument.startswith("--config="):
            start = "" if after else "--config="
            name, colon, rest = argument.removeprefix(start).partition(":")
            argument = f"{start}{_config_names().get(name, name)}{colon}{rest}"
        after = argument == "--config"
        given.append(argument)
    return given


def _config_problem(given: str) -> str | None:
    """What is wrong with the config file, ``FILE.py`` or ``FILE.py:ARGUMENT``, and where; None if it loads.

    absl and ml_collections wrap its errors in others, so it is loaded once more, alone.
    """
    path, colon, argument = given.partition(":")
    if not path:
        return "--config must name a config or a file, got an empty name"
    if not Path(path).is_file():
        file = f"there is no config file {path}"
        return file if path.endswith(".py") else f"{file}, and no config of that name{closest(path, _config_names())}"
    try:
        try:
            get_config = runpy.run_path(path).get("get_config")
        except ValueError as error:  # of bytes that are no text, in some versions of Python
            return f"{path}: {error}"
        if get_config is None:
            return f"{path} defines no function get_config: it is not a config file"
        config = get_config(argument) if colon else get_config()
    except ValueError as error:  # raised by the file, of its argument
        return str(error)
    except SyntaxError as error:
        return f"{error.filename or path}:{error.lineno or 1}: {error.msg}"
    except Exception as error:  # whatever a file does when it is run
        frames = traceback.extract_tb(error.__traceback__)[1:]
        place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        return f"{given} failed with {type(error).__name__}: {error}{place}"
    return None if isinstance(config, ConfigDict) else f"{path}: get_config must return a ConfigDict, got {config!r}"


def _parse(argv: list[str], wanted: tuple[str, ...] = ()) -> list[str]:
    """The command and its arguments without flags: as many as are ``wanted``, or more where those end with "..."."""
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and not isinstance(flags.FLAGS.config, ConfigDict):
            raise ValueError("--config must name a config file")
    except Exception as error:  # of absl, ml_collections or the config file
        configs = [text.removeprefix("--config=") for text in argv if text.startswith("--config=")]
        configs += [value for flag, value in pairwise(argv) if flag == "--config"]
        if configs and (problem := _config_problem(configs[0])):
            _end(" ".join(problem.split()))
        if missing := [f"--{name}" for name in flags.FLAGS if f"--{name} {REQUIRED}" in str(error)]:
            _end(f"{' and '.join(missing)} must be given: {argv[0]} --help shows an example")
        if isinstance(error, flags.UnrecognizedFlagError):
            _end(f"{error}: {argv[0]} --help shows those that there are")
        if isinstance(error, KeyError | AttributeError):  # of ml_collections
            _end(f"config has no such field: {error.args[0]}. docs/fields.md has all of them")
        _end(" ".join(str(error).split()))
    for name in ("workdir", "output"):  # an empty one would be the folder that this is started in
        if name in flags.FLAGS and flags.FLAGS[name].value == "":
            _end(f"--{name} must name a place, got an empty name")
    given, needed = rest[1:], [name for name in wanted if name != "..."]
    if len(given) < len(needed):
        _end(f"{needed[len(given)]} is missing: {argv[0]} {' '.join(wanted)} --flag=value ...")
    if len(given) > len(needed) and "..." not in wanted:
        _end(f"unexpected argument {given[len(needed)]!r}: flags are written --name=value")
    return rest


def keep_programs() -> None:
    """Keeps compiled programs between starts, unless the environment says where or that they are not to be kept."""
    # XLA itself refuses a program that was compiled for another machine, and compiles it again.
    if jax.config.values.get("jax_compilation_cache_dir") is None:
        try:
            folder = cache_folder("programs")
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise OSError(f"{folder} cannot be written (XDG_CACHE_HOME says where)")
        except (ValueError, OSError) as error:  # such as a user without a home
            print(f"sdd: compiled programs are not kept: {error}", file=sys.stderr)
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", 2**32)  # bytes, those used last
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _run(module, argv: list[str]) -> None:
    """Runs the command, and turns the errors that a user can meet into one line and an exit code."""
    keep_programs()
    keep_freed_memory()
    try:
        with jax.transfer_guard("allow"):  # of setting up, whatever the environment says; the loop forbids its own
            module.main(*argv[1:])
    except ValueError as error:
        _end(" ".join(str(error).split()))
    except OWN_LINES as error:  # of data or a package: how to get it stands on its own lines
        if isinstance(error, OSError) and error.filename:
            _end(f"{error.filename}: {error.strerror}")
        _end(str(error))
    except KeyboardInterrupt:
        saves = module.__name__.rpartition(".")[2] in SAVING
        _end("interrupted" + ("; the same command goes on from what was saved last" if saves else ""), 130)
    except Preempted as preempted:
        _end(str(preempted), preempted.code)
    except (FloatingPointError, OSError) as error:  # such as a disk that is full or read-only
        first = error  # where closing the files failed as well: a full disk fails more than once
        while isinstance(first.__context__, OSError | FloatingPointError) and not first.__suppress_context__:
            first = first.__context__
        _end(str(first), 1)


def main() -> None:
    """The program."""
    if os.getcwd() not in sys.path:  # for a user's own MODULE:FUNCTION; last, so that it stands for no other module
        sys.path.append(os.getcwd())
    arguments = with_config_files(sys.argv[1:])
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        commands = "\n".join(f"  {name:8}  {text}" for name, text in COMMANDS.items())
        print(USAGE.format(commands=commands))
        sys.exit(0 if arguments else 2)
    command = arguments[0]
    if command not in COMMANDS:
        _end(f"unknown command {command!r}{closest(command, COMMANDS)}")
    module = importlib.import_module(f"sdd_jax.commands.{'import_' if command == 'import' else command}")
    parsers = {int: flags.IntegerParser(), float: flags.FloatParser(), bool: flags.BooleanParser()}
    for kind, parser in parsers.items():
        config_flags.register_flag_parser_for_type(kind, _OrNone(parser))
    module.define_flags()
    if any(argument in ("-h", "--help") for argument in arguments[1:]):
        print(_help(module))
        sys.exit(0)

    logging.set_verbosity(logging.WARNING)  # Orbax logs every file that it writes; --verbosity=0 shows it
    # An error in one of Orbax's threads is raised by its save as well, and reported there, once.
    logging.get_absl_handler().addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
    # A picture of so many pixels is refused, which says more than Pillow's warning that it might be.
    warnings.filterwarnings("ignore", message=r"Image size \(\d+ pixels\) exceeds limit")

    parse = partial(_parse, wanted=getattr(module, "ARGUMENTS", ()))
    app.run(partial(_run, module), argv=[f"sdd {command}", *arguments[1:]], flags_parser=parse)


if __name__ == "__main__":
    main()
