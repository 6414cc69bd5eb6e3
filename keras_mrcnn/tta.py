"""Test-time augmentation: one image seen at several scales, and mirrored (Appendix B, Table 8, last row).

Boxes are found in every view and joined by non-maximum suppression; then each view makes the masks of the
joined boxes, and the probabilities are averaged.
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

    Raises:
        ValueError: the model has a keypoint head.
    """
    if model.keypoint_head:
        raise ValueError(
            "Keypoints are not joined over several views: detect without `short_edges` and `flip`."
        )
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
    if model.mask_head:
        detections["masks"] = np.mean([_masks(view, model, boxes, classes, width) for view in views], axis=0)
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


def _masks(view, model, boxes, classes, width):
    """float32 `[D, M, M]`: the masks that a view makes of boxes in source pixels."""
    boxes = _mirror(boxes, width) if view.mirrored else boxes
    boxes = boxes * np.tile(view.scale, 2).astype(np.float32)
    given = {**view.inputs, "boxes": boxes[None], "classes": classes[None]}
    masks = np.asarray(model.masks_of_boxes.predict_on_batch(given))[0]
    return masks[:, :, ::-1] if view.mirrored else masks


def _mirror(boxes, width):
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
