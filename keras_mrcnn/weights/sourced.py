"""Models with weights from elsewhere: the rules of the source and all of its weights, or an error."""

import itertools
import json
import zipfile

import keras
import numpy as np

from keras_mrcnn import config as configs
from keras_mrcnn.model import MaskRCNN
from keras_mrcnn.residual import DEPTHS
from keras_mrcnn.weights import detectron2, imagenet, presets, sources, tables, torchvision
from keras_mrcnn.weights.files import read_weights
from keras_mrcnn.weights.load import is_weight, load_table

OF_THE_CLASSES = ("box_head/classes", "box_head/deltas", "mask_head/logits")
OF_THE_KEYPOINTS = ("keypoint_head/upsample",)
BODY = ("backbone/", "stage5/", "rpn_backbone/")  # the stations of which an ImageNet network has weights
C5 = ("backbone/c5", "stage5/c5", "rpn_backbone/c5")
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
    _check_classes(num_classes, categories)
    known = like or (source if source in presets.published() else None)
    if known:  # all that can be refused is refused before anything is fetched
        settings, own = presets.preset_model(known)
        settings = configs.override(settings, overrides)
        if not (own or categories or num_classes):
            raise ValueError(
                f"{known} is a backbone and knows no classes: give `categories` or `num_classes`."
            )
        path = sources.resolve(source)
        weights = read_weights(path)
        own, named = _classes_of(weights, own, _classifier_inputs(settings))
        own, points_named = _keypoints_of(weights, own, settings.keypoint_head.channels)
    else:
        path = sources.resolve(source)
        twin = _own_model(path)
        settings = configs.override(twin.config, overrides)
        own, named, points_named = [category.to_dict() for category in twin.categories], True, True
        weights = {variable.path: np.asarray(variable) for variable in twin.variables if is_weight(variable)}
    if num_classes and num_classes != len(own):
        categories = _numbered(num_classes, own)
    model = MaskRCNN(settings, categories or own, **options)
    if not own:
        return model, _load_body(model, weights, path)
    if known:
        table = _detector_table(presets.preset(known).family, settings, len(own), weights)
    else:
        table = tables.Table([tables.Row(name, name, tables.same) for name in weights], ())
    given, anew = [category.to_dict() for category in model.categories], ()
    if not _alike([c["name"] for c in given], [c["name"] for c in own], named):
        anew += OF_THE_CLASSES
    if not _alike(_heatmaps(given), _heatmaps(own), points_named):
        anew += OF_THE_KEYPOINTS
    return model, load_table(model, weights, table, path, anew)


def _alike(ours, theirs, named):
    """Whether two lists of names agree; where theirs are not known, in their number."""
    return ours == theirs if named else len(ours) == len(theirs)


def _heatmaps(categories):
    """For each heat map the names of the keypoints that it shows, a list of sets: the classes share them."""
    names = (category.get("keypoints", []) for category in categories)
    return [set(of_map) - {None} for of_map in itertools.zip_longest(*names)]


def _check_classes(num_classes, categories):
    if num_classes is not None and categories is not None:
        raise ValueError("Give `num_classes` or `categories`, not both.")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"`num_classes` is at least 1, without background. Received: {num_classes}")
    if categories is not None and not len(categories):
        raise ValueError("`categories` names at least one class. Received: an empty list.")


def _classifier_inputs(config):
    """What the classifier sees of each region, in numbers."""
    head = config.box_head
    if head.fcs:
        return head.units
    if head.convs:
        return head.channels
    if config.backbone.features == "fpn":
        return config.fpn.channels
    return 2048 if DEPTHS[config.backbone.name].bottlenecks else 512


def _classes_of(weights, published, inputs):
    """The classes of a file, and whether their names are known.

    A file of other classes than the published one, as fine-tuning leaves it, tells only how many they are.
    """
    shape = np.shape(weights.get(tables.CLASSIFIER))
    if not published or len(shape) != 2 or shape[0] < 2 or shape[1] != inputs:
        return published, True  # if this is wrong, strict loading says so
    count = shape[0] - 1
    return (published, True) if count == len(published) else (_numbered(count, published), False)


def _keypoints_of(weights, own, channels):
    """The classes of a file with its keypoints, and whether their names are known; as `_classes_of`."""
    shape = next((np.shape(weights[name]) for name in tables.HEATMAPS if name in weights), ())
    known = len(_heatmaps(own))
    if not known or shape[1:2] == (known,) or shape != (channels, *shape[1:2], 4, 4):
        return own, True
    points = [f"keypoint {index + 1}" for index in range(shape[1])]
    return [{"id": c["id"], "name": c["name"], "keypoints": points} for c in own], False


