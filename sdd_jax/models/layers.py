"""The layers and initialisers that every network shares, with PyTorch's semantics.

A module computes in its `dtype`. Parameters and running statistics are kept in at least float32
(`param_dtype`): with bfloat16 compute the weights are still float32, and so is a checkpoint.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

# "Delving Deep into Rectifiers" (2015). The official code writes this formula in three ways, one for each family.
CONV_INIT = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")

# PyTorch's default for convolutions: uniform within 1 / sqrt(fan_in).
TORCH_CONV_INIT = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# From the number of input features to the initialisers of an affine layer's kernel and bias.
AffineInit = Callable[[int], tuple[Initializer, Initializer]]

EPSILON = 1e-5
_UPDATE = 0.1  # the share of the batch in the running statistics: PyTorch's "momentum"


def param_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of the parameters, and of reductions, of a network that computes in `dtype`."""
    return jnp.promote_types(dtype, jnp.float32)


def torch_affine_init(fan_in: int) -> tuple[Initializer, Initializer]:
    """PyTorch's default for `Linear`: kernel and bias uniform within 1 / sqrt(fan_in)."""
    bound = fan_in**-0.5
    uniform = partial(jax.random.uniform, minval=-bound, maxval=bound)
    return uniform, uniform


def zero_bias_affine_init(fan_in: int) -> tuple[Initializer, Initializer]:
    """PyTorch's kernel with the bias at zero (wide residual networks)."""
    return torch_affine_init(fan_in)[0], jax.nn.initializers.zeros


def small_normal_affine_init(fan_in: int) -> tuple[Initializer, Initializer]:
    """Kernel normal with standard deviation 0.01 whatever the fan-in, bias zero (MobileNetV2)."""
    del fan_in
    return jax.nn.initializers.normal(0.01), jax.nn.initializers.zeros


def normal_affine_init(fan_in: int) -> tuple[Initializer, Initializer]:
    """Kernel normal with standard deviation 0.02, bias zero (DeiT, ConvNeXt)."""
    del fan_in
    return jax.nn.initializers.normal(0.02), jax.nn.initializers.zeros


def fan_out_affine_init(fan_in: int) -> tuple[Initializer, Initializer]:
    """Kernel uniform within 1 / sqrt(fan_out), bias zero (EfficientNet)."""
    del fan_in
    return jax.nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform"), jax.nn.initializers.zeros


def conv(
    features: int,
    kernel_size: int = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    use_bias: bool = False,
    init: Initializer = CONV_INIT,
    dtype: DTypeLike,
    name: str,
) -> nn.Conv:
    """A square convolution of odd size, [B,H,W,C] -> [B,ceil(H/stride),ceil(W/stride),features].

    The padding is the same on both sides, as PyTorch's: "SAME" would pad a strided convolution of
    an even size on one side only and shift what every location sees.
    """
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides=stride,
        padding=kernel_size // 2,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=init,
        dtype=dtype,
        param_dtype=param_dtype(dtype),
        conv_general_dilated=_convolve if groups > 1 or kernel_size == 1 else None,
        name=name,
    )


def _convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **options: Any) -> jax.Array:
    """`lax.conv_general_dilated` as `nn.Conv` calls it: x [B,H,W,C], kernel [n,n,C/groups,features].

    Undilated, n odd, one stride for both axes, padding n // 2 on every side. The form is chosen when a program is
    lowered for its platform. TPU and GPU have kernels for all; XLA's CPU backend takes over ten times as long for a
    3x3 depthwise convolution as for nine shifted products, and two to five times as long for the gradient of a 1x1
    convolution as for matrix products.
    """
    native = partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    size, _, group_size, features = kernel.shape
    groups = x.shape[-1] // group_size
    if size == 1:
        return lax.platform_dependent(x, kernel, cpu=partial(_products, groups, strides[0]), default=native)
    if group_size == 1 and features == groups:
        return lax.platform_dependent(x, kernel, cpu=partial(_shifted, strides[0]), default=native)
    return native(x, kernel)


