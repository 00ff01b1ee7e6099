"""Commands in this process: what a person would type, its exit code and what it printed, and nothing left behind."""

import contextlib
import importlib
import io
import os
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from absl import app, flags, logging

import sdd_jax.__main__ as program

ROOT = Path(__file__).parents[1]
# Of a process whose programs are compiled as a user's are: with all optimisations (tests/conftest.py leaves them out).
LEFT_OUT = ("--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")
A_USERS = {"XLA_FLAGS": " ".join(flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag not in LEFT_OUT)}


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self):
        """The one line of a refusal: exit code 2, and nothing else said."""
        assert self.code == 2, self
        assert "Traceback" not in self.err and len(self.err.splitlines()) == 1, self
        return self.err.strip()


def call(*arguments, name="sdd", **given):
    """``python -m NAME ARGUMENTS`` from the repository's folder; ``given`` goes to its ``main``.

    An exception that gets out of the command gets out of here.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_flags_kept())
        stack.enter_context(contextlib.chdir(ROOT))
        stack.enter_context(mock.patch.object(sys, "argv", [name, *map(str, arguments)]))
        stack.enter_context(mock.patch.object(program, "keep_freed_memory"))  # which would hold for all later tests
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            module = program if name == "sdd" else importlib.import_module(name)
            code = module.main() if name == "sdd" else module.main(sys.argv[1:], **given)
        except SystemExit as ended:
            code = ended.code
    return Ended(code or 0, out.getvalue(), err.getvalue())


def forget_config_files(known):
    """Removes config files from the modules, but for those ``known`` before: another file would be added to them."""
    for module in set(sys.modules) - known:
        if module.endswith("_config") and "." not in module:
            del sys.modules[module]


@contextlib.contextmanager
def _flags_kept():
    """absl keeps flags, verbosity and log handler for the whole process: they are put back."""
    app.define_help_flags()
    modules = set(sys.modules)
    handler, verbosity, before = logging.get_absl_handler(), logging.get_verbosity(), set(flags.FLAGS)
    filters, parsed = list(handler.filters), flags.FLAGS.is_parsed()
    with mock.patch.object(app.logging, "use_absl_handler", lambda: False):
        try:
            yield
        finally:
            for flag in set(flags.FLAGS) - before:
                if flags.FLAGS.find_module_defining_flag(flag, "").startswith(("sdd_jax", "ml_collections", "absl")):
                    delattr(flags.FLAGS, flag)
            if not parsed:
                flags.FLAGS.unparse_flags()
            forget_config_files(modules)
            handler.filters[:] = filters
            logging.set_verbosity(verbosity)