def _numbered(count, like):
    """Classes without names; each has the keypoints of that class of `like` that has the most."""
    most = max(like, key=lambda category: len(category.get("keypoints", [])), default={})
    common = {key: most[key] for key in ("keypoints", "skeleton", "flip_pairs") if key in most}
    return [{"id": index + 1, "name": f"class {index + 1}", **common} for index in range(count)]


def _own_model(path):
    """A model of this package, from a `.keras` file or a folder that `save_to_preset` made."""
    if path.is_dir():
        settings, categories, weights = sources.load_preset_folder(path)
        read_weights(weights)  # says what is wrong with a file that is damaged or something else
    elif path.suffix == ".keras":
        settings, categories, weights = _keras_file(path)
    else:
        raise ValueError(
            f"{path} does not say which model it is for. Give `like`, the name of the published weights "
            "whose rules and names it follows: like='torchvision/mask_rcnn_r50_fpn', or another that "
            "`mrcnn presets` lists."
        )
    model = MaskRCNN(settings, categories)
    model.load_weights(weights)
    return model


def _keras_file(path):
    """The config, the categories and the path of the weights of a `MaskRCNN` that was saved whole."""
    read_weights(path)  # as above
    with zipfile.ZipFile(path) as archive:
        saved = json.loads(archive.read("config.json")) if "config.json" in archive.namelist() else None
    saved = saved if isinstance(saved, dict) else {}
    if saved.get("registered_name") != keras.saving.get_registered_name(MaskRCNN):
        kind = saved.get("class_name")
        raise ValueError(f"{path} is not a MaskRCNN of this package. Received: a model of the class {kind}")
    try:
        given = saved["config"]
        return configs.model_from_dict(given["config"]), given["categories"], path
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The model in {path} does not fit this version of keras_mrcnn: {error}") from error


def _detector_table(family, config, num_classes, weights):
    """The name table of a family of detectors; classes as in the file."""
    if family.startswith("torchvision."):
        return torchvision.detector(config, num_classes, names=weights)
    return detectron2.detector(config, num_classes)


def load_backbone(model, source):
    """Weights of an ImageNet classifier into the backbone of a model.

    Stage 5 of the C4 models and a backbone that is the RPN's own are filled from the same file.

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
    return _load_body(model, weights, path, BODY)


def _load_body(model, weights, source, within=()):
    """Fills the backbone. The report names the rest of the model too, unless it is only about `within`."""
    config = model.config
    if config.backbone.name not in DEPTHS:
        raise ValueError(
            "These weights are for a ResNet. `model.backbone.load()` fills a network of keras.applications. "
            f"Received: model.backbone.name={config.backbone.name!r}"
        )
    table, rules, anew = _backbone_table(config, weights, source)
    _check_rules(config, rules, source)
    if config.rpn.own_features:
        own = [row for row in table.rows if row.ours.startswith("backbone/")]
        table.rows.extend(row._replace(ours=f"rpn_{row.ours}") for row in own)
    rest = [variable.path for variable in model.variables if not variable.path.startswith(BODY)]
    return load_table(model, weights, table, source, (*anew, *rest), within)


def _backbone_table(config, weights, source):
    """The table for an ImageNet file, told by its names; its rules; what it does not hold."""
    if "conv1_w" in weights:
        rules = TORCH if imagenet.is_grouped(weights) else MSRA
        return imagenet.caffe2(config, weights), rules, ()
    if "conv1.bias" in weights and "bn1.weight" not in weights:
        return imagenet.folded(config), TORCH, C5
    if any(name.startswith("stack0_block0") for name in weights):
        return imagenet.keras_hub(config), TORCH, ()
    if any(name.startswith("conv2_block1_1_conv") for name in weights):
        return imagenet.keras_applications(config, weights), KERAS, ()
    if "conv1.weight" in weights:
        return torchvision.resnet(config), TORCH, ()
    raise ValueError(
        f"{source} is no classifier that is known here: torchvision's and timm's ResNets, MSRA's, those of "
        f"keras.applications and KerasHub. Received: {len(weights)} names, {', '.join(list(weights)[:3])} ..."
    )


def _check_rules(config, rules, source):
    if not DEPTHS[config.backbone.name].bottlenecks:  # basic blocks have no 1x1 convolution
        rules = {key: value for key, value in rules.items() if key != "backbone.stride_in_1x1"}
    wrong = []
    for key, value in rules.items():
        station, name = key.split(".")
        given = getattr(getattr(config, station), name)
        if given != value:
            wrong.append(f"model.{key} is {given}, these weights were trained with {value}")
    if wrong:
        raise ValueError(
            f"{source} goes with other rules than this model's. It would detect nonsense, and nothing was "
            "loaded: " + "; ".join(wrong)
        )
