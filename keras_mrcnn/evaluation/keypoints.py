"""COCO's keypoint score: what takes the place of the IoU there, the OKS, and the figures made of it.

OKS of a detection and a true object: the mean over its labelled keypoints of
exp(-d^2 / (2 area (2 sigma)^2)), d the distance in pixels and area that of the object. Each category is
matched for itself, because its keypoints are its own.
"""

import numpy as np

from keras_mrcnn.evaluation import backends

MAX_DETECTIONS = 20  # per image and category, COCO's
AREAS = {"": 0, "m": 1, "l": 2}  # all, 32^2 to 96^2, over 96^2 pixels; small objects are not scored
COCO_SIGMAS = {
    "nose": 0.026, "left_eye": 0.025, "right_eye": 0.025, "left_ear": 0.035, "right_ear": 0.035,
    "left_shoulder": 0.079, "right_shoulder": 0.079, "left_elbow": 0.072, "right_elbow": 0.072,
    "left_wrist": 0.062, "right_wrist": 0.062, "left_hip": 0.107, "right_hip": 0.107,
    "left_knee": 0.087, "right_knee": 0.087, "left_ankle": 0.089, "right_ankle": 0.089,
}  # fmt: skip


def category_sigmas(categories, sigmas):
    """The sigmas of every category that has keypoints.

    Args:
        categories: objects with `name` and, where there are any, `keypoints` (their names).
        sigmas: a number for all keypoints; a list with one for each; a dict from categories' names to these;
            or None: COCO's, for COCO's own 17 keypoints.

    Returns:
        list, one for each category: float64 `[K]`, or None of a category without keypoints.

    Raises:
        ValueError: no category has keypoints, or a category's sigmas are missing, too many or too few, or
            not positive.
    """
    found = []
    for category in categories:
        names = tuple(getattr(category, "keypoints", ()))
        own = sigmas.get(category.name) if isinstance(sigmas, dict) else sigmas
        if own is None and names == tuple(COCO_SIGMAS):
            own = list(COCO_SIGMAS.values())
        elif own is None and names:
            raise ValueError(
                "`sigmas` must be given for keypoints that are not COCO's: a number for all, a list with one "
                "for each, or a dict of these by category; 0.05 is a fair start. "
                f"Received: sigmas={sigmas}, category {category.name!r} with {len(names)} keypoints"
            )
        if not names:
            found.append(None)
            continue
        own = np.full(len(names), own, np.float64) if np.ndim(own) == 0 else np.array(own, np.float64)
        if own.shape != (len(names),) or not (own > 0).all():
            raise ValueError(
                f"`sigmas` of category {category.name!r} must be {len(names)} positive numbers, one for each "
                f"keypoint, or one for all. Received: {own.tolist()}"
            )
        found.append(own)
    if all(own is None for own in found):
        raise ValueError("`iou_types` has keypoints, but no category has any.")
    return found


def truth_row(keypoints):
    """What a true object has for this score, from its `[K, 3]` (x, y, v), where pixel i covers [i, i + 1]."""
    points = np.asarray(keypoints, np.float64)
    labelled = points[:, 2] > 0
    points = np.where(labelled[:, None], points - [0.5, 0.5, 0], 0)
    return {"keypoints": points.round(3).ravel().tolist(), "num_keypoints": int(labelled.sum())}


def result_row(result, count):
    """What a detection has for this score; its area is that of the points' extent, as in pycocotools.

    Args:
        result: dict in COCO's result format.
        count: int, keypoints of its category.

    Raises:
        ValueError: `keypoints` is missing or not 3 x count numbers.
    """
    given = result.get("keypoints")
    if given is None or np.shape(given) != (3 * count,):
        came = "none" if given is None else f"an array of shape {np.shape(given)}"
        raise ValueError(
            f"Results of category_id={result['category_id']!r} need `keypoints`, 3 x {count} numbers "
            f"(x, y, v), to be scored (`iou_types` has 'keypoints'). Received: {came}, "
            f"image_id={result['image_id']!r}"
        )
    points = np.asarray(given, np.float64).reshape(-1, 3)
    low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    width, height = (high - low).tolist()
    keypoints = {"keypoints": points.ravel().tolist(), "num_keypoints": count}
    return {**keypoints, "bbox": [*low.tolist(), width, height], "area": width * height}


def summary(precision, recall):
    """COCO's ten figures.

    Args:
        precision: `[10 thresholds, 101 recall points, categories, 3 areas]`, -1 where no true object is.
        recall: `[10, categories, 3]`.

    Returns:
        dict of float: `AP`, `AP50`, `AP75`, `APm`, `APl`, and the same of `AR`.
    """
    figures = {}
    for name, values in (("AP", precision), ("AR", recall)):
        for suffix, area in AREAS.items():
            figures[name + suffix] = backends.mean(values[..., area])
            if not suffix:
                figures[name + "50"] = backends.mean(values[0, ..., area])
                figures[name + "75"] = backends.mean(values[5, ..., area])
    return figures
