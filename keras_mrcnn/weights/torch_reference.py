"""What torchvision itself computes with some weights: a golden file made on the spot."""

import numpy as np

from keras_mrcnn.weights import presets, tables
from keras_mrcnn.weights.golden import HEATMAPS, Golden

BUILDERS = {  # family: the function of torchvision.models.detection
    "torchvision.faster_rcnn": "fasterrcnn_resnet50_fpn",
    "torchvision.faster_rcnn_v2": "fasterrcnn_resnet50_fpn_v2",
    "torchvision.mask_rcnn": "maskrcnn_resnet50_fpn",
    "torchvision.mask_rcnn_v2": "maskrcnn_resnet50_fpn_v2",
    "torchvision.keypoint_rcnn": "keypointrcnn_resnet50_fpn",
}


def import_torch():
    """The modules torch and torchvision.models.detection; an ImportError says what to install."""
    try:
        import torch
        from torchvision.models import detection
    except ImportError as error:
        raise ImportError(
            "To verify with torch, torch and torchvision must be installed beside keras_mrcnn: "
            "pip install torchvision"
        ) from error
    return torch, detection


def torchvision_golden(name, weights, config, images):
    """Runs torchvision's model.

    Args:
        name: of the published weights whose model it is, "torchvision/mask_rcnn_r50_fpn".
        weights: {name in the file: array}.
        config: `config.Model` of that model.
        images: list of uint8 `[H, W, 3]`, RGB.

    Returns:
        `Golden` with one case, "torch".

    Raises:
        ImportError: torch or torchvision is not installed.
        ValueError: the model is not one of torchvision's.
    """
    family = presets.preset(name).family
    if family not in BUILDERS:
        raise ValueError(f"torchvision has no model for {name}. Verify with a golden file instead.")
    torch, detection = import_torch()
    heads = {"num_classes": len(weights[tables.CLASSIFIER])}
    if tables.HEATMAPS[0] in weights:
        heads["num_keypoints"] = weights[tables.HEATMAPS[0]].shape[1]
    model = getattr(detection, BUILDERS[family])(
        weights=None,
        weights_backbone=None,
        min_size=config.input.short_edge,
        max_size=config.input.long_edge,
        **heads,
    )
    model.load_state_dict({key: torch.from_numpy(np.array(array)) for key, array in weights.items()})
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = config.backbone.norm_epsilon or 1e-30  # torch takes no 0; added to float32 it is one
    arrays = {f"images/{index}": image for index, image in enumerate(images)}
    _watch(model.eval(), arrays)
    with torch.inference_mode():
        found = model([torch.from_numpy(image).permute(2, 0, 1) / 255 for image in images])
    names = {f"det/{kind}": kind for kind in ("boxes", "labels", "scores")}
    if model.roi_heads.has_keypoint():
        names |= {"keypoint/keypoints": "keypoints", "keypoint/scores": "keypoints_scores"}
    for index, result in enumerate(found):
        for key, kind in names.items():
            arrays[f"{key}/{index}"] = result[kind].numpy()
    edges = {"short_edge": config.input.short_edge, "long_edge": config.input.long_edge}
    about = {"background_first": True, "channels": "RGB", "arrays": {}, "cases": {"torch": edges}}
    return Golden({f"torch/{key}": value for key, value in arrays.items()}, about)


def _watch(model, arrays):
    """Lets every station of torchvision's model leave what it puts out in `arrays`."""

    def leave(module, names):
        def hook(_, __, output):
            for key, value in names(output).items():
                arrays[key] = value.detach().numpy()

        module.register_forward_hook(hook)

    def each(prefix, values):
        return {f"{prefix}/{index}": value for index, value in enumerate(values)}

    def levels(prefix, values, first=2):
        return {f"{prefix}{level}": value for level, value in enumerate(values, first)}

    leave(model.transform, lambda output: {"input/tensor": output[0].tensors})
    leave(model.backbone.body, lambda output: levels("body/c", output.values()))
    leave(model.backbone, lambda output: levels("fpn/p", output.values()))
    leave(
        model.rpn.head,
        lambda output: levels("rpn/objectness/p", output[0]) | levels("rpn/deltas/p", output[1]),
    )
    leave(model.rpn, lambda output: each("rpn/proposals", output[0]))
    heads = model.roi_heads
    leave(heads.box_roi_pool, lambda output: {"box/pooled": output})
    leave(heads.box_head, lambda output: {"box/head": output})
    leave(
        heads.box_predictor,
        lambda output: {"box/class_logits": output[0], "box/box_regression": output[1]},
    )
    kept = []
    if heads.has_mask():
        leave(heads.mask_roi_pool, lambda output: {"mask/pooled": output})
        heads.mask_predictor.register_forward_hook(lambda _, __, output: kept.append(output))

    if heads.has_keypoint():
        leave(heads.keypoint_roi_pool, lambda output: {"keypoint/pooled": output})
        heads.keypoint_predictor.register_forward_hook(lambda _, __, output: kept.append(output))

    def detections(output):
        boxes, labels = ([result[kind] for result in output[0]] for kind in ("boxes", "labels"))
        found = each("det/boxes_input", boxes)
        if not kept:
            return found
        of_images = kept.pop().split([len(label) for label in labels])
        if heads.has_keypoint():
            first = {"keypoint/heatmap_first": of_images[0][0]} if len(labels[0]) else {}
            return found | first | each("keypoint/heatmaps_sample", [maps[HEATMAPS] for maps in of_images])
        own = [mask[range(len(label)), label] for mask, label in zip(of_images, labels, strict=True)]
        return found | each("mask/logits", own)

    leave(heads, detections)
