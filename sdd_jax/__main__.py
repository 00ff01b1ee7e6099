"""``python -m sdd_jax COMMAND``: finds the command; a user's mistake is one line and exit code 2.

Exit codes: 0 done, 1 failed, 2 the user's input or a refusal, 130 interrupted, 143 ended by SIGTERM.
"""

import difflib
import importlib
import os
import re
import shutil
import sys
import textwrap
import traceback
import warnings
from functools import partial
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from sdd_jax.config import NONE
from sdd_jax.training.host_memory import keep_freed_memory
from sdd_jax.training.notice import Left

COMMANDS = {
    "train": "train a network, plain or by distillation",
    "evaluate": "measure a run on the test set",
    "cache": "keep what a teacher says of every view that runs will see",
    "report": "compare runs on one page: curves, regions, calibration, what changed",
    "predict": "say what is on pictures, as a whole and region by region",
    "import": "make a run's folder of a PyTorch checkpoint, to serve as a teacher",
    "export": "write a run's network to a file for use elsewhere",
    "plan": "say what a run takes on TPUs, before any is rented",
}
# Errors of what the user named, which say it themselves.
OWN_LINES = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError, ImportError)
PROGRAM_BYTES = 2**32  # of compiled programs are kept at most, those used last
HELP_COLUMNS = 100  # lines of help are no longer, however wide the terminal is
MODULES = {"import": "import_"}  # a command that Python keeps as a word of its own


class _OrNone(flags.ArgumentParser):
    """Of a config's number: ``none`` unsets it. `sdd_jax.config` says which may be, and reads the word in text."""

    def __init__(self, number: flags.ArgumentParser):
        super().__init__()
        self._number = number

    def parse(self, argument: str) -> int | float | None:
        """See the base class."""
        return None if argument == NONE else self._number.parse(argument)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m sdd_jax COMMAND [--flag=value ...]",
            "",
            *lines,
            "",
            "python -m sdd_jax COMMAND --help shows its flags and an example. A first run:",
            "  python -m sdd_jax train --config=configs/quickstart.py --workdir=runs/quickstart",
        ]
    )


def _help(module) -> str:
    """The module's words and its flags, no wider than the terminal; what is typed stays as it is."""
    width = min(shutil.get_terminal_size().columns, HELP_COLUMNS)
    paragraphs = module.__doc__.strip().split("\n\n")
    words = [text if text.startswith("python -m") else textwrap.fill(text, width) for text in paragraphs]
    own = flags.FLAGS.flags_by_module_dict().get(module.__name__, [])
    lines = [textwrap.fill(_flag(flag), width, initial_indent="  ", subsequent_indent="      ") for flag in own]
    return "\n".join(["\n\n".join(words), "", "flags:", *lines])


def _flag(flag: flags.Flag) -> str:
    needed = any("must have a value" in check.message for check in flag.validators)
    default = "" if flag.default in (None, False, "", []) else f" Default: {str(flag.default_as_str).strip(chr(39))}."
    return f"--{flag.name}: {flag.help}{' Needed.' if needed else ''}{default}"


