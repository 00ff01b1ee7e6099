"""Names of the official code, as they are here."""


def network(official):
    """The network that the official code calls ``official``; its "MobileNetV2" of ImageNet is mobilenet_v1 here."""
    return official.removesuffix("_sdd").lower().replace("shufflev", "shufflenet_v").replace("netv2", "net_v2")
