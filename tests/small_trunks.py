"""The transformers' and newer convolutional trunks with few layers, for configs: "small_trunks:vit"."""

from sdd_jax.models import Classifier
from sdd_jax.models.convnext import ConvNeXt
from sdd_jax.models.efficientnet import EfficientNet
from sdd_jax.models.layers import normal_affine_init
from sdd_jax.models.vit import VisionTransformer

STAGES = ((1, 8, 1, 1, 3), (6, 12, 2, 2, 5))


def vit(*, num_classes, stem, dtype):
    return Classifier(VisionTransformer(32, 2, 2, dtype=dtype), num_classes, normal_affine_init, dtype)


def vit_gap(*, num_classes, stem, dtype):
    return Classifier(VisionTransformer(32, 2, 2, False, dtype=dtype), num_classes, normal_affine_init, dtype)


def convnext(*, num_classes, stem, dtype):
    trunk = ConvNeXt((1, 2, 1, 1), (8, 12, 16, 20), dtype=dtype)
    return Classifier(trunk, num_classes, normal_affine_init, dtype)


def efficientnet(*, num_classes, stem, dtype):
    return Classifier(EfficientNet(STAGES, dtype=dtype), num_classes, normal_affine_init, dtype)


NAMES = ("vit", "vit_gap", "convnext", "efficientnet")
