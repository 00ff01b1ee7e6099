"""A network as an ONNX file (opset 18): the program that JAX traces, translated operation by operation.

What depends on weights alone is computed here, so that only what depends on the images is left. ONNX convolves and
pools with channels first, JAX's programs with channels last: transpositions stand around these operations, which
runtimes move and cancel. Where a program has a form of its own for CPUs, the general one is taken.
"""

import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from sdd_jax import __version__
from sdd_jax.files import write_new
from sdd_jax.models import create_model
from sdd_jax.models.layers import fold
from sdd_jax.serving.network import Served

try:
    import onnx
    from onnx import helper, numpy_helper
except ImportError as error:
    raise ImportError("ONNX files need onnx: pip install -e '.[export]'") from error

_ELEMENTWISE = {
    "abs": "Abs", "add": "Add", "add_any": "Add", "and": "And", "ceil": "Ceil", "cos": "Cos", "div": "Div",
    "eq": "Equal", "erf": "Erf", "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater",
    "le": "LessOrEqual", "log": "Log", "logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul",
    "neg": "Neg", "not": "Not", "or": "Or", "pow": "Pow", "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt", "sub": "Sub",
    "tanh": "Tanh",
}  # fmt: skip
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}
_SAME = ("copy", "copy_p", "name", "optimization_barrier", "sharding_constraint", "stop_gradient")
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where operations that hold a program keep it


def write_onnx(served: Served, path: Path) -> int:
    """Writes ``path`` and returns the number of its nodes.

    Normalisation and weights are in it, ``Served.metadata`` is under metadata_props. It computes in float32 whatever
    the run did: not every runtime convolves in other types. ``ValueError`` at an operation that has no translation.
    """
    network = served.network
    model: Any = create_model(network.name, network.num_classes, network.stem, jnp.float32)
    variables = fold(model, served.variables, jax.ShapeDtypeStruct((1, *served.info.image_shape), jnp.float32))
    plain = served._replace(network=network._replace(model=model, dtype="float32"))
    made = helper.make_model(
        make_graph(plain.logits, jax.device_get(variables), served.abstract_images()),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,  # as old as opset 18: a newer one would only keep older runtimes from reading it
        producer_name="sdd_jax",
        producer_version=__version__,
    )
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in served.metadata().items()}
    helper.set_model_props(made, texts)
    onnx.checker.check_model(made, full_check=True)
    write_new({path: made.SerializeToString()})
    return len(made.graph.node)


def make_graph(function: Callable[..., jax.Array], variables: Any, images: jax.ShapeDtypeStruct) -> onnx.GraphProto:
    """The graph of ``function(variables, images)`` from "images" to "logits"; it holds the arrays of ``variables``."""
    closed = jax.make_jaxpr(function)(variables, images)
    graph = _Graph(images.shape[0])
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        graph.weights.append((np.asarray(leaf), jax.tree_util.keystr(path, simple=True, separator="/")))
    [result] = graph.run(closed, [*(weight for weight, _ in graph.weights), "images"])
    graph.add("Identity", [result], output="logits")

    nodes, used = [], {"logits"}  # what the logits depend on
    for node in reversed(graph.nodes):
        if used & set(node.output):
            nodes.append(node)
            used |= set(node.input)

    def describe(name, aval):
        shape = [size if isinstance(size, int) else "batch" for size in aval.shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype)), shape)

    return helper.make_graph(
        nodes[::-1],
        "network",
        [describe("images", images)],
        [describe("logits", closed.out_avals[0])],
        [numpy_helper.from_array(array, name) for name, array in graph.constants.items() if name in used],
    )


