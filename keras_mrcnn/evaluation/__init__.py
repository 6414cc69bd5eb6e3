"""From detections to COCO's average precision; knows nothing of model or data."""

from keras_mrcnn.evaluation.coco import CocoEvaluator
from keras_mrcnn.evaluation.table import format_table

__all__ = ["CocoEvaluator", "format_table"]
