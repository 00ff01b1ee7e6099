"""Lets the traces of one process share their networks: a pair's rows differ in their losses, not in their networks."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from sdd_jax.models import Classifier

METHODS = ("apply", "init", "init_with_output")


def share_networks() -> None:
    """From now on this process traces each network once for each way in which it is called.

    JAX remembers what it traced of a jitted function, and its derivative. So these methods become jitted functions, one
    for each network and its keywords. For processes that only trace: run by itself such a function would compute the
    outputs that nobody reads as well.
    """
    for name in METHODS:
        setattr(Classifier, name, _shared(getattr(Classifier, name)))


def _shared(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.cache
    def jitted(network: Classifier, options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
        return jax.jit(lambda arguments, arrays: method(network, *arguments, **arrays, **dict(options)))

    @functools.wraps(method)
    def call(network: Classifier, *arguments: Any, **keywords: Any) -> Any:
        arrays = {name: value for name, value in keywords.items() if isinstance(value, dict)}  # such as rngs
        options = {name: value for name, value in keywords.items() if name not in arrays}
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        return jitted(network, tuple(sorted(options.items())))(arguments, arrays)

    return call
