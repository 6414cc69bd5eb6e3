"""Models with weights from elsewhere: the rules of the source and all of its weights, or an error."""

import keras

from keras_mrcnn import config as configs
from keras_mrcnn.backbones.resnet import DEPTHS
from keras_mrcnn.model import MaskRCNN
from keras_mrcnn.weights import detectron2, imagenet, presets, sources, tables, torchvision
from keras_mrcnn.weights.files import read_weights
from keras_mrcnn.weights.load import load_table

OF_THE_CLASSES = ("box_head/classes", "box_head/deltas", "mask_head/logits")
C5 = ("backbone/c5",)
# What the weights of a backbone were trained with: `config.Model` must say so.
TORCH = {
    "input.mean": [123.675, 116.28, 103.53],
    "input.std": [58.395, 57.12, 57.375],
    "backbone.stride_in_1x1": False,
    "backbone.norm_epsilon": 1e-5,
}
MSRA = {**TORCH, "input.std": [1.0, 1.0, 1.0], "backbone.stride_in_1x1": True}
KERAS = {**MSRA, "input.mean": [123.68, 116.779, 103.939], "backbone.norm_epsilon": 1.001e-5}


def from_preset(source, num_classes=None, categories=None, like=None, overrides=(), **options):
    """The model and the `Report` of `MaskRCNN.from_preset`, which see."""
    known = like or (source if source in presets.published() else None)
    if known:
        settings, own = presets.preset_model(known)  # says "not available" before anything is fetched
    path = sources.resolve(source)
    if not known:
        twin = _own_model(path)
        settings, own = twin.config, _plain(twin.categories)
    if num_classes and categories:
        raise ValueError("Give `num_classes` or `categories`, not both.")
    if num_classes and num_classes != len(own):
        categories = [f"class {index + 1}" for index in range(num_classes)]
    if not (categories or own):
        raise ValueError(f"{source} is a backbone and knows no classes: give `categories` or `num_classes`.")
    model = MaskRCNN(configs.override(settings, overrides), categories or own, **options)
    if not own:
        return model, load_backbone(model, path)
    if known:
        weights = read_weights(path)
        table = _detector_table(presets.preset(known).family, model.config, len(own), weights)
    else:
        weights = imagenet.variables_of(twin)
        table = tables.Table([tables.Row(name, name, tables.same) for name in weights], ("seed_generator*",))
    same_classes = [c.name for c in model.categories] == [c["name"] for c in own]
    return model, load_table(model, weights, table, path, () if same_classes else OF_THE_CLASSES)


def _own_model(path):
    """A model of this package, from a `.keras` file or a folder that `save_to_preset` made."""
    if path.is_dir():
        settings, categories, weights = sources.load_preset_folder(path)
        model = MaskRCNN(settings, categories)
        model.load_weights(weights)
        return model
    if path.suffix == ".keras":
        return keras.models.load_model(path, compile=False)
    raise ValueError(
        f"{path} does not say which model it is for. Name the published weights that it is like, "
        f"like='torchvision/mask_rcnn_r50_fpn'; there are: {', '.join(presets.published())}."
    )


def _plain(categories):
    return [{"id": category.id, "name": category.name} for category in categories]


def _detector_table(family, config, num_classes, weights):
    """The name table of a family of detectors; classes as in the file."""
    if family.startswith("torchvision."):
        return torchvision.detector(config, num_classes, names=weights)
    return detectron2.detector(config, num_classes)


def load_backbone(model, source):
    """Weights of an ImageNet classifier into the backbone of a model.

    Args:
        model: `MaskRCNN`.
        source: whatever `sources.resolve` takes: the name of published weights, a file of torchvision, timm,
            MSRA or keras.applications; or a Keras model of `keras.applications` or KerasHub.

    Returns:
        `Report`; weights that the file has not (C5 in a file without it) are named in it.

    Raises:
        ValueError: the model's config contradicts how these weights were trained, or they do not fit; nothing
            is loaded then.
    """
    if isinstance(source, keras.Model):
        weights, path = imagenet.variables_of(source), source.name
    else:
        path = sources.resolve(source)
        weights = read_weights(path)
    table, rules, anew = _backbone_table(model.config, weights)
    _check_rules(model.config, rules, path)
    return load_table(model.backbone, weights, table, path, anew)


def _backbone_table(config, weights):
    """The table for an ImageNet file, told by its names; its rules; what it does not hold."""
    if "conv1_w" in weights:
        return imagenet.caffe2(config, weights), MSRA, ()
    if "conv1.bias" in weights and "bn1.weight" not in weights:
        return imagenet.folded(config), TORCH, C5
    if any(name.startswith("stack0_block0") for name in weights):
        return imagenet.keras_hub(config), TORCH, ()
    if any(name.startswith("conv2_block1_1_conv") for name in weights):
        return imagenet.keras_applications(config, weights), KERAS, ()
    return torchvision.resnet(config), TORCH, ()


def _check_rules(config, rules, source):
    if not DEPTHS[config.backbone.name][1]:  # basic blocks have no 1x1 convolution
        rules = {key: value for key, value in rules.items() if key != "backbone.stride_in_1x1"}
    wrong = []
    for key, value in rules.items():
        station, name = key.split(".")
        given = getattr(getattr(config, station), name)
        if given != value:
            wrong.append(f"model.{key} is {given}, these weights were trained with {value}")
    if wrong:
        raise ValueError(f"{source} would load and detect nonsense; nothing was loaded. " + "; ".join(wrong))
