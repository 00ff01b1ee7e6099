"""Networks that a program gives as objects: modules of Linen or NNX, pairs of functions."""

import dataclasses
import dis
import hashlib
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType, new_class
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sdd_jax.models.classifier import Classifier, FunctionNetwork, LogitMapClassifier, first_rngs
from sdd_jax.models.layers import torch_affine_init
from sdd_jax.own import give

NETWORK = "network"  # where LogitMapClassifier has its network's variables
PLAIN = (str, int, float, bool, bytes, type(None), np.dtype)
FLAXS = {name for base in (nn.Module, nnx.Module) for name in vars(new_class("Bare", (base,)))}  # what every class has


class Given(NamedTuple):
    """A network and the name that ``create_model`` knows it by in this process."""

    name: str
    model: Any  # None for a name


class NnxNetwork(nn.Module):
    """An NNX module as a Linen module that begins with the values which that module has."""

    merge: Callable[..., Any]  # (parameters, statistics), each name -> array, -> the module
    split: Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]  # back
    first: Callable[[], tuple[dict[str, Any], dict[str, Any]]]

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        parameters, statistics = self.first()
        here = {name: self.param(name, lambda key, value=value: value) for name, value in parameters.items()}
        kept = {
            name: self.variable("batch_stats", name, lambda value=value: value) for name, value in statistics.items()
        }
        module = self.merge(here, {name: variable.value for name, variable in kept.items()})
        outputs = module(images, train=train)
        if train and not self.is_initializing():
            for name, value in self.split(module)[1].items():
                kept[name].value = value
        return outputs


def given_network(given: Any, image_shape: tuple[int, ...], num_classes: int) -> Given:
    """The network that ``given`` is, named; of (network, variables) the first.

    An object that can be described has the same name in every process; any other one's name has a number where an
    object before it had the name. ``ValueError`` if it is no network, or gives no map for images ``[B, *image_shape]``.
    """
    if has_variables(given):
        given = given[0]
    if isinstance(given, str):
        return Given(given, None)
    if inspect.isfunction(given):
        return Given(_named(given.__name__, given, given), None)
    if isinstance(given, Classifier | LogitMapClassifier):
        model = given
    elif _is_pair(given):
        network = FunctionNetwork(*given)
        model = _under_head(network, type(network), image_shape, num_classes)
    elif isinstance(given, nnx.Module):
        model = _under_head(_from_nnx(given), type(given), image_shape, num_classes)
    elif isinstance(given, nn.Module):
        model = _under_head(given, type(given), image_shape, num_classes)
    else:
        kinds = "a name, MODULE:FUNCTION, a Linen or NNX module, or a pair of functions (init, apply)"
        raise ValueError(f"a network must be {kinds}, got {type(given).__name__}")
    if model.num_classes != num_classes:
        raise ValueError(f"the network has {model.num_classes} classes, the data have {num_classes}")

    def make(num_classes, stem, dtype):
        del num_classes, stem
        if dtype != (own := getattr(model, "dtype", jnp.float32)):
            raise ValueError(f"a network given as an object computes in its own dtype, {own}; asked for {dtype.name}")
        return model

    return Given(_named("functions" if _is_pair(given) else type(given).__name__, given, make), model)


def given_variables(given: Any, image_shape: tuple[int, ...], num_classes: int) -> dict[str, Any] | None:
    """The variables of (network, variables), as the network of ``given_network`` has them; None of a network alone.

    An NNX module has its own. ``ValueError`` for those of features alone: a head is missing.
    """
    nnx_module = isinstance(given, nnx.Module)
    if not nnx_module and not has_variables(given):
        return None
    network, variables = (given, None) if nnx_module else given
    if isinstance(network, Classifier | LogitMapClassifier | str) or inspect.isfunction(network):
        return dict(variables or {})
    model = given_network(network, image_shape, num_classes).model
    if isinstance(model, Classifier):
        raise ValueError("the network gives features and has no head: give a Classifier and its variables")
    if nnx_module:
        return model.init(first_rngs(jax.random.key(0)), jnp.zeros((1, *image_shape)), train=False)
    if _is_pair(network):
        return {"params": {NETWORK: {"function": variables}}}
    return {collection: {NETWORK: leaves} for collection, leaves in (variables or {}).items()}


