"""Test-time augmentation: one image seen at several scales, and mirrored (Appendix B, Tables 8 and 9).

Boxes are found in every view and joined by non-maximum suppression; then each view makes the masks and the
keypoints' heat maps of the joined boxes, and the masks' probabilities and the heat maps' logits are averaged.
Keypoints are decoded in source pixels: both as Facebook's Detectron has it (`core/test.py`, HM_AVG).
"""

import dataclasses

import numpy as np

from keras_mrcnn.data.images import load_image, network_frame, path_of
from keras_mrcnn.ops import nms
from keras_mrcnn.results import Results


def detect(model, image, short_edges, flip):
    """What is in an image, from several views of it.

    Args:
        model: `MaskRCNN`.
        image: as for `data.images.load_image`.
        short_edges: list of int, pixels; the long edge may be longer in proportion to `config.input`.
        flip: bool, every scale also mirrored.

    Returns:
        `Results` in the pixels of the source.
    """
    source = load_image(image, len(model.config.input.mean))
    height, width = source.shape[:2]
    views = [
        _View(model.config.input, source, edge, mirrored)
        for edge in short_edges
        for mirrored in ([False, True] if flip else [False])
    ]
    found = [_in_source(view, model.predict_on_batch(view.inputs), width) for view in views]
    boxes, scores, classes = (np.concatenate(values) for values in zip(*found, strict=True))
    settings = model.config.detections
    kept, valid = nms(
        boxes[None],
        scores[None],
        classes[None],
        np.ones([1, len(boxes)], bool),
        settings.max_detections,
        settings.nms_iou,
    )
    kept = np.asarray(kept)[0][np.asarray(valid)[0]]
    boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
    detections = {"boxes": boxes, "scores": scores, "classes": classes, "num_detections": len(kept)}
    means = {}
    for view in views:
        for name, maps in _maps(view, model, boxes, classes, width).items():
            means[name] = means.get(name, 0) + maps / len(views)
    if model.mask_head:
        detections["masks"] = means["masks"]
    if model.keypoint_head:
        of_class = _has_keypoints(model, classes)[None]
        points = model.region_keypoints(means["heatmaps"], boxes[None], classes[None], of_class)
        detections["keypoints"] = np.asarray(points)[0]
    return Results.from_detections(
        detections,
        (height, width),
        (height, width),
        model.categories,
        image=source,
        image_id=path_of(image),
        paste=model.config.mask_head.paste,
    )


class _View:
    """An image at one scale, perhaps mirrored: the model's inputs, and its pixels per source pixel."""

    def __init__(self, config, source, short_edge, mirrored):
        long_edge = config.long_edge * short_edge / config.short_edge
        config = dataclasses.replace(config, short_edge=short_edge, long_edge=long_edge)
        self.inputs = network_frame([source[:, ::-1] if mirrored else source], config)
        self.mirrored = mirrored
        self.scale = self.inputs["image_sizes"][0][::-1] / np.array(source.shape[1::-1], np.float32)


def _in_source(view, outputs, width):
    """Boxes, scores and classes of a view's detections, boxes in source pixels."""
    count = int(outputs["num_detections"][0])
    boxes = np.asarray(outputs["boxes"])[0, :count] / np.tile(view.scale, 2).astype(np.float32)
    boxes = _mirror(boxes, width) if view.mirrored else boxes
    return boxes, np.asarray(outputs["scores"])[0, :count], np.asarray(outputs["classes"])[0, :count]


def _maps(view, model, boxes, classes, width):
    """What a view makes of boxes in source pixels, not mirrored.

    Masks float32 `[D, M, M]`, and heatmaps float32 `[N, S, S, K]` of those whose class has keypoints.
    """
    boxes = _mirror(boxes, width) if view.mirrored else boxes
    boxes = boxes * np.tile(view.scale, 2).astype(np.float32)
    given = {**view.inputs, "boxes": boxes[None], "classes": classes[None]}
    maps = model.maps_of_boxes.predict_on_batch(given)
    if model.mask_head:
        maps["masks"] = maps["masks"][0]
    if view.mirrored:
        maps = {name: values[:, :, ::-1] for name, values in maps.items()}
        if model.keypoint_head:  # the left hand's map is the right hand's
            count = maps["heatmaps"].shape[-1]
            partners = [[*c.mirrored(), *range(len(c.keypoints), count)] for c in model.categories]
            own = np.array(partners)[classes[_has_keypoints(model, classes)]]
            maps["heatmaps"] = np.take_along_axis(maps["heatmaps"], own[:, None, None], axis=-1)
    return maps


def _has_keypoints(model, classes):
    """bool `[D]`."""
    return np.array(model.region_keypoints.counts)[classes] > 0


def _mirror(boxes, width):
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