class _Graph:
    """The nodes so far. A value is a NumPy array where it is known, else the name of a node's output."""

    def __init__(self, batch: Any):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.weights: list[tuple[np.ndarray, str]] = []  # arrays that have a name
        self._batch = batch
        self._count = 0

    def add(self, kind: str, inputs: Sequence[Any], *, parts: int = 0, output: str | None = None, **attributes) -> Any:
        """A node; the name of its output, or the names of its ``parts``."""
        self._count += 1
        output = output or f"{kind.lower()}_{self._count}"
        outputs = [f"{output}_{part}" for part in range(parts)] or [output]
        self.nodes.append(helper.make_node(kind, [self._named(value) for value in inputs], outputs, **attributes))
        return outputs if parts else output

    def transpose(self, value: Any, order: Sequence[int]) -> Any:
        """``value`` with its axes in this order; a weight keeps its name."""
        if isinstance(value, str):
            return self.add("Transpose", [value], perm=[int(axis) for axis in order])
        transposed = np.ascontiguousarray(value.transpose(order))
        self.weights += [(transposed, name) for weight, name in self.weights if weight is value]
        return transposed

    def reshape(self, value: Any, sizes: Sequence[Any]) -> str:
        """``value`` in a shape of which one size may be symbolic."""
        if sum(not isinstance(size, int) for size in sizes) > 1:
            raise ValueError(f"ONNX: the shape {tuple(sizes)} has the batch twice, which has no translation here")
        return self.add("Reshape", [value, _integers(size if isinstance(size, int) else -1 for size in sizes)])

    def shape(self, sizes: Sequence[Any]) -> Any:
        """A shape as an operation takes it; a batch in it is read from the images."""
        if all(isinstance(size, int) for size in sizes):
            return _integers(sizes)
        if any(not isinstance(size, int) and size != self._batch for size in sizes):
            raise ValueError(f"ONNX: the shape {tuple(sizes)} has more than the batch {self._batch}: no translation")
        pieces = [
            _integers([size]) if isinstance(size, int) else self.add("Shape", ["images"], start=0, end=1)
            for size in sizes
        ]
        return self.add("Concat", pieces, axis=0)

    def run(self, closed: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
        """Translates a program; its results."""
        values = dict(zip(closed.jaxpr.constvars, map(_known, closed.consts), strict=True))
        values |= dict(zip(closed.jaxpr.invars, arguments, strict=True))

        def read(atom):
            if isinstance(atom, Literal):
                return np.asarray(atom.val, getattr(atom.aval, "dtype", None))
            return values[atom]

        for eqn in closed.jaxpr.eqns:
            results = self._equation(eqn, [read(atom) for atom in eqn.invars])
            values |= dict(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in closed.jaxpr.outvars]

    def _equation(self, eqn: Any, inputs: list[Any]) -> list[Any]:
        kind, params = eqn.primitive.name, eqn.params
        if kind == "platform_index":
            return [np.asarray(params["platforms"].index(None))]  # the branch for every platform names none
        if kind == "cond" and not isinstance(inputs[0], str):
            return self.run(params["branches"][int(inputs[0])], inputs[1:])
        inner = next((params[name] for name in _INNER if name in params), None)
        if inner is not None and kind not in ("scan", "while"):
            return self.run(inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ()), inputs)
        static = all(isinstance(size, int) for out in eqn.outvars for size in out.aval.shape)
        if static and not any(isinstance(value, str) for value in inputs):
            with jax.ensure_compile_time_eval():
                results = eqn.primitive.bind(*inputs, **params)
            return [_known(result) for result in (results if eqn.primitive.multiple_results else [results])]
        if kind in _ELEMENTWISE:
            return [self.add(_ELEMENTWISE[kind], inputs)]
        if kind in _REDUCTIONS:
            return [self.add(_REDUCTIONS[kind], [inputs[0], _integers(params["axes"])], keepdims=0)]
        if kind in _SAME:
            return inputs
        if kind not in _OPERATIONS:
            raise ValueError(f"ONNX: the network uses JAX's {kind}, which has no translation here")
        results = _OPERATIONS[kind](self, eqn, *inputs)
        return results if eqn.primitive.multiple_results else [results]

    def _named(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        name = next((name for weight, name in self.weights if weight is value), None)
        if name is None:
            self._count += 1
            name = f"constant_{self._count}"
        self.constants.setdefault(name, value)
        return name


def _known(value: Any) -> Any:
    """A NumPy array, but for random keys, which only JAX holds: networks without chance carry some and read none."""
    return value if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)


def _integers(values: Any) -> np.ndarray:
    return np.asarray(list(values), np.int64)


def _broadcast(graph: _Graph, eqn: Any, value: Any, *_: Any) -> str:
    shape, placed = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    source = eqn.invars[0].aval.shape
    spread = [source[placed.index(axis)] if axis in placed else 1 for axis in range(len(shape))]
    value = graph.reshape(value, spread) if len(spread) != len(source) else value
    if list(spread) == list(shape):
        return value
    wider = [1 if size == have else size for size, have in zip(shape, spread, strict=True)]  # 1 leaves an axis as it is
    return graph.add("Expand", [value, graph.shape(wider)])


def _slice(graph: _Graph, eqn: Any, value: str) -> str:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    whole = [(0, size, 1) for size in eqn.invars[0].aval.shape]
    cut = [axis for axis, bounds in enumerate(zip(starts, limits, strides, strict=True)) if bounds != whole[axis]]
    inputs = [_integers(values[axis] for axis in cut) for values in (starts, limits, range(len(whole)), strides)]
    return graph.add("Slice", [value, *inputs]) if cut else value


def _pad(graph: _Graph, eqn: Any, value: str, filling: Any) -> str:
    config = eqn.params["padding_config"]
    if any(interior or low < 0 or high < 0 for low, high, interior in config):
        raise ValueError("ONNX: padding that is negative or between values has no translation here")
    return graph.add("Pad", [value, _integers(_pads(config)), filling])


