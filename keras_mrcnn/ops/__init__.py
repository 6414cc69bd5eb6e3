"""The operations that the layers share, one public function each."""

from keras_mrcnn.ops.nms import nms
from keras_mrcnn.ops.roi_align import multilevel_roi_align, roi_align, roi_levels
from keras_mrcnn.ops.subset import RandomSubset, random_subset

__all__ = ["RandomSubset", "multilevel_roi_align", "nms", "random_subset", "roi_align", "roi_levels"]
