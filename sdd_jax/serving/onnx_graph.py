"""The program that a network traces to, operation by operation, as an ONNX graph (opset 18).

What depends on weights alone is computed here, so that only what depends on the images is left. ONNX convolves and
pools channels first, JAX's programs channels last: transpositions stand around these operations, which runtimes move
and cancel. Where a program has a form of its own for CPUs, the general one is taken.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Literal
from onnx import helper, numpy_helper

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
_FIRST, _LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # channels, of a batch of images


def make_graph(function: Callable[..., jax.Array], variables: Any, images: jax.ShapeDtypeStruct) -> onnx.GraphProto:
    """The graph of ``function(variables, images)`` with one input, "images", and one output, "logits".

    Args:
      function: of a tree of arrays and images, to logits; the batch of ``images`` may be symbolic.
      variables: the tree, concrete: the graph holds it.
      images: shape and dtype.

    Raises:
      ValueError: names an operation that has no translation here.
    """
    closed = jax.make_jaxpr(function)(variables, images)
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    graph = _Graph(images.shape[0])
    inputs = [np.asarray(leaf) for _, leaf in leaves]
    for array, (path, _) in zip(inputs, leaves, strict=True):
        graph.call(array, jax.tree_util.keystr(path, simple=True, separator="/"))
    [result] = graph.run(closed, [*inputs, "images"])
    graph.add("Identity", [result], output="logits")
    nodes, used = _needed(graph.nodes)
    [logits] = closed.out_avals
    return helper.make_graph(
        nodes,
        "network",
        [_describe("images", images)],
        [_describe("logits", logits)],
        [tensor for name, tensor in graph.constants.items() if name in used],
    )


def _describe(name: str, aval: Any) -> onnx.ValueInfoProto:
    shape = [size if isinstance(size, int) else "batch" for size in aval.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype)), shape)


def _needed(nodes: Sequence[onnx.NodeProto]) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that "logits" depends on, in their order, and the names that they read."""
    kept, used = [], {"logits"}
    for node in reversed(nodes):
        if used & set(node.output):
            kept.append(node)
            used |= set(node.input)
    return kept[::-1], used


class _Graph:
    """Nodes so far. A value is a NumPy array where it is known, else the name of a node's output."""

    def __init__(self, batch: Any):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._called: dict[int, tuple[np.ndarray, str]] = {}  # by id, which stays an array's own while it is kept
        self._batch = batch
        self._count = 0

    def call(self, array: np.ndarray, name: str | None) -> np.ndarray:
        """Gives ``array`` a name in the graph."""
        if name is not None:
            self._called[id(array)] = array, name
        return array

    def called(self, array: np.ndarray) -> str | None:
        """The name of ``array``, if it was given one."""
        return self._called[id(array)][1] if id(array) in self._called else None

    def add(self, kind: str, inputs: Sequence[Any], *, output: str | None = None, **attributes: Any) -> str:
        """A node with one output, whose name is returned."""
        self._count += 1
        output = output or f"{kind.lower()}_{self._count}"
        self.nodes.append(helper.make_node(kind, [self._named(value) for value in inputs], [output], **attributes))
        return output

    def split(self, value: str, sizes: Sequence[int], axis: int) -> list[str]:
        """The parts of ``value``."""
        self._count += 1
        outputs = [f"split_{self._count}_{part}" for part in range(len(sizes))]
        inputs = [value, self._named(np.asarray(sizes, np.int64))]
        self.nodes.append(helper.make_node("Split", inputs, outputs, axis=axis))
        return outputs

    def shape(self, sizes: Sequence[Any]) -> Any:
        """A shape as an operation takes it; a batch in it is read from the images."""
        if all(isinstance(size, int) for size in sizes):
            return np.asarray(sizes, np.int64)
        pieces: list[Any] = []
        for size in sizes:
            if not isinstance(size, int) and size != self._batch:
                raise ValueError(f"ONNX: a shape with {size} in it, beside the batch {self._batch}, has no translation")
            pieces.append(np.asarray([size], np.int64) if isinstance(size, int) else self._images_batch())
        return self.add("Concat", pieces, axis=0)

    def run(self, closed: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
        """Translates a program; its results."""
        values = dict(zip(closed.jaxpr.constvars, map(_known, closed.consts), strict=True))
        values |= dict(zip(closed.jaxpr.invars, arguments, strict=True))

        def read(atom):
            return (
                np.asarray(atom.val, getattr(atom.aval, "dtype", None)) if isinstance(atom, Literal) else values[atom]
            )

        for eqn in closed.jaxpr.eqns:
            results = self._equation(eqn, [read(atom) for atom in eqn.invars])
            values |= dict(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in closed.jaxpr.outvars]

    def _equation(self, eqn: Any, inputs: list[Any]) -> list[Any]:
        kind = eqn.primitive.name
        if kind == "platform_index":
            return [np.asarray(_general(eqn.params["platforms"]))]
        if kind == "cond" and not isinstance(inputs[0], str):
            return self.run(eqn.params["branches"][int(inputs[0])], inputs[1:])
        inner = next((eqn.params[name] for name in _INNER if name in eqn.params), None)
        if inner is not None and kind not in ("scan", "while"):
            return self.run(inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ()), inputs)
        static = all(isinstance(size, int) for out in eqn.outvars for size in out.aval.shape)
        if static and not any(isinstance(value, str) for value in inputs):
            with jax.ensure_compile_time_eval():
                results = eqn.primitive.bind(*inputs, **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
            return [_known(result) for result in results]
        if kind in _ELEMENTWISE:
            return [self.add(_ELEMENTWISE[kind], inputs)]
        if kind in _REDUCTIONS:
            return [self.add(_REDUCTIONS[kind], [inputs[0], np.asarray(eqn.params["axes"], np.int64)], keepdims=0)]
        if kind in _SAME:
            return inputs
        if kind not in _OPERATIONS:
            raise ValueError(f"ONNX: the network uses JAX's {kind}, which has no translation here")
        results = _OPERATIONS[kind](self, eqn, *inputs)
        return results if eqn.primitive.multiple_results else [results]

    def _named(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        name = self.called(value)
        if name is None:
            self._count += 1
            name = f"constant_{self._count}"
        self.constants.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))
        return name

    def _images_batch(self) -> str:
        return self.add("Shape", ["images"], start=0, end=1)