def _pads(padding: Sequence[Sequence[int]]) -> list[int]:
    """Padding of axes as ONNX takes it: below, then above."""
    return [axis[0] for axis in padding] + [axis[1] for axis in padding]


def _dot(graph: _Graph, eqn: Any, left: Any, right: Any) -> str:
    (left_sums, right_sums), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    ranks = [len(atom.aval.shape) for atom in eqn.invars]
    if not left_batch and tuple(left_sums) == (ranks[0] - 1,) and tuple(right_sums) == (0,) and ranks[1] == 2:
        return graph.add("MatMul", [left, right])
    letters = string.ascii_lowercase[: sum(ranks)]
    first, second = letters[: ranks[0]], list(letters[ranks[0] :])
    for axis, other in zip((*left_batch, *left_sums), (*right_batch, *right_sums), strict=True):
        second[other] = first[axis]
    batch = "".join(first[axis] for axis in left_batch)
    free = "".join(name for name in (*first, *second) if (name in first) != (name in second))
    return graph.add("Einsum", [left, right], equation=f"{first},{''.join(second)}->{batch}{free}")


def _convolution(graph: _Graph, eqn: Any, images: str, kernel: Any) -> str:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    if len(numbers.lhs_spec) != 4 or set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise ValueError("ONNX: a convolution that is transposed, or not over two axes, has no translation here")
    convolved = graph.add(
        "Conv",
        [graph.transpose(images, numbers.lhs_spec), graph.transpose(kernel, numbers.rhs_spec)],
        strides=list(params["window_strides"]),
        pads=_pads(params["padding"]),
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return graph.transpose(convolved, np.argsort(numbers.out_spec).tolist())


def _window(graph: _Graph, eqn: Any, images: str, kind: str, **attributes: Any) -> str:
    params, window = eqn.params, eqn.params["window_dimensions"]
    dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
    if len(window) != 4 or (window[0], window[3]) != (1, 1) or dilated:
        raise ValueError(f"ONNX: a window {window} over other axes than height and width has no translation here")
    pooled = graph.add(
        kind,
        [graph.transpose(images, (0, 3, 1, 2))],  # channels first
        kernel_shape=list(window[1:3]),
        strides=list(params["window_strides"][1:3]),
        pads=_pads(params["padding"][1:3]),
        **attributes,
    )
    return graph.transpose(pooled, (0, 2, 3, 1))  # channels last


def _window_sum(graph: _Graph, eqn: Any, images: str) -> str:
    mean = _window(graph, eqn, images, "AveragePool", count_include_pad=1)
    return graph.add("Mul", [mean, np.asarray(np.prod(eqn.params["window_dimensions"]), eqn.invars[0].aval.dtype)])


def _select(graph: _Graph, eqn: Any, which: Any, *cases: Any) -> str:
    if len(cases) != 2 or eqn.invars[0].aval.dtype != bool:
        raise ValueError("ONNX: a choice among more than two has no translation here")
    return graph.add("Where", [which, cases[1], cases[0]])


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda graph, eqn, *values: graph.add("Concat", values, axis=eqn.params["dimension"]),
    "conv_general_dilated": _convolution,
    "convert_element_type": lambda graph, eqn, value, *_: graph.add(
        "Cast", [value], to=helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params["new_dtype"]))
    ),
    "dot_general": _dot,
    "erfc": lambda graph, eqn, value: graph.add(
        "Sub", [np.asarray(1, eqn.invars[0].aval.dtype), graph.add("Erf", [value])]
    ),
    "integer_pow": lambda graph, eqn, value: graph.add(
        "Pow", [value, np.asarray(eqn.params["y"], eqn.invars[0].aval.dtype)]
    ),
    "pad": _pad,
    "reduce_window_max": lambda graph, eqn, images: _window(graph, eqn, images, "MaxPool"),
    "reduce_window_sum": _window_sum,
    "reshape": lambda graph, eqn, value, *_: graph.reshape(value, eqn.outvars[0].aval.shape),
    "rsqrt": lambda graph, eqn, value: graph.add("Reciprocal", [graph.add("Sqrt", [value])]),
    "select_n": _select,
    "slice": _slice,
    "split": lambda graph, eqn, value: graph.add(
        "Split", [value, _integers(eqn.params["sizes"])], parts=len(eqn.params["sizes"]), axis=eqn.params["axis"]
    ),
    "square": lambda graph, eqn, value: graph.add("Mul", [value, value]),
    "squeeze": lambda graph, eqn, value: graph.reshape(value, eqn.outvars[0].aval.shape),
    "transpose": lambda graph, eqn, value: graph.transpose(value, eqn.params["permutation"]),
}
