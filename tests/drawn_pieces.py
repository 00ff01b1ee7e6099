"""The pieces of drawn programs (tests/drawn_programs.py): each computes the same in JAX and in NumPy."""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

COLUMNS = (2, 3, 4, 7, 8, 10, 16, 33, 64, 100)


class Piece(NamedTuple):
    """`apply(lib, x, *arrays)` in JAX or NumPy, whichever `lib` is; `text` says what it is."""

    text: str
    apply: object
    arrays: tuple = ()


# The two libraries: what NumPy has under the same name is `xp`, the rest is written twice.


def jax_pool(x, size, stride, padding, *, largest):
    start, combine = (-jnp.inf, lax.max) if largest else (0.0, lax.add)
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    y = lax.reduce_window(x, np.asarray(start, x.dtype), combine, window, strides, padding)
    return y if largest else y / size**2


def jax_conv(x, kernel, stride, padding, dilation, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


JAX = SimpleNamespace(
    xp=jnp,
    conv=jax_conv,
    pool=jax_pool,
    relu=jax.nn.relu,
    largest=jnp.max,
    logsumexp=jax.nn.logsumexp,
    softmax=jax.nn.softmax,
    rows=lambda f, x: jax.vmap(f)(x),
    pick=lambda x, index: jnp.take_along_axis(x, index, axis=-1),
)


def taps(x, size, stride, padding, dilation, fill):
    """The array under each place of a window, in row-major order."""
    if padding == "SAME":
        total = [max((-(-n // stride) - 1) * stride + (size - 1) * dilation + 1 - n, 0) for n in x.shape[1:3]]
        x = np.pad(x, ((0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)), constant_values=fill)
    out = [(n - (size - 1) * dilation - 1) // stride + 1 for n in x.shape[1:3]]
    starts = [(i * dilation, j * dilation) for i in range(size) for j in range(size)]
    return [x[:, i::stride, j::stride][:, : out[0], : out[1]] for i, j in starts]


class Twin:
    """NumPy's side; it notes how near a value came to a kink."""

    xp = np

    def __init__(self):
        self.margin = np.inf

    def near(self, gaps):
        gaps = np.abs(gaps[gaps != 0])  # exact ties are ties in float32 too
        self.margin = min(self.margin, gaps.min(initial=np.inf))

    def near_ties(self, x, axis):
        if x.shape[axis] > 1:
            first, second = np.split(np.take(np.sort(x, axis), [-1, -2], axis), 2, axis)
            self.near((first - second)[np.isfinite(second)])

    def conv(self, x, kernel, stride, padding, dilation, groups):
        size, _, inside, outside = kernel.shape
        kernel = kernel.reshape(size**2, inside, groups, outside // groups).transpose(0, 2, 1, 3)
        parts = taps(x, size, stride, padding, dilation, 0.0)
        y = 0.0
        for part, matrix in zip(parts, kernel, strict=True):
            grouped = part.reshape(*part.shape[:3], groups, 1, inside)
            y = y + (grouped @ matrix)[..., 0, :]
        return y.reshape(*y.shape[:3], outside)

    def pool(self, x, size, stride, padding, *, largest):
        under = np.stack(taps(x, size, stride, padding, 1, -np.inf if largest else 0.0))
        if not largest:
            return under.mean(0)
        self.near_ties(under, 0)
        return under.max(0)

    def relu(self, x):
        self.near(x)
        return np.maximum(x, 0)

    def largest(self, x, axis, keepdims=False):
        self.near_ties(x, axis)
        return x.max(axis, keepdims=keepdims)

    def logsumexp(self, x, axis, keepdims=False):
        top = x.max(axis, keepdims=True)
        y = top + np.log(np.exp(x - top).sum(axis, keepdims=True))
        return y if keepdims else np.squeeze(y, axis)

    def softmax(self, x, axis):
        return np.exp(x - self.logsumexp(x, axis, keepdims=True))

    def rows(self, f, x):
        return np.stack([f(row) for row in x])

    def pick(self, x, index):
        return np.take_along_axis(x, index, axis=-1)


# What is drawn for arrays of any shape.

ELEMENTWISE = {
    "tanh": lambda lib, x: lib.xp.tanh(x),
    "sigmoid": lambda lib, x: 1 / (1 + lib.xp.exp(-x)),
    "silu": lambda lib, x: x / (1 + lib.xp.exp(-x)),
    "softplus": lambda lib, x: lib.xp.log1p(lib.xp.exp(-lib.xp.abs(x))) + (x + lib.xp.abs(x)) / 2,
    "relu": lambda lib, x: lib.relu(x),
    "relu6": lambda lib, x: 6 - lib.relu(6 - lib.relu(x)),
    "square": lambda lib, x: x * x * 0.5,
    "root": lambda lib, x: lib.xp.sqrt(x * x + 1e-2),
    "reciprocal": lambda lib, x: 1 / (1 + x * x),
    "gelu": lambda lib, x: 0.5 * x * (1 + lib.xp.tanh(0.8 * (x + 0.04 * x**3))),
    "negative": lambda lib, x: 1 - x,
    "over ten": lambda lib, x: x / 10,
    "times a tenth": lambda lib, x: x * 0.1,
    "over four": lambda lib, x: x / 4.0,
    "where": lambda lib, x: lib.xp.where(x * x < 1e4, x * 2 + 1, x),
}


def elementwise(rng, shape):
    names = [str(name) for name in rng.choice(list(ELEMENTWISE), rng.integers(1, 4))]

    def apply(lib, x):
        for name in names:
            x = ELEMENTWISE[name](lib, x)
        return x

    return Piece(", ".join(names), apply)


def channelwise(rng, shape):
    scale, bias = weights(rng, (shape[-1],), 1), weights(rng, (shape[-1],), 1)
    return Piece("scale and bias", lambda lib, x, s, b: x * s + b, (scale, bias))


def normalize(rng, shape):
    """Batch norm over all axes but the last, layer norm over the last, or over all but the first."""
    last = len(shape) - 1
    axes = (tuple(range(last)), (last,), tuple(range(1, last + 1)))[rng.integers(3)]

    def apply(lib, x):
        mean = x.mean(axes, keepdims=True)
        variance = lib.xp.mean(x * x, axes, keepdims=True) - mean * mean if fast else x.var(axes, keepdims=True)
        return (x - mean) / lib.xp.sqrt(variance + 0.1)

    # the difference of two large numbers, where float32 has summed tens of thousands one after the other
    fast = bool(rng.integers(2)) and np.prod([shape[axis] for axis in axes]) < 5000
    return Piece(f"normalize over {axes}{' fast' if fast else ''}", apply)


def reduction(rng, shape, axis=None):
    """Any reduction; without `keep` one axis less."""
    axis = int(rng.integers(len(shape))) if axis is None else axis
    name = str(rng.choice(["mean", "max", "logsumexp", "softmax", "norm", "sum", "centre", "log_softmax"]))
    scale = 1 / np.sqrt(shape[axis])

    def apply(lib, x):
        if name == "mean":
            return x - x.mean(axis, keepdims=True) * 0.5
        if name == "max":
            return x - lib.largest(x, axis=axis, keepdims=True)
        if name == "logsumexp":
            return x * 0.5 - lib.logsumexp(x, axis=axis, keepdims=True)
        if name == "softmax":
            return lib.softmax(x, axis=axis)
        if name == "norm":
            return x / lib.xp.sqrt((x * x).sum(axis, keepdims=True) + 1e-1)
        if name == "sum":
            return x * 0.5 + x.sum(axis, keepdims=True) * scale
        if name == "centre":
            return (x - x.mean(axis, keepdims=True)) ** 2
        return x - lib.logsumexp(x, axis=axis, keepdims=True)

    return Piece(f"{name} along {axis}", apply)


def weights(rng, shape, fan_in):
    return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


# Pieces of images [B,H,W,C].


def convolution(rng, shape):
    channels, stride, dilation = shape[-1], int(rng.integers(1, 3)), int(rng.integers(1, 3))
    size = int(rng.choice([1, 1, 3, 3, 5]))
    groups = int(rng.choice([g for g in range(1, channels + 1) if channels % g == 0]))
    groups = channels if rng.random() < 0.25 else 1 if rng.random() < 0.6 else groups
    outside = groups * int(rng.integers(1, max(2, 33 // groups)))
    padding = "VALID" if min(shape[1:3]) > dilation * (size - 1) + 1 and rng.integers(2) else "SAME"
    kernel = weights(rng, (size, size, channels // groups, outside), size**2 * channels // groups)
    text = f"conv {size}x{size} to {outside}, stride {stride}, dilation {dilation}, groups {groups}, {padding}"
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if rng.random() < 0.25 and stride == 1 and padding == "SAME" and outside == channels:
        return Piece(f"residual {text}", lambda lib, x, k: x + lib.conv(x, k, **how), (kernel,))
    return Piece(text, lambda lib, x, k: lib.conv(x, k, **how), (kernel,))


def pooling(rng, shape):
    size, stride, largest = int(rng.integers(2, 4)), int(rng.integers(1, 4)), bool(rng.integers(2))
    padding = "VALID" if min(shape[1:3]) > size and rng.integers(2) else "SAME"
    text = f"{'max' if largest else 'average'} pool {size}, stride {stride}, {padding}"
    return Piece(text, lambda lib, x: lib.pool(x, size, stride, padding, largest=largest))


def rearrangement(rng, shape):
    batch, height, width, channels = shape
    kind = int(rng.integers(5))
    groups = int(rng.choice([g for g in range(1, channels + 1) if channels % g == 0]))
    order = (batch, height, width, groups, channels // groups)
    return (
        Piece(f"shuffle {groups}", lambda lib, x: x.reshape(order).swapaxes(3, 4).reshape(shape)),
        Piece("flip", lambda lib, x: x[:, :, ::-1]),
        Piece("pad and crop", lambda lib, x: lib.xp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))[:, 1:-3, 3:-1]),
        Piece("both", lambda lib, x: lib.xp.concatenate([x, lib.xp.tanh(x)], axis=-1)),
        Piece("half", lambda lib, x: x[..., : (channels + 1) // 2]),
    )[kind]


def to_rows(rng, shape):
    """The end of an image: its positions as rows, its mean, or its regions by one of three ways."""
    batch, height, width, channels = shape
    kind, even = int(rng.integers(5)), height % 2 == width % 2 == 0
    cells = (batch, 2, height // 2, 2, width // 2, channels)
    if kind == 1:
        return Piece("mean of an image", lambda lib, x: x.mean((1, 2)))
    if kind == 2 and even:
        return Piece("mean of quarters", lambda lib, x: x.reshape(cells).mean((2, 4)).reshape(-1, channels))
    if kind == 3:
        size = height * width

        def apply(lib, x):
            regions = lib.xp.full((3, size), 1 / size, x.dtype)
            return lib.xp.einsum("rp,bpc->brc", regions, x.reshape(batch, size, channels)).reshape(-1, channels)

        return Piece("means by a broadcast constant", apply)
    return Piece("positions as rows", lambda lib, x: x.reshape(-1, channels))


# Pieces of rows [N,K].


def product(rng, shape):
    inside, outside = shape[1], int(rng.choice(COLUMNS))
    scale = float(rng.choice([0.1, 1 / inside, 1 / np.sqrt(inside)]))
    square = weights(rng, (inside, inside), inside)
    literal = weights(rng, (inside, outside), inside)
    shape = (inside, outside)
    wide = f"[{inside}, {outside}]"
    kinds = (
        Piece(f"@ argument {wide}", lambda lib, x, w: x @ w, (literal,)),
        Piece(f"@ literal {wide}", lambda lib, x: x @ lib.xp.asarray(literal, x.dtype)),
        Piece(f"(@ ones {wide}) * {scale:.3g}", lambda lib, x: (x @ lib.xp.ones(shape, x.dtype)) * scale),
        Piece(f"@ (ones {wide} * {scale:.3g})", lambda lib, x: x @ (lib.xp.ones(shape, x.dtype) * scale)),
        Piece(f"(@ ones {wide}) / {1 / scale:.3g}", lambda lib, x: (x @ lib.xp.ones(shape, x.dtype)) / (1 / scale)),
        Piece(f"@ full {wide} {scale:.3g}", lambda lib, x: x @ lib.xp.full(shape, scale, x.dtype)),
        Piece("@ eye", lambda lib, x: x @ lib.xp.eye(inside, dtype=x.dtype)),
        Piece("rows: eye @ row", lambda lib, x: lib.rows(lambda row: lib.xp.eye(inside, dtype=x.dtype) @ row, x)),
        Piece("rows: argument @ row", lambda lib, x, w: lib.rows(lambda row: w @ row, x), (square,)),
        Piece("@ its transpose", lambda lib, x: x @ (x.T @ x) * (1 / (len(x) * inside))),
        Piece("@ argument, a row", lambda lib, x, w: x + (x.mean(0) @ w), (square,)),
        Piece("repeated @ argument", lambda lib, x, w: x @ (w + lib.xp.ones_like(w)) * 0.1, (literal,)),
    )
    return kinds[rng.integers(len(kinds))]


def attention(rng, shape):
    count, width = shape
    length = max(n for n in (1, 3, 4, 7, 8, 16, 17, 32) if count % n == 0)
    query, key = weights(rng, (width, width), width), weights(rng, (width, width), width)

    def apply(lib, x, query, key):
        y = x.reshape(-1, length, width)
        scores = lib.xp.einsum("btd,bsd->bts", y @ query, y @ key) / width**0.5
        return (x + (lib.softmax(scores, axis=-1) @ y).reshape(count, width)) * 0.5

    return Piece(f"attention over {length}", apply, (query, key))


def divergence(rng, shape):
    other, labels = weights(rng, shape, 1), rng.integers(0, shape[1], (shape[0], 1))
    temperature = float(rng.choice([1.0, 4.0]))
    if rng.integers(2):

        def apply(lib, x, teacher):
            target = lib.softmax(teacher / temperature, axis=-1)
            log_target = teacher / temperature - lib.logsumexp(teacher / temperature, axis=-1, keepdims=True)
            log_student = x / temperature - lib.logsumexp(x / temperature, axis=-1, keepdims=True)
            return (target * (log_target - log_student)).sum(-1) * temperature**2

        return Piece("KL divergence", apply, (other,))
    if rng.integers(2):
        return Piece("cross-entropy", lambda lib, x: lib.logsumexp(x, axis=-1) - lib.pick(x, labels)[:, 0])
    hot = np.eye(shape[1], dtype=np.float32)[labels[:, 0]]
    return Piece("cross-entropy, one hot", lambda lib, x, hot: lib.logsumexp(x, axis=-1) - (x * hot).sum(-1), (hot,))


def ending(rng, shape):
    """A reduction of rows to one axis or none."""
    kind, axis = int(rng.integers(7)), int(rng.random() < 0.3)
    axis = 1 - axis
    size = shape[axis] ** 0.5
    return (
        Piece(f"logsumexp along {axis}", lambda lib, x: lib.logsumexp(x, axis=axis)),
        Piece(f"mean along {axis}", lambda lib, x: x.mean(axis)),
        Piece(f"sum of squares along {axis}", lambda lib, x: (x * x).sum(axis)),
        Piece(f"largest along {axis}", lambda lib, x: lib.largest(x, axis=axis)),
        Piece(f"sum along {axis}", lambda lib, x: x.sum(axis) / size),
        Piece(f"variance along {axis}", lambda lib, x: x.var(axis)),
        Piece("mean of squares", lambda lib, x: (x * x).mean()),
    )[kind]


OF_IMAGES = (convolution, convolution, convolution, pooling, elementwise, channelwise, normalize, rearrangement)
OF_ROWS = (product, product, product, attention, elementwise, channelwise, normalize, reduction, reduction)
