"""The Model Garden side of compare_torchvision.py; runs in an environment with tf-models-official.

Training only. Model Garden's own task builds the model, the losses and the step.
"""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow is imported

import numpy as np
import tensorflow as tf
import tf_keras
import work
from official.modeling import optimization, performance
from official.vision.configs import maskrcnn as configs
from official.vision.ops import anchor, preprocess_ops
from official.vision.tasks.maskrcnn import MaskRCNNTask

WEIGHT_DECAY = 1e-4
SCORE_DEVIATION = 0.01  # of the other sides' RPN score weights; its own 1e-5 would tie bfloat16 scores
FROZEN_UNTIL = "block_group_l2"  # what the backbone calls C2


def task(height, width):
    """Its Mask R-CNN task for images of that size, with the numbers of `work`."""
    model = configs.MaskRCNN(num_classes=work.CLASSES + 1, input_size=[height, width, 3])
    model.norm_activation.use_sync_bn = False
    model.detection_head.num_convs, model.detection_head.num_fcs = 0, 2
    model.roi_generator.num_proposals = work.PROPOSALS
    sampler = model.roi_sampler
    sampler.num_sampled_rois = work.REGIONS
    sampler.foreground_fraction = work.FOREGROUND_FRACTION
    sampler.foreground_iou_threshold = sampler.background_iou_high_threshold = work.FOREGROUND_IOU
    model.mask_sampler.num_sampled_masks = int(work.REGIONS * work.FOREGROUND_FRACTION)
    losses = configs.Losses(l2_weight_decay=WEIGHT_DECAY)
    return MaskRCNNTask(configs.MaskRCNNTask(model=model, losses=losses))


def build(maker):
    """Its model with random weights; the stem, C2 and every batch normalisation frozen."""
    model = maker.build_model()
    for layer in model.backbone.layers:
        layer.trainable = False
        if layer.name == FROZEN_UNTIL:
            break
    for layer in model.submodules:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.trainable = False
    scores, rpn = model.rpn_head._classifier, model.rpn_head._box_regressor
    box = model.detection_head[0]._box_regressor
    for kernel in (rpn.kernel, box.kernel):
        kernel.assign(tf.zeros_like(kernel))
    rpn.bias.assign(np.tile(work.BOX_DELTAS, rpn.bias.shape[0] // 4))
    scores.kernel.assign(scores.kernel * (SCORE_DEVIATION / np.std(scores.kernel)))
    return model


def batch(config, precision):
    """The (images, labels) that its input pipeline would make of `work.image` and `work.objects`."""
    height, width, _ = config.input_size
    parser = configs.Parser()
    anchors = anchor.build_anchor_generator(
        config.min_level,
        config.max_level,
        config.anchor.num_scales,
        config.anchor.aspect_ratios,
        config.anchor.anchor_size,
    )(image_size=(height, width))
    boxes, classes = work.objects(height, width)
    boxes, classes = boxes[:, [1, 0, 3, 2]], classes + 1
    scores, deltas = anchor.RpnAnchorLabeler(
        parser.rpn_match_threshold,
        parser.rpn_unmatched_threshold,
        parser.rpn_batch_size_per_im,
        parser.rpn_fg_fraction,
    ).label_anchors(anchors, tf.constant(boxes), tf.constant(classes[:, None], tf.float32))
    labels = {
        "anchor_boxes": anchors,
        "image_info": tf.constant([[height, width], [height, width], [1, 1], [0, 0]], tf.float32),
        "rpn_score_targets": scores,
        "rpn_box_targets": deltas,
        "gt_boxes": tf.constant(boxes),
        "gt_classes": tf.constant(classes),
        "gt_masks": tf.ones([len(boxes), parser.mask_crop_size, parser.mask_crop_size]),
    }
    pixels = preprocess_ops.normalize_image(tf.constant(work.image(height, width)))
    pixels = tf.cast(pixels, precision)
    return tf.nest.map_structure(lambda value: value[None], (pixels, labels))


def count(model, images, labels):
    """How many regions with an area go to the box head, and how many with a class to the mask head."""
    regions, masks = [], []
    with work.recorded(model.roi_sampler[0], regions), work.recorded(model.mask_sampler, masks):
        model(
            images,
            image_shape=labels["image_info"][:, 1, :],
            anchor_boxes=labels["anchor_boxes"],
            gt_boxes=labels["gt_boxes"],
            gt_classes=labels["gt_classes"],
            gt_masks=labels["gt_masks"],
            training=True,
        )
    boxes, targets = regions[0][0][0], masks[0][1][0]
    # What cannot be filled is padded, with empty boxes and with background.
    filled = tf.reduce_all(boxes[:, 2:] > boxes[:, :2], axis=1)
    return {
        "regions": int(tf.math.count_nonzero(filled)),
        "foreground": int(tf.math.count_nonzero(targets > 0)),
    }


def prepare_train(maker, model, images, labels):
    """The trainer's step, an SGD step of rate 0 in it: the work without the drift."""
    settings = {
        "optimizer": {"type": "sgd", "sgd": {"momentum": 0.9}},
        "learning_rate": {"type": "constant", "constant": {"learning_rate": 0.0}},
    }
    optimizer = maker.create_optimizer(optimization.OptimizationConfig(settings))
    metrics = maker.build_metrics(training=True)

    @tf.function
    def step(images, labels):
        return maker.train_step((images, labels), model, optimizer, metrics)

    def iteration():
        return float(step(images, labels)[maker.loss])

    facts = count(model, images, labels)
    if not np.isfinite(iteration()):
        raise RuntimeError("The loss is not finite.")
    facts["trained_parameters"] = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    return iteration, facts


def main():
    """Builds the model and serves the driver."""
    given = work.arguments()
    tf.config.threading.set_intra_op_parallelism_threads(given.threads)
    tf.config.threading.set_inter_op_parallelism_threads(given.threads)
    tf_keras.utils.set_random_seed(0)
    performance.set_mixed_precision_policy(tf.as_dtype(given.precision))
    maker = task(given.height, given.width)
    images, labels = batch(maker.task_config.model, given.precision)
    model = build(maker)

    def prepare(command):
        if command != "train":
            raise ValueError(f"This side only trains, so {command!r} has no meaning here.")
        return prepare_train(maker, model, images, labels)

    work.serve(prepare)


if __name__ == "__main__":
    main()
