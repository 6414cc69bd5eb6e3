"""From detections to average precision, COCO's and others'; knows nothing of model or data."""

from keras_mrcnn.evaluation.cityscapes import CityscapesEvaluator
from keras_mrcnn.evaluation.coco import CocoEvaluator
from keras_mrcnn.evaluation.lvis import LvisEvaluator
from keras_mrcnn.evaluation.table import format_table
from keras_mrcnn.evaluation.voc import VocEvaluator

__all__ = ["CityscapesEvaluator", "CocoEvaluator", "LvisEvaluator", "VocEvaluator", "format_table"]
