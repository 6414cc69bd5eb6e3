"""Files to batches: COCO json and images in, `tf.data.Dataset` of (inputs, targets) out."""
