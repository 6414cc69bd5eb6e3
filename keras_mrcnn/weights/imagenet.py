"""Name tables of classifiers trained on ImageNet, for the backbone: what is not torchvision's or timm's.

Those two have the same names: `weights.torchvision.resnet`.
"""

import numpy as np

from keras_mrcnn.residual import DEPTHS
from keras_mrcnn.weights import tables
from keras_mrcnn.weights.tables import Row, Table

BRANCHES = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
CAFFE2_IGNORED = ("*_momentum", "conv1_b", "fc1000_w", "fc1000_b", "pred_w", "pred_b")


def caffe2(config, names):
    """Table of the Caffe2 blobs of MSRA's `R-50.pkl`, `R-101.pkl` and of `X-101-32x8d.pkl`, which take BGR.

    The normalisation goes by three sets of names, between which the stem's in `names` decide: `_bn_gamma`,
    `_bn_beta`, `_bn_running_mean`, `_bn_running_var` in detectron2's copies of the files; `_bn_s`, `_bn_b`,
    `_bn_rm`, `_bn_riv` as Caffe2 trains; only `_bn_s`, `_bn_b` in Detectron's files, where the statistics are
    folded into the two: then the mean is 0 and the variance 1 - epsilon, which divides by 1 (as detectron2's
    `FrozenBatchNorm2d` begins). The stem's `conv1_b`, about 1e-9, is left out, as detectron2 leaves it out.

    Args:
        config: a `config.Model`.
        names: the names in the file, any container.

    Raises:
        ValueError: the config has group normalisation, or names a ResNet without bottlenecks.
    """
    backbone = config.backbone
    tables.check_batch_norm(backbone)
    if not DEPTHS[backbone.name].bottlenecks:
        raise ValueError(
            "These files are of ResNets with bottlenecks: resnet50, resnet101 or resnext101_32x8d. "
            f"Received: backbone.name={backbone.name!r}"
        )
    their = _caffe2_norm_names(names)
    rows = []
    for conv in tables.resnet_convs(backbone):
        if conv.part == "stem":
            rows.append(Row(f"{conv.ours}/kernel", "conv1_w", tables.bgr_kernel))
            prefix = "res_conv1"
        else:
            prefix = f"res{conv.stage}_{conv.block}_{BRANCHES[conv.part]}"
            rows.append(Row(f"{conv.ours}/kernel", f"{prefix}_w", tables.kernel))
        given = {ours: f"{prefix}_bn_{name}" for ours, name in their.items()}
        rows += _norm_rows(conv, given, backbone.norm_epsilon)
    return Table(rows, CAFFE2_IGNORED)


def is_grouped(weights):
    """Whether Caffe2's blobs, {name: array}, are of a ResNeXt: its 3x3 kernels see a part of the channels.

    detectron2's copy of `X-101-32x8d.pkl` was trained with torchvision's rules, but for BGR: a standard
    deviation of each channel, and the stride in the 3x3 convolution.
    """
    shape = np.shape(weights.get("res2_0_branch2b_w"))
    return len(shape) == 4 and shape[1] < shape[0]


def folded(config):
    """Table of a torchvision ResNet whose normalisation was folded into weight and bias, without `layer4`.

    gamma is 1, beta the bias, the mean 0, the variance 1 - epsilon. The rows reach to C4; C5 is not there.

    Args:
        config: a `config.Model`.
    """
    backbone = config.backbone
    tables.check_batch_norm(backbone)
    rows = []
    for conv in tables.resnet_convs(backbone, last_stage=4):
        prefix = "conv1" if conv.part == "stem" else f"layer{conv.stage - 1}.{conv.block}.{conv.part}"
        prefix = prefix.replace("shortcut", "downsample.0")
        rows.append(Row(f"{conv.ours}/kernel", f"{prefix}.weight", tables.kernel))
        rows += _norm_rows(conv, {"beta": f"{prefix}.bias"}, backbone.norm_epsilon)
    return Table(rows, ())


