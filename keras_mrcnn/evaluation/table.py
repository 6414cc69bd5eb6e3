"""Scores as text for the terminal."""

import math

from keras_mrcnn.evaluation.coco import IOU_TYPES

_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR")
_CLASS_COLUMNS = ("AP", "AP50")


def format_table(result, per_class=True):
    """What an evaluator's `result` gave, as a table in percent; "-" where there is no true object.

    Args:
        result: dict of `CocoEvaluator.result`, or of another evaluator; it has the columns it has scores for.
        per_class: whether a second table with a row for every class follows.

    Returns:
        str of several lines, without a final line break.
    """
    iou_types = [iou_type for iou_type in IOU_TYPES if iou_type in result]
    columns = [key for key in _COLUMNS if any(key in result[iou_type] for iou_type in iou_types)]
    rows = [["%", *columns]]
    for iou_type in iou_types:  # keypoints have no APs
        rows.append([iou_type, *(_percent(result[iou_type].get(key, math.nan)) for key in columns)])
    text = _align(rows)
    if per_class and result["per_class"]:
        keys = [key for key in _CLASS_COLUMNS if key in columns]
        header = [f"{iou_type} {key}" for iou_type in iou_types for key in keys]
        rows = [["class", "objects", *header]]
        for name, row in result["per_class"].items():
            scores = [_percent(row[iou_type][key]) for iou_type in iou_types for key in keys]
            rows.append([name, str(row["objects"]), *scores])
        text += "\n\n" + _align(rows)
    return text


def _percent(value):
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _align(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)