def _known(value: Any) -> Any:
    """A NumPy array, but for random keys, which only JAX holds: networks without chance carry some and read none."""
    return value if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)


def _general(platforms: Sequence[Any]) -> int:
    """Which branch is the one for every platform: it names none."""
    return next(i for i, names in enumerate(platforms) if names is None)


def _broadcast(graph: _Graph, eqn: Any, value: Any, *_: Any) -> str:
    shape, placed = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    source = eqn.invars[0].aval.shape
    spread = [source[placed.index(axis)] if axis in placed else 1 for axis in range(len(shape))]
    value = _reshaped(graph, value, spread) if len(spread) != len(source) else value
    if list(spread) == list(shape):
        return value
    wider = [1 if size == have else size for size, have in zip(shape, spread, strict=True)]  # 1 leaves an axis as it is
    return graph.add("Expand", [value, graph.shape(wider)])


def _reshape(graph: _Graph, eqn: Any, value: str, *_: Any) -> str:
    return _reshaped(graph, value, eqn.outvars[0].aval.shape)


def _reshaped(graph: _Graph, value: Any, sizes: Sequence[Any]) -> str:
    symbolic = [size for size in sizes if not isinstance(size, int)]
    target = np.asarray([size if isinstance(size, int) else -1 for size in sizes], np.int64)
    return graph.add("Reshape", [value, target if len(symbolic) < 2 else graph.shape(sizes)])


def _slice(graph: _Graph, eqn: Any, value: str) -> str:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    sizes = eqn.invars[0].aval.shape
    cut = [axis for axis in range(len(sizes)) if (starts[axis], limits[axis], strides[axis]) != (0, sizes[axis], 1)]
    bounds = [np.asarray([values[axis] for axis in cut], np.int64) for values in (starts, limits)]
    steps = np.asarray([strides[axis] for axis in cut], np.int64)
    return graph.add("Slice", [value, *bounds, np.asarray(cut, np.int64), steps]) if cut else value


def _pad(graph: _Graph, eqn: Any, value: str, filling: Any) -> str:
    config = eqn.params["padding_config"]
    if any(interior or low < 0 or high < 0 for low, high, interior in config):
        raise ValueError("ONNX: padding that is negative or between values has no translation here")
    amounts = [low for low, _, _ in config] + [high for _, high, _ in config]
    return graph.add("Pad", [value, np.asarray(amounts, np.int64), filling])