def _refuse(message: str) -> NoReturn:
    print(f"sdd_jax: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _message(error: BaseException, argv: list[str]) -> str:
    """What went wrong on the command line or in the config file, from a chain of exceptions: mostly the cause."""
    config = next((given.removeprefix("--config=") for given in argv if given.startswith("--config=")), None)
    if missing := re.findall(r"Flag --(\w+) must have a value other than None", str(error)):
        if "config" in missing and config is not None:
            return f"{config}: get_config must return a ConfigDict, got None"
        return f"{' and '.join(f'--{name}' for name in missing)} must be given: {argv[0]} --help shows an example"
    if field := re.search(r'Did you mean "(\w+)" instead of "(\w+)"', str(error)):
        return f"config has no field {field[2]!r} there; the closest is {field[1]!r}"
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"{error}: {argv[0]} --help shows those that there are"
    if isinstance(error, flags.IllegalFlagValueError) and "Traceback" not in str(error):
        return str(error)
    while (cause := error.__cause__ or error.__context__) is not None and (str(cause) or isinstance(cause, OSError)):
        error = cause
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    file, loader = frame.f_code.co_filename, "ml_collections" in frame.f_globals["__name__"]
    if isinstance(error, KeyError) and loader:
        return f"config has no field {error}: docs/fields.md has all of them"
    if isinstance(error, AttributeError) and "'get_config'" in str(error):
        return f"{config} defines no function get_config: it is not a config file"
    if isinstance(error, OSError) and loader and "Path to config file" in str(error):
        return "--config must name a file, got an empty name"
    if isinstance(error, OSError) and loader and not Path(path := str(config).partition(":")[0]).exists():
        return f"there is no config file {path}"
    if isinstance(error, OSError) and loader:  # of a file that the config opens itself
        return f"{config}: {str(error).rpartition('] ')[2]}"
    if isinstance(error, OSError) and error.filename:
        return f"config file {error.filename}: {error.strerror}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {error.msg}"
    if isinstance(error, ValueError | flags.Error | SyntaxError) or loader:
        return f"{config}: {error}" if isinstance(error, TypeError | UnicodeError | SyntaxError) else str(error)
    return f"{config} failed with {type(error).__name__}: {error} ({file}:{line})"


def _first(error: BaseException) -> BaseException:
    """The error that ended the run, where closing its files failed as well: a full disk fails more than once."""
    while isinstance(error.__context__, OSError | FloatingPointError) and error.__cause__ is None:
        error = error.__context__
    return error


def _parse(argv: list[str], wanted: tuple[str, ...] = ()) -> list[str]:
    """The command and its arguments without flags: as many as are ``wanted``, or more where those end with "..."."""
    try:
        rest = flags.FLAGS(argv)
        # A file that does not load says so when it is read, not before.
        if "config" in flags.FLAGS and getattr(flags.FLAGS.config, "to_dict", None) is None:
            raise ValueError(f"get_config must return a ConfigDict, got {flags.FLAGS.config!r}")
    except Exception as error:  # whatever a config file does when it is read
        _refuse(_message(error, argv))
    for name in ("workdir", "output"):  # an empty one would be the folder that this is started in
        if name in flags.FLAGS and flags.FLAGS[name].value == "":
            _refuse(f"--{name} must name a place, got an empty name")
    given, several = rest[1:], wanted[-1:] == ("...",)
    usage, wanted = " ".join(wanted), wanted[:-1] if several else wanted
    if len(given) < len(wanted):
        _refuse(f"{wanted[len(given)]} is missing: python -m {argv[0]} {usage} --flag=value ...")
    if len(given) > len(wanted) and not several:
        _refuse(f"unexpected argument {given[len(wanted)]!r}: flags are written --name=value")
    return rest


def keep_programs() -> None:
    """Compiled programs are kept between starts, unless the environment says where or that they are not to be.

    XLA itself refuses a program that was compiled for another machine, and compiles it again.
    """
    if jax.config.values.get("jax_compilation_cache_dir") is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "sdd_jax" / "programs"))
        jax.config.update("jax_compilation_cache_max_size", PROGRAM_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def main() -> None:
    """The program."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        sys.exit(0 if arguments else 2)
    command = arguments[0]
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.0)[0]
        _refuse(f"unknown command {command!r}; the closest is {close!r}, known are {', '.join(COMMANDS)}")
    module = importlib.import_module(f"sdd_jax.commands.{MODULES.get(command, command)}")
    for kind, parser in ((int, flags.IntegerParser()), (float, flags.FloatParser())):
        config_flags.register_flag_parser_for_type(kind, _OrNone(parser))
    module.define_flags()
    if any(argument in ("-h", "--help") for argument in arguments[1:]):
        print(_help(module))
        sys.exit(0)

    logging.set_verbosity(logging.WARNING)  # Orbax tells every file that it writes; --verbosity=0 shows it
    # An error of one of Orbax's threads comes out of its save as well, and is told there, once.
    logging.get_absl_handler().addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))

    # A picture of so many pixels is refused, which says more than Pillow's warning that it might be.
    warnings.filterwarnings("ignore", message=r"Image size \(\d+ pixels\) exceeds limit")

    def run(argv):
        keep_programs()
        keep_freed_memory()
        try:
            with jax.transfer_guard("allow"):  # of setting up, whatever the environment says; the loop forbids its own
                module.main(*argv[1:])
        except ValueError as error:
            _refuse(str(error))
        except OWN_LINES as error:  # of data or a package: how to get it stands on its own lines
            told = str(error)
            if isinstance(error, OSError) and error.filename:
                told = f"{error.filename}: {error.strerror}"
            print(f"sdd_jax: {told}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("sdd_jax: interrupted; the same command goes on from what was saved last", file=sys.stderr)
            sys.exit(130)
        except Left as left:
            print(f"sdd_jax: {left}", file=sys.stderr)
            sys.exit(left.code)
        except (FloatingPointError, OSError) as error:  # of a disk that is full or read-only, for one
            print(f"sdd_jax: {_first(error)}", file=sys.stderr)
            sys.exit(1)

    parse = partial(_parse, wanted=getattr(module, "ARGUMENTS", ()))
    app.run(run, argv=[f"sdd_jax {command}", *arguments[1:]], flags_parser=parse)


if __name__ == "__main__":
    main()