def has_variables(given: Any) -> bool:
    """Whether it is (network, variables)."""
    return isinstance(given, tuple | list) and len(given) == 2 and isinstance(given[1], Mapping)


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple | list) and len(given) == 2 and all(map(callable, given))


JITTED = type(jax.jit(lambda: None))
UNKNOWN = "?!"  # in a description: there is more to it
_undescribed: dict[str, Any] = {}  # name -> object, which stays alive, so that another cannot be taken for it


def _named(kind: str, given: Any, make: Callable[..., Any]) -> str:
    """The name that ``given`` has from now on in this process; ``make`` makes its network."""
    described = _describe(given)
    digest = hashlib.sha256(described.encode()).hexdigest()[:8]
    name, number = f"{kind}_{digest}", 1
    if UNKNOWN in described:
        while not _same(_undescribed.setdefault(name, given), given):
            name, number = f"{kind}_{digest}_{number + 1}", number + 1
    return give(name, make)


def _same(one: Any, other: Any) -> bool:
    """Whether two are one object, or pairs of such; each look at a method makes a new object of it."""
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one is other or (isinstance(one, MethodType) and one == other)


def _describe(value: Any) -> str:
    """A text that two objects have only if they compute the same, or with ``UNKNOWN`` in it."""
    if isinstance(value, PLAIN):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        return f"array {array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, tuple | list):
        return _joined(type(value).__name__, list(value))
    if isinstance(value, Mapping):
        return _joined("mapping", [item for pair in value.items() for item in pair])
    if isinstance(value, set | frozenset):
        return f"set {sorted(map(_describe, value))}"
    if isinstance(value, CodeType):
        return _joined("code", [value.co_code, value.co_names, value.co_varnames, value.co_consts])
    if isinstance(value, nnx.Module):
        graph, state = nnx.split(value)
        text = re.sub(r" at 0x[0-9a-f]+", "", repr(graph))
        unknown = UNKNOWN if re.search("<lambda>|<locals>| object>", text) else ""
        arrays = [leaf for leaf in jax.tree.leaves(state) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
        nodes = [node for _, node in nnx.iter_graph(value) if isinstance(node, nnx.Module)]
        # The graph has values of attributes, but names of functions alone.
        own = (nnx.Module, nnx.Variable)
        held = jax.tree.leaves([vars(node) for node in nodes], is_leaf=lambda one: isinstance(one, own))
        code = [one for one in held if callable(one) or dataclasses.is_dataclass(one)]
        code = [one for one in code if not isinstance(one, own)]
        return _joined(unknown + text, [*arrays, *dict.fromkeys(map(type, nodes)), *code])
    if isinstance(value, ModuleType):
        return f"module {value.__name__}"
    name = f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '')}"
    if isinstance(value, nn.Module):
        fields = [field.name for field in dataclasses.fields(value) if field.name not in ("parent", "name")]
        return _joined("module of", [type(value), *(getattr(value, one) for one in fields)])
    if isinstance(value, partial):
        return _joined("partial", [value.func, value.args, dict(value.keywords)])
    if isinstance(value, MethodType):
        return _joined("method of", [value.__func__, value.__self__])
    if _found(name) is value:
        return name
    if isinstance(value, type | FunctionType):  # of a script or a notebook, where it may be defined again
        return f"again {name}" if _is_open(value) else _describe_code(name, value)
    if isinstance(value, JITTED):
        return _joined("jitted", [inspect.unwrap(value)])
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        if getattr(value, "__dict__", {}).keys() <= set(names):
            return _joined("dataclass", [type(value), *(getattr(value, name) for name in names)])
    kind, held = type(value), getattr(value, "__dict__", None)
    if kind.__bases__ == (object,) and held is not None and not hasattr(kind, "__slots__") and not _is_open(value):
        with _opened(value):
            return _joined("object of", [kind, held] if held else [kind])
    return f"{UNKNOWN} {kind.__module__}:{kind.__qualname__}"


_open: list[Any] = []  # what is being described, and may be met again inside of itself


@contextmanager
def _opened(value: Any) -> Iterator[None]:
    _open.append(value)
    try:
        yield
    finally:
        _open.pop()