def keras_applications(config, weights):
    """Table of `keras.applications.ResNet50` and `ResNet101` (not V2, which normalises before convolving).

    They take BGR (`preprocess_input`, mode "caffe"): the stem is turned. Their convolutions have biases,
    which ours have not: they go into the mean, mean - bias. The names are the model's own variable paths
    (`variables_of`), or those of the published `.h5` files.

    Args:
        config: a `config.Model`; right with `backbone.stride_in_1x1` true and `norm_epsilon` 1.001e-5.
        weights: {name: array} of the file; the biases are read here, the rest by the rows.

    Raises:
        ValueError: the config has group normalisation, or a bias is missing.
    """
    tables.check_batch_norm(config.backbone)
    rows = []
    for conv in tables.resnet_convs(config.backbone):
        layer = "conv1" if conv.part == "stem" else f"conv{conv.stage}_block{conv.block + 1}_{_number(conv)}"
        name = _keras_name(weights, f"{layer}_conv", "bias")
        if name not in weights:
            raise ValueError(
                f"Expected the bias `{name}`: each convolution of keras.applications.ResNet50 or ResNet101 "
                f"has one. Received: {len(weights)} names without it"
            )
        kernel = _from_bgr if conv.part == "stem" else tables.same
        rows += _keras_rows(conv, layer, weights, kernel, _less(weights[name]))
    return Table(rows, ("*_conv/bias", "*_conv/bias:0", "predictions/*"))


def keras_hub(config):
    """Table of a KerasHub `ResNetBackbone`: block types basic_block and bottleneck_block.

    Its names are its variable paths (`variables_of`). The `_vd` types have a stem of three convolutions, the
    ones with pre-activation no `conv1_bn`: strict loading refuses both.

    Args:
        config: a `config.Model`; right with `norm_epsilon` 1e-5.
    """
    tables.check_batch_norm(config.backbone)
    rows = []
    for conv in tables.resnet_convs(config.backbone):
        layer = "conv1" if conv.part == "stem" else f"stack{conv.stage - 2}_block{conv.block}_{_number(conv)}"
        rows += _keras_rows(conv, layer, ())
    return Table(rows, ("predictions/*",))


def variables_of(model):
    """{variable path: array} of a built Keras model."""
    return {variable.path: np.asarray(variable) for variable in model.variables}


def _caffe2_norm_names(names):
    if "res_conv1_bn_gamma" in names:
        return dict(zip(NORM, ("gamma", "beta", "running_mean", "running_var")))
    if "res_conv1_bn_rm" in names:
        return dict(zip(NORM, ("s", "b", "rm", "riv")))
    return {"gamma": "s", "beta": "b"}


def _norm_rows(conv, given, epsilon):
    """Rows of a normalisation of which the file has `given`, {our name: theirs}; the rest divides by 1."""
    constants = {"gamma": 1.0, "moving_mean": 0.0, "moving_variance": 1.0 - epsilon}
    rows = []
    for name in NORM:
        convert = tables.same if name in given else tables.constant(constants[name], conv.filters)
        rows.append(Row(f"{conv.ours}/normalization/{name}", given.get(name), convert))
    return rows


def _number(conv):
    """Keras counts the shortcut as 0."""
    return 0 if conv.part == "shortcut" else int(conv.part[-1])


def _keras_name(weights, layer, kind):
    """A variable's path, or its place in a `.h5` file as Keras 2 wrote it when that is there."""
    old = f"{layer}/{layer}/{kind}:0"
    return old if old in weights else f"{layer}/{kind}"


def _from_bgr(array):
    return tables.same(array)[:, :, ::-1]


def _keras_rows(conv, layer, weights, kernel=tables.same, mean=tables.same):
    rows = [Row(f"{conv.ours}/kernel", _keras_name(weights, f"{layer}_conv", "kernel"), kernel)]
    for kind in NORM:
        name = _keras_name(weights, f"{layer}_bn", kind)
        convert = mean if kind == "moving_mean" else tables.same
        rows.append(Row(f"{conv.ours}/normalization/{kind}", name, convert))
    return rows


def _less(bias):
    bias = tables.same(bias)
    return lambda mean: tables.same(mean) - bias
