"""Batch normalisations in evaluation, folded into the convolutions before them.

With its running statistics a batch normalisation is affine, y = factor * x + shift with
factor = scale / sqrt(var + epsilon) and shift = bias - factor * mean, and a convolution is linear in
its kernel. A convolution with the kernel factor * kernel and the shift added gives the same:
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018),
section 3.2. The network is not defined a second time: which convolutions and normalisations belong
together is read from one trace of it, and a folded normalisation is intercepted when it is called.
"""

from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Var

from sdd_jax.models.convolution import convolve
from sdd_jax.models.layers import EPSILON, BatchNorm

Path = tuple[str, ...]  # of a module, as in its variables


class Folded(NamedTuple):
    """A model and its folded pairs (convolution, batch normalisation); it serves where only `apply` is asked for."""

    model: Any
    pairs: tuple[tuple[Path, Path], ...]

    def apply(self, variables: Any, images: jax.Array, *, train: bool, **options: Any) -> Any:
        """`model.apply` in evaluation, of the variables that `fold` gave: a folded normalisation adds its shift only.

        It does so in at least float32, as a normalisation computes, whatever the model computes in.
        """
        if train:
            raise ValueError("a folded model has no training mode: train the model that was folded")
        flat: dict[Path, Any] = flatten_dict(variables)
        shifts = {norm: flat["params", *norm, "bias"] for _, norm in self.pairs}

        def add_shift(next_fun, args, kwargs, context):
            module = context.module
            shift = shifts.get(module.path)
            if shift is None or module.get_variable("params", "bias") is not shift:  # or is another network's, within
                return next_fun(*args, **kwargs)
            return (args[0].astype(shift.dtype) + shift).astype(module.dtype)

        with nn.intercept_methods(add_shift):
            return self.model.apply(variables, images, train=False, **options)


def fold(model: Any, variables: Any, images: Any) -> tuple[Folded, dict[str, Any]]:
    """The folded model and its variables: the same outputs in evaluation, up to rounding.

    The variables keep their structure, shapes and dtypes, and a folded normalisation is left with
    mean 0, factor 1 and the shift as its bias, so that they mean the same to `model.apply`, which
    gains nothing from them. With bfloat16 compute the float32 kernel is folded, and rounded
    afterwards.

    Args:
      model: a Linen module that is called as `model(images, train=...)`.
      variables: its variables; `params` and `batch_stats` are nested dictionaries.
      images: [B,H,W,C], or a `jax.ShapeDtypeStruct`: only the shape and dtype are read.
    """
    pairs = _find_pairs(model, flatten_dict(variables), images)
    return Folded(model, pairs), jax.jit(partial(_fold_pairs, pairs))(variables)


def _fold_pairs(pairs: tuple[tuple[Path, Path], ...], variables: Any) -> dict[str, Any]:
    flat: dict[Path, Any] = flatten_dict(variables, keep_empty_nodes=True)
    for conv, norm in pairs:
        scale, bias = ("params", *norm, "scale"), ("params", *norm, "bias")  # [features]
        mean, var = ("batch_stats", *norm, "mean"), ("batch_stats", *norm, "var")  # [features]
        factor = flat[scale] * jax.lax.rsqrt(flat[var] + EPSILON)
        for key in _keys(flat, conv):  # kernel [..., features], bias [features]
            flat[key] = flat[key] * factor
        flat[bias] = flat[bias] - flat[mean] * factor
        flat[mean], flat[scale] = jnp.zeros_like(flat[mean]), jnp.ones_like(flat[scale])
        flat[var] = jnp.full_like(flat[var], 1 - EPSILON)
    return unflatten_dict(flat)


def _find_pairs(model: Any, flat: dict[Path, Any], images: Any) -> tuple[tuple[Path, Path], ...]:
    """The pairs that may be folded, in the order of the calls.

    Convolutions' outputs and normalisations' inputs are marked in the program that the model traces
    to. A pair is an output that is an input, where this value and each variable of the two modules
    have no other use in the whole program: that rules out a convolution whose output is read
    elsewhere, a module called twice, and weights that are shared. What is inside of a transformed
    part (`nn.remat`, `nn.scan`, `nn.jit`) is not looked at, and stays as it is.
    """
    marks: dict[str, tuple[type, Path]] = {}

    def forward(flat, images):
        def mark(next_fun, args, kwargs, context):
            module = context.module
            if context.method_name != "__call__" or len(args) != 1 or not _is_foldable(module, flat):
                return next_fun(*args, **kwargs)
            name = f"{__name__}:{'/'.join(module.path)}"
            marks[name] = type(module), module.path
            if type(module) is nn.Conv:
                return checkpoint_name(next_fun(*args, **kwargs), name)
            return next_fun(checkpoint_name(args[0], name), **kwargs)

        with nn.intercept_methods(mark):
            return model.apply(unflatten_dict(flat), images, train=False)

    program = jax.make_jaxpr(forward)(flat, images).jaxpr
    operands = [atom for eqn in program.eqns for atom in eqn.invars] + list(program.outvars)
    uses = Counter(atom for atom in operands if isinstance(atom, Var))
    leaves, tree = jax.tree.flatten(flat)
    inputs = jax.tree.unflatten(tree, program.invars[: len(leaves)])  # the images come last

    pairs, outputs = [], {}
    for eqn in program.eqns:
        if eqn.primitive.name != "name" or eqn.params["name"] not in marks:
            continue
        kind, path = marks[eqn.params["name"]]
        if kind is nn.Conv:
            outputs[eqn.outvars[0]] = path
        elif eqn.invars[0] in outputs:
            conv = outputs[eqn.invars[0]]
            parameters = [inputs[key] for module in (conv, path) for key in _keys(flat, module)]
            one_dtype = len({parameter.aval.dtype for parameter in parameters}) == 1  # no kernel below float32
            if one_dtype and all(uses[value] == 1 for value in (eqn.invars[0], *parameters)):
                pairs.append((conv, path))
    return tuple(pairs)


def _is_foldable(module: nn.Module, flat: dict[Path, jax.Array]) -> bool:
    """Whether `module` is a `BatchNorm`, or a convolution linear in its kernel, on its own variables in `flat`."""
    if type(module) is nn.Conv:
        linear = module.conv_general_dilated in (None, convolve) and module.conv_general_dilated_cls is None
        known = linear and module.promote_dtype is promote_dtype
    else:
        known = type(module) is BatchNorm
    keys = _keys(flat, module.path) if known else []
    own = (isinstance(flat[key], jax.Array) and module.get_variable(key[0], key[-1]) is flat[key] for key in keys)
    return bool(keys) and all(own)


def _keys(flat: dict[Path, Any], path: Path) -> list[Path]:
    """The variables in `flat`, {(collection, *path, name): array}, of the module at `path`."""
    return [key for key in flat if key[1:-1] == path]