def _is_open(value: Any) -> bool:
    return any(one is value for one in _open)  # an object's own == may be anything


def _describe_code(name: str, value: Any) -> str:
    """A class by its bases and what it has itself, a function by its code and what that reads from outside."""
    with _opened(value):
        if isinstance(value, type):
            return _joined(name, [*value.__bases__, *_members(value)])
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        read = [value.__globals__[one] for one in _globals_of(value.__code__) if one in value.__globals__]
        return _joined(name, [value.__code__, value.__defaults__, value.__kwdefaults__, *cells, *read])


def _members(kind: type) -> list[Any]:
    """What a class has itself: its functions, those of its properties, and its values with their names."""
    members: list[Any] = []
    for name, one in sorted(vars(kind).items()):
        one = getattr(one, "wrapped", one)  # Flax's descriptor around a property
        parts = (one.fget, one.fset) if isinstance(one, property) else (getattr(one, "__func__", one),)
        for part in parts:
            code = inspect.unwrap(part) if callable(part) else part
            if isinstance(code, FunctionType) and code.__module__ == kind.__module__:
                members.append(code)
            elif not name.startswith("__") and name not in FLAXS:
                members += [name, part]
    return members


def _globals_of(code: CodeType) -> list[str]:
    """The global names that ``code`` and the functions inside of it read."""
    inner = [name for one in code.co_consts if isinstance(one, CodeType) for name in _globals_of(one)]
    return sorted({*inner, *(one.argval for one in dis.get_instructions(code) if one.opname == "LOAD_GLOBAL")})


def _joined(kind: str, parts: list[Any]) -> str:
    return f"{kind} ({', '.join(map(_describe, parts))})"


def _found(name: str) -> Any:
    """What a module that is no script has under MODULE:NAME, or None."""
    module, _, place = name.partition(":")
    if not module or module == "__main__" or "<" in place:
        return None
    try:
        found = importlib.import_module(module)
        for part in place.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found


def _under_head(network: nn.Module, given: type, image_shape: tuple[int, ...], num_classes: int) -> Any:
    """The network as it is if it gives a logit map, under a new head if it gives features; ``given`` is its class."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    kind, parameters = given.__name__, inspect.signature(given.__call__).parameters.values()
    if not any(one.name == "train" or one.kind == one.VAR_KEYWORD for one in parameters):
        raise ValueError(f"{kind} must be called as module(images, train=...): its __call__ takes no train")
    outputs, _ = jax.eval_shape(partial(network.init_with_output, train=False), first_rngs(jax.random.key(0)), images)
    shape = getattr(outputs, "shape", None)
    if shape is not None and len(shape) == 2:
        raise ValueError(
            f"{kind} gives {list(shape)}, one prediction for an image, and regions need logits or features at every "
            "location, [B, h, w, C]: leave out its pooling, and its head"
        )
    if shape is not None and len(shape) == 4 and shape[-1] == num_classes:
        return LogitMapClassifier(network, num_classes)
    return Classifier(network, num_classes, torch_affine_init)


def _from_nnx(module: nnx.Module) -> NnxNetwork:
    graph, *states = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    if others := [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(states[2])[0]]:
        raise ValueError(
            f"the NNX module has more than parameters and statistics ({', '.join(others)}): give a function that makes "
            "it by nnx.bridge.to_linen (docs/own_network.md)"
        )
    structures = [jax.tree.structure(state) for state in states]

    def named(state):
        room = {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
            name = re.sub(r"\W+", "_", jax.tree_util.keystr(path)).strip("_")
            while name in room:  # as of conv_1 and conv[1]
                name += "_"
            room[name] = leaf
        return room

    first = named(states[0]), named(states[1])

    def merge(*rooms):
        filled = [
            jax.tree.unflatten(structure, [*room.values()]) for structure, room in zip(structures, rooms, strict=False)
        ]
        return nnx.merge(graph, *filled, states[2])

    def split(found):
        _, parameters, statistics, _ = nnx.split(found, nnx.Param, nnx.BatchStat, ...)
        return named(parameters), named(statistics)

    return NnxNetwork(merge, split, lambda: first)
