"""Losses over the maps of stages, as objectives: AT, FitNet and ReviewKD.

The networks of `sdd_jax.models` name these maps by `sdd_jax.models.classifier.stage`; stages count from 1, and a
network of small images has three or four. Regressors and fusions are learned beside the student and thrown away at
the end; as they are never evaluated, their batch normalisations always use the batch's own statistics.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from sdd_jax.logits import root
from sdd_jax.models.classifier import HEAD, stage
from sdd_jax.models.layers import TORCH_CONV_INIT, Affine, BatchNorm, conv_bn, param_dtype, torch_affine_init
from sdd_jax.regions import average_grid
from sdd_jax.training.objective import Objective, check_feature_map, check_feature_maps, no_variables


def attention_loss(student_map: ArrayLike, teacher_map: ArrayLike, *, power: int = 2) -> jax.Array:
    """How far two networks' attention is apart, ``[B]``: ``mean_j (Q_s[j] / |Q_s| - Q_t[j] / |Q_t|)^2``, j a location.

    ``Q`` is the mean over the channels of ``|A|^power``. Maps are ``[B, h, w, C]``; of two sizes the larger is averaged
    to the smaller before. A map that is zero everywhere has no attention anywhere.
    """
    maps = [jnp.asarray(one) for one in (student_map, teacher_map)]
    size = tuple(min(sides) for sides in zip(*(one.shape[1:3] for one in maps), strict=True))
    student, teacher = (_attention(average_grid(one, size), power) for one in maps)
    return jnp.mean((student - teacher) ** 2, axis=-1)


def _attention(features: jax.Array, power: int) -> jax.Array:
    attention = jnp.mean(jnp.abs(features) ** power, axis=-1).reshape(features.shape[0], -1)
    return attention / jnp.maximum(root(jnp.sum(attention**2, axis=-1, keepdims=True)), 1e-12)  # as F.normalize


def attention(weight: float = 1000.0, *, power: int = 2) -> Objective:
    """``weight`` times AT, attention transfer, summed over the stages that both networks have.

    Source: "Paying More Attention to Attention" (Zagoruyko and Komodakis, ICLR 2017), section 3.1, as RepDistiller
    (distiller_zoo/AT.py) and mdistiller have it: a mean over locations where the paper's equation 2 has a norm. Stages
    are matched by number, from 1; mdistiller's MobileNetV1 lacks the stem's map, so that there each of its stages meets
    the one before of the teacher. The metric ``attention_loss`` is before the weight.
    """
    if power < 1:
        raise ValueError(f"AT needs a power of at least 1, got {power}")

    def init(key, student, teacher, labels):
        check_feature_maps(student, teacher, stage(1), "AT")
        return no_variables(key, student, teacher, labels)

    def apply(params, state, student, teacher, batch, *, epoch, epochs_done, key):
        shared = range(1, min(_stages(student), _stages(teacher)) + 1)
        pairs = [(student.feature_maps[stage(number)], teacher.feature_maps[stage(number)]) for number in shared]
        loss = functools.reduce(jnp.add, (attention_loss(*pair, power=power) for pair in pairs))
        return weight * loss, {"attention_loss": loss}, state

    return Objective(init, apply, frozenset({"feature_maps"}))


class Regressor(nn.Module):
    """A map [B,h,w,C] in the shape of another, [B,h',w',C'], after batch normalisation and ReLU.

    The convolution goes by the sizes: stride 2 where h is 2h', transposed where 2h is h', else a kernel that leaves
    just h' x w'. Its bias, which the normalisation takes out, is left out.
    """

    shape: tuple[int, ...]  # h', w', C'
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        *wanted, channels = self.shape
        height, width = x.shape[1:3]
        options = {"use_bias": False, "dtype": self.dtype, "param_dtype": param_dtype(self.dtype), "name": "conv"}
        if [height, width] == [2 * side for side in wanted]:
            layer = nn.Conv(channels, (3, 3), 2, padding=1, kernel_init=TORCH_CONV_INIT, **options)
        elif [2 * height, 2 * width] == wanted:
            init = jax.nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")  # PyTorch's, transposed
            layer = nn.ConvTranspose(channels, (4, 4), (2, 2), padding="SAME", kernel_init=init, **options)
        elif height >= wanted[0] and width >= wanted[1]:
            size = (1 + height - wanted[0], 1 + width - wanted[1])
            layer = nn.Conv(channels, size, padding="VALID", kernel_init=TORCH_CONV_INIT, **options)
        else:
            sizes = f"a student's map of {height}x{width} and a teacher's of {wanted[0]}x{wanted[1]}"
            raise ValueError(f"FitNet has no regressor for {sizes}: it may be larger, or half as large")
        return nn.relu(BatchNorm(self.dtype, name="bn")(layer(x), train=True))


def hint(weight: float = 100.0, *, feature_map: str = stage(2)) -> Objective:
    """``weight`` times FitNet's loss: the mean squared error of a learned `Regressor` of the student's map.

    Source: "FitNets: Hints for Thin Deep Nets" (Romero et al., ICLR 2015), equation 3, in one phase with the
    cross-entropy as RepDistiller (--distill hint) and mdistiller have it; the paper trains the hint first. The metric
    ``hint_loss`` is before the weight.
    """

    def of_maps(student, teacher):
        ours, theirs = (_wide(one.feature_maps[feature_map]) for one in (student, teacher))
        return Regressor(tuple(theirs.shape[1:]), ours.dtype), ours, theirs

    def init(key, student, teacher, labels):
        check_feature_maps(student, teacher, feature_map, "FitNet")
        regressor, ours, _ = of_maps(_blank(student), _blank(teacher))
        return regressor.init(key, ours)["params"], {}

    def apply(params, state, student, teacher, batch, *, epoch, epochs_done, key):
        regressor, ours, theirs = of_maps(student, teacher)
        made, _ = regressor.apply({"params": params}, ours, mutable=["batch_stats"])
        loss = jnp.mean((made - theirs) ** 2, axis=(1, 2, 3))
        return weight * loss, {"hint_loss": loss}, state

    return Objective(init, apply, frozenset({"feature_maps"}))


class Fusion(nn.Module):
    """The student's maps, deepest first, each with all deeper ones in it, in the shapes (h, w, C) of the teacher's.

    A map is narrowed to one width, joined with what comes from deeper, by gates that are read from both, and widened:
    figure 3 of the paper. Sizes are changed by taking the nearest location.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        options = {"relu": False, "init": init, "dtype": self.dtype, "train": True}
        middle, made, deeper = min(512, maps[0].shape[-1]), [], None
        for number, (x, (height, width, channels)) in enumerate(zip(maps, self.shapes, strict=True)):
            x = conv_bn(x, middle, 1, name=f"narrow{number}_conv", **options)
            if deeper is not None:
                deeper = _nearest(deeper, *x.shape[1:3])
                gates = Affine(2, torch_affine_init, self.dtype, name=f"gates{number}")
                gate = nn.sigmoid(gates(jnp.concatenate([x, deeper], axis=-1))).astype(self.dtype)
                x = x * gate[..., :1] + deeper * gate[..., 1:]
            deeper = _nearest(x, height, width)
            made.append(conv_bn(deeper, channels, 3, name=f"widen{number}_conv", **options))
        return made


def hierarchical_loss(student_map: jax.Array, teacher_map: jax.Array) -> jax.Array:
    """The mean squared difference of two maps ``[B, h, w, C]`` and of their averages over 4x4, 2x2 and 1x1: ``[B]``.

    The weights are 1, 1/2, 1/4 and 1/8 over their sum; grids that are not smaller than the map are left out.
    """
    difference = student_map - teacher_map
    sides = [side for side in (4, 2, 1) if side < min(difference.shape[1:3])]
    levels = [difference, *(average_grid(difference, side) for side in sides)]
    weights = [0.5**number for number in range(len(levels))]
    terms = (share * jnp.mean(level**2, axis=(1, 2, 3)) for share, level in zip(weights, levels, strict=True))
    return functools.reduce(jnp.add, terms) / sum(weights)


def review(weight: float = 5.0, *, warmup_epochs: int = 20, student_before_relu: bool = False) -> Objective:
    """``weight`` times ReviewKD: all stages of the student, fused from the deepest on, are drawn to the teacher's.

    Source: "Distilling Knowledge via Knowledge Review" (Chen et al., CVPR 2021), section 3, and its released code
    (dvlab-research/ReviewKD, CIFAR-100/model/reviewkd.py), as mdistiller has it: the teacher's maps are those before
    the last ReLU of a stage, the student's those after it, or before it too on ImageNet; the mean feature counts as
    the deepest map. Epoch e, from 1, weighs the loss by ``min(e / warmup_epochs, 1)`` (from 0 in the authors' code).

    ``ValueError`` unless both networks have as many stages. The metric ``review_loss`` is before weight and warm-up.
    """
    if warmup_epochs < 0:
        raise ValueError(f"ReviewKD needs warm-up epochs of at least 0, got {warmup_epochs}")

    def of_maps(student, teacher):
        numbers = range(_stages(teacher), 0, -1)
        ours = [_mean(student), *(_wide(student.feature_maps[_named(student_before_relu, n)]) for n in numbers)]
        theirs = [_mean(teacher), *(_wide(teacher.feature_maps[_named(True, n)]) for n in numbers)]
        return Fusion(tuple(tuple(one.shape[1:]) for one in theirs), ours[0].dtype), ours, theirs

    def init(key, student, teacher, labels):
        check_feature_maps(student, teacher, stage(1), "ReviewKD")
        if _stages(student) != _stages(teacher):
            got = f"the student has {_stages(student)}, the teacher {_stages(teacher)}"
            raise ValueError(f"ReviewKD needs as many stages in both networks: {got}")
        check_feature_map("teacher", teacher, _named(True, 1), "ReviewKD")
        check_feature_map("student", student, _named(student_before_relu, 1), "ReviewKD")
        fusion, ours, _ = of_maps(_blank(student), _blank(teacher))
        return fusion.init(key, ours)["params"], {}

    def apply(params, state, student, teacher, batch, *, epoch, epochs_done, key):
        fusion, ours, theirs = of_maps(student, teacher)
        made, _ = fusion.apply({"params": params}, ours, mutable=["batch_stats"])
        loss = functools.reduce(jnp.add, map(hierarchical_loss, made, theirs))
        scale = jnp.minimum((epoch + 1) / warmup_epochs, 1.0) if warmup_epochs else 1.0
        return weight * scale * loss, {"review_loss": loss}, state

    return Objective(init, apply, frozenset({"feature_maps"}))


def _named(before_relu: bool, number: int) -> str:
    return stage(number, before_relu=before_relu)


def _stages(outputs: Any) -> int:
    """How many stages name their map, from 1 on."""
    number = 0
    while stage(number + 1) in outputs.feature_maps:
        number += 1
    return number


def _wide(features: jax.Array) -> jax.Array:
    return features.astype(param_dtype(features.dtype))


def _mean(outputs: Any) -> jax.Array:
    """The mean feature under the head, as a map of one location."""
    return jnp.mean(_wide(outputs.feature_maps[HEAD]), axis=(1, 2), keepdims=True)


def _blank(outputs: Any) -> Any:
    """Outputs with maps of zeros, of two examples: a batch normalisation needs more than one."""
    maps = {name: jnp.zeros((2, *one.shape[1:]), one.dtype) for name, one in outputs.feature_maps.items()}
    return outputs._replace(feature_maps=maps)


def _nearest(x: jax.Array, height: int, width: int) -> jax.Array:
    """x [B,h,w,C] -> [B,height,width,C]: location i of n comes from floor(i h / n), as PyTorch has it."""
    for axis, size in ((1, height), (2, width)):
        if x.shape[axis] != size:
            x = jnp.take(x, jnp.arange(size) * x.shape[axis] // size, axis=axis)
    return x