def _dot(graph: _Graph, eqn: Any, left: Any, right: Any) -> str:
    (left_sums, right_sums), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    ranks = [len(atom.aval.shape) for atom in eqn.invars]
    plain = not left_batch and tuple(left_sums) == (ranks[0] - 1,) and tuple(right_sums) == (0,) and ranks[1] == 2
    if plain:
        return graph.add("MatMul", [left, right])
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names = [[""] * rank for rank in ranks]
    shared = [*zip(left_batch, right_batch, strict=True), *zip(left_sums, right_sums, strict=True)]
    for one, other in shared:
        names[0][one] = names[1][other] = next(letters)
    for side in names:
        side[:] = [name or next(letters) for name in side]
    free = [
        "".join(name for axis, name in enumerate(side) if axis not in {*batch, *sums})
        for side, batch, sums in zip(names, (left_batch, right_batch), (left_sums, right_sums), strict=True)
    ]
    result = "".join(names[0][axis] for axis in left_batch) + "".join(free)
    return graph.add("Einsum", [left, right], equation=f"{''.join(names[0])},{''.join(names[1])}->{result}")


def _convolution(graph: _Graph, eqn: Any, images: str, kernel: Any) -> str:
    params = eqn.params
    numbers = params["dimension_numbers"]
    if len(numbers.lhs_spec) != 4 or set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise ValueError("ONNX: a convolution that is transposed, or not over two axes, has no translation here")
    convolved = graph.add(
        "Conv",
        [_transposed(graph, images, numbers.lhs_spec), _transposed(graph, kernel, numbers.rhs_spec)],
        strides=list(params["window_strides"]),
        pads=[low for low, _ in params["padding"]] + [high for _, high in params["padding"]],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return _transposed(graph, convolved, np.argsort(numbers.out_spec).tolist())


def _transposed(graph: _Graph, value: Any, order: Sequence[int]) -> Any:
    if isinstance(value, str):
        return graph.add("Transpose", [value], perm=[int(axis) for axis in order])
    return graph.call(np.ascontiguousarray(value.transpose(order)), graph.called(value))


def _window(graph: _Graph, eqn: Any, images: str, kind: str, **attributes: Any) -> str:
    params = eqn.params
    window, padding = params["window_dimensions"], params["padding"]
    dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
    if len(window) != 4 or (window[0], window[3]) != (1, 1) or dilated:
        raise ValueError(f"ONNX: a window {window} over other axes than height and width has no translation here")
    pooled = graph.add(
        kind,
        [_transposed(graph, images, _FIRST)],
        kernel_shape=list(window[1:3]),
        strides=list(params["window_strides"][1:3]),
        pads=[low for low, _ in padding[1:3]] + [high for _, high in padding[1:3]],
        **attributes,
    )
    return _transposed(graph, pooled, _LAST)


def _window_sum(graph: _Graph, eqn: Any, images: str) -> str:
    mean = _window(graph, eqn, images, "AveragePool", count_include_pad=1)
    return graph.add("Mul", [mean, np.asarray(np.prod(eqn.params["window_dimensions"]), eqn.invars[0].aval.dtype)])


def _cast(graph: _Graph, eqn: Any, value: str, *_: Any) -> str:
    return graph.add("Cast", [value], to=helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params["new_dtype"])))


def _select(graph: _Graph, eqn: Any, which: Any, *cases: Any) -> str:
    if len(cases) != 2 or eqn.invars[0].aval.dtype != bool:
        raise ValueError("ONNX: a choice among more than two has no translation here")
    return graph.add("Where", [which, cases[1], cases[0]])


def _integer_pow(graph: _Graph, eqn: Any, value: str) -> str:
    return graph.add("Pow", [value, np.asarray(eqn.params["y"], eqn.invars[0].aval.dtype)])


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda graph, eqn, *values: graph.add("Concat", values, axis=eqn.params["dimension"]),
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "dot_general": _dot,
    "integer_pow": _integer_pow,
    "pad": _pad,
    "reduce_window_max": lambda graph, eqn, images: _window(graph, eqn, images, "MaxPool"),
    "reduce_window_sum": _window_sum,
    "reshape": _reshape,
    "rsqrt": lambda graph, eqn, value: graph.add("Reciprocal", [graph.add("Sqrt", [value])]),
    "select_n": _select,
    "slice": _slice,
    "split": lambda graph, eqn, value: graph.split(value, eqn.params["sizes"], eqn.params["axis"]),
    "square": lambda graph, eqn, value: graph.add("Mul", [value, value]),
    "squeeze": _reshape,
    "transpose": lambda graph, eqn, value: _transposed(graph, value, eqn.params["permutation"]),
}
