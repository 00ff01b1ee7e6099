"""What the commands here share: a user's mistake is one line and exit code 2, and tables in Markdown."""

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import jax


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Prints ``message`` and ends with 2."""
        refuse(self.prog.removeprefix("python -m "), message)


def refuse(program: str, message: str, code: int = 2) -> NoReturn:
    """Ends with ``code`` after one line."""
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def guarded(program: str) -> Iterator[None]:
    """For the body of a command: what the user named wrongly ends it with one line and 2, a disk that fails with 1."""
    try:
        yield
    except (ValueError, ImportError) as error:
        refuse(program, str(error))
    except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        refuse(program, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except OSError as error:
        refuse(program, str(error), 1)


def hold_no_device() -> None:
    """Keeps JAX of this process, which only checks configs, off the accelerators; processes started later have them."""
    jax.config.update("jax_platforms", "cpu")


def integers(text: str) -> tuple[int, ...]:
    """``"0,1,2"`` as seeds: numbers that differ, are not negative and below 2^32; for ``type=``."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected integers such as 0,1,2, got {text!r}") from None
    if len(set(numbers)) != len(numbers) or min(numbers) < 0 or max(numbers) >= 2**32:
        raise argparse.ArgumentTypeError(
            f"expected integers that differ, are not negative and below 2^32, got {text!r}"
        )
    return numbers


def positive(text: str) -> int:
    """An integer of at least 1; for ``type=``."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a table in Markdown; cells are put as they print."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]