def _products(groups: int, stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1x1 convolution in groups, as a matrix product for each: of rows, or XLA would turn them for the gradient."""
    x = x[:, ::stride, ::stride]
    blocks = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel[0, 0], groups, axis=-1), strict=True)
    made = [block.reshape(-1, block.shape[-1]) @ weights for block, weights in blocks]
    return jnp.concatenate(made, axis=-1).reshape(*x.shape[:-1], -1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _shifted(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A depthwise convolution as a sum of shifted products; kernel [n,n,1,C]."""
    taps = _taps(x.astype(param_dtype(x.dtype)), kernel.shape[0], stride)
    return reduce(jnp.add, (tap * kernel[i, j, 0] for (i, j), tap in taps.items())).astype(x.dtype)


def _shifted_forward(stride, x, kernel):
    return _shifted(stride, x, kernel), (x, kernel)


def _shifted_backward(stride, residuals, dy):
    x, kernel = residuals
    size, dtype = kernel.shape[0], param_dtype(x.dtype)
    dy = dy.astype(dtype)

    # The image: dy, with stride - 1 zeros between its values, under the kernel turned half round.
    half = size // 2
    lengths = zip(x.shape[1:3], dy.shape[1:3], strict=True)
    edges = [(half, want + half - 1 - (got - 1) * stride, stride - 1) for want, got in lengths]
    spread = lax.pad(dy, jnp.zeros((), dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    height, width = x.shape[1:3]
    turned = kernel[::-1, ::-1, 0]
    shifts = (spread[:, i : i + height, j : j + width] * turned[i, j] for i in range(size) for j in range(size))
    dx = reduce(jnp.add, shifts)

    # The kernel: every tap in one pass over the image, then a sum over the batch. One pass over
    # everything would add up in sequence and lose two digits; a sum for each tap is several passes.
    taps = tuple(tap * dy for tap in _taps(x.astype(dtype), size, stride).values())
    zeros = (jnp.zeros((), dtype),) * len(taps)
    sums = lax.reduce(taps, zeros, lambda a, b: tuple(p + q for p, q in zip(a, b, strict=True)), (1, 2))
    dkernel = jnp.sum(jnp.stack(sums), axis=1).reshape(kernel.shape)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


_shifted.defvjp(_shifted_forward, _shifted_backward)


def _taps(x: jax.Array, size: int, stride: int) -> dict[tuple[int, int], jax.Array]:
    """What each of the kernel's size**2 weights sees: {(i, j): [B,ceil(H/stride),ceil(W/stride),C]}."""
    pad = size // 2
    ends = [stride * (-(-length // stride) - 1) + 1 for length in x.shape[1:3]]
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return {
        (i, j): padded[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i in range(size) for j in range(size)
    }


def stem_options(stem: str, *, small: tuple[int, int] = (3, 1), init: Initializer = CONV_INIT) -> dict[str, Any]:
    """Options of `conv` for the first convolution: `small` (kernel size, stride) if `stem` is "cifar", else (7, 2).

    The official code replaces the stem for CUB-200 after the network is initialised, so that it
    keeps PyTorch's own initial values.
    """
    kernel_size, stride = small if stem == "cifar" else (7, 2)
    return {"kernel_size": kernel_size, "stride": stride, "init": TORCH_CONV_INIT if stem == "cub200" else init}


class Affine(nn.Module):
    """x [...,C] -> [...,features]: the product runs in the dtype of `x` and accumulates in at least float32."""

    features: int
    init_fn: AffineInit
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel_init, bias_init = self.init_fn(x.shape[-1])
        stored = param_dtype(self.dtype)
        kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features), stored)
        bias = self.param("bias", bias_init, (self.features,), stored)
        return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=stored) + bias


class BatchNorm(nn.Module):
    """Normalises each channel of x [B,h,w,C] and updates its running statistics as PyTorch does.

    "Batch Normalization" (2015). In training the batch's biased variance normalises, while the
    running variance takes the unbiased one, n / (n - 1) times as large. Statistics are taken in at
    least float32, and the variance in a second pass over centred values: the difference of two
    means of squares cancels when the mean is large. Under `jit` with a sharded batch the means are
    over the global batch, so no axis name is needed. Folded variables (`fold`) have a bias alone.
    """

    dtype: DTypeLike = jnp.float32  # of the output
    convolution: str | None = None  # the name of one beside it whose output is read here and nowhere else

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shape, stored = x.shape[-1:], param_dtype(self.dtype)
        if self.has_variable("params", "bias") and not self.has_variable("params", "scale"):
            if train:
                raise ValueError("folded variables have no training mode: train the ones that were folded")
            return (x.astype(stored) + self.get_variable("params", "bias")).astype(self.dtype)
        scale = self.param("scale", nn.initializers.ones, shape, stored)
        bias = self.param("bias", nn.initializers.zeros, shape, stored)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, stored)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, stored)

        if train:
            count = x.size // x.shape[-1]
            if count < 2:
                raise ValueError(
                    f"batch normalisation in training needs more than one value per channel, got shape {x.shape}"
                    f" at {'/'.join(self.path)}: use a larger batch or larger images"
                )
            y, mean, var = _normalize(x, scale, bias)
            if not self.is_initializing():
                unbiased = var * (count / (count - 1))
                running_mean.value = (1 - _UPDATE) * running_mean.value + _UPDATE * mean
                running_var.value = (1 - _UPDATE) * running_var.value + _UPDATE * unbiased
        else:
            factor = scale * lax.rsqrt(running_var.value + EPSILON)
            y = (x.astype(stored) - running_mean.value) * factor + bias
        return y.astype(self.dtype)


@jax.custom_vjp
def _normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x [...,C] normalised over all axes but the last, scaled and shifted; its mean and biased variance [C].

    All in the dtype of `scale`. The gradient is written out: what JAX derives passes over the activations twice as
    often.
    """
    return _normalize_forward(x, scale, bias)[0]


def _normalize_forward(x, scale, bias):
    wide, count = x.astype(scale.dtype), x.size // x.shape[-1]
    mean = _channel_sums(wide) / count
    var = _channel_sums(jnp.square(wide - mean)) / count
    deviation = lax.rsqrt(var + EPSILON)
    return ((wide - mean) * (scale * deviation) + bias, mean, var), (x, mean, deviation, scale)


def _normalize_backward(residuals, cotangents):
    x, mean, deviation, scale = residuals
    dy, dmean, dvar = cotangents
    centred, count = x.astype(scale.dtype) - mean, x.size // x.shape[-1]
    dbias = _channel_sums(dy)
    dscale = _channel_sums(dy * centred) * deviation
    factor = scale * deviation
    slope = (factor * deviation * dscale - 2 * dvar) / count
    dx = factor * dy - slope * centred - (factor * dbias - dmean) / count
    return dx.astype(x.dtype), dscale, dbias


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _channel_sums(x: jax.Array) -> jax.Array:
    """The sums of x [B,...,C] over all axes but the last.

    On CPU as a matrix product for each image and a sum over them: a sixth to a twelfth of the time of XLA's own sum,
    and in float32 an error of 2e-7 beside 5e-6 where 65,536 numbers around 3 are added.
    """

    def products(x):
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        ones = jnp.ones(rows.shape[:2], x.dtype)
        return jnp.sum(jnp.einsum("bp,bpc->bc", ones, rows, precision=lax.Precision.HIGHEST), axis=0)

    return lax.platform_dependent(x, cpu=products, default=lambda x: jnp.sum(x, range(x.ndim - 1)))


def conv_bn(
    x: jax.Array,
    features: int,
    kernel_size: int = 3,
    stride: int = 1,
    *,
    name: str,
    norm: str | None = None,
    relu: bool = True,
    dtype: DTypeLike,
    train: bool,
    **options: Any,
) -> jax.Array:
    """A `conv` with these options, a batch normalisation and ReLU, inside a compact module.

    The layers become that module's, as `name` and `norm` (or `name` with "bn" in place of "conv").
    """
    x = conv(features, kernel_size, stride, dtype=dtype, name=name, **options)(x)
    x = BatchNorm(dtype, convolution=name, name=norm or name.replace("conv", "bn"))(x, train=train)
    return nn.relu(x) if relu else x


def fold(model: nn.Module, variables: Any, images: Any) -> dict[str, Any]:
    """Variables for evaluation with every `conv_bn` as one convolution: the same outputs up to rounding, sooner.

    With its running statistics a batch normalisation is affine, and a convolution is linear in its
    kernel: "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference" (2018), section 3.2. Kernels are folded in at least float32, whatever the model computes in.
    Only the shape and dtype of `images` are read.
    """
    pairs = set()

    def forward(variables, images):
        flat = flatten_dict(variables)

        def look(next_fun, args, kwargs, context):
            norm = context.module
            if isinstance(norm, BatchNorm) and norm.convolution is not None:
                # Not so inside of another network's `apply`, or of a transformed module (`nn.scan`, `nn.remat`).
                if norm.get_variable("params", "scale") is flat.get(("params", *norm.path, "scale"), images):
                    pairs.add(((*norm.path[:-1], norm.convolution), norm.path))
            return next_fun(*args, **kwargs)

        with nn.intercept_methods(look):
            return model.apply(variables, images, train=False)

    jax.eval_shape(forward, variables, images)
    return jax.jit(partial(_fold, sorted(pairs)))(variables)


def _fold(pairs: list[tuple[tuple[str, ...], tuple[str, ...]]], variables: Any) -> dict[str, Any]:
    flat: dict[tuple[str, ...], Any] = flatten_dict(variables, keep_empty_nodes=True)
    for conv_path, norm in pairs:
        mean, var = (flat.pop(("batch_stats", *norm, name)) for name in ("mean", "var"))
        factor = flat.pop(("params", *norm, "scale")) * lax.rsqrt(var + EPSILON)
        flat["params", *norm, "bias"] -= mean * factor
        for name in ("kernel", "bias"):
            if ("params", *conv_path, name) in flat:
                flat["params", *conv_path, name] *= factor
    return unflatten_dict(flat)
