"""The keras_mrcnn side of compare_torchvision.py."""

import keras
import numpy as np
import tensorflow as tf
import work

from keras_mrcnn import MaskRCNN, config, replicas

C4 = (  # detectron2's: stage 5 with its stride on regions of 14 x 14
    "backbone.features=c4",
    "backbone.region_stride=2",
    "rpn.channels=1024",
    "proposals.pre_nms_train=12000",
    "proposals.pre_nms_test=6000",
    "box_head.pool_size=14",
    "box_head.fcs=0",
    "mask_head.convs=0",
)


def build(precision, features="fpn"):
    """R50-FPN or R50-C4 with frozen normalisation, stem and C2, with random weights."""
    settings = config.override(config.Model(), C4 if features == "c4" else ())
    settings.proposals.post_nms_train = settings.proposals.post_nms_test = work.PROPOSALS
    settings.detections.max_detections = work.DETECTIONS
    settings.sampling.rois = work.REGIONS
    settings.sampling.foreground_fraction = work.FOREGROUND_FRACTION
    settings.sampling.foreground_iou = work.FOREGROUND_IOU
    policy = "mixed_bfloat16" if precision == "bfloat16" else "float32"
    model = MaskRCNN(settings, [f"class {index}" for index in range(work.CLASSES)], seed=0, dtype=policy)
    rpn, box = model.rpn_head.deltas, model.box_head.deltas
    for kernel in (rpn.kernel, box.kernel):
        kernel.assign(keras.ops.zeros_like(kernel))
    rpn.bias.assign(np.tile(work.BOX_DELTAS, rpn.bias.shape[0] // 4))
    return model


def prepare_inference(model, inputs):
    """`predict_on_batch`, its threshold set so that `work.CANDIDATES` scores pass."""
    seen, classifier = [], model.box_head.classes
    with work.recorded(model.box_head, seen):
        model(inputs)
        classifier.kernel.assign(classifier.kernel / np.std(seen[-1][0]))
        model(inputs)
    logits = seen[-1][0]
    scores = keras.ops.convert_to_numpy(keras.ops.softmax(logits))[:, : work.CLASSES]
    model.detections.score_threshold = work.threshold(scores)

    def iteration():
        return model.predict_on_batch(inputs)

    facts = {"proposals": len(scores), "detections": int(iteration()["num_detections"][0])}
    return iteration, facts


def prepare_train(model, inputs, targets):
    """`train_on_batch` with an SGD step of rate 0: the work without the drift."""
    model.compile(optimizer=keras.optimizers.SGD(0.0, momentum=0.9, weight_decay=1e-4))
    regions, masks = [], []
    with work.recorded(model.box_head, regions), work.recorded(model.mask_head, masks):
        model.compute_losses(inputs, targets)

    def iteration():
        return model.train_on_batch(inputs, targets, return_dict=True)

    if not np.isfinite(iteration()["loss"]):
        raise RuntimeError("The loss is not finite.")
    facts = {
        "regions": len(regions[0][0]),
        "foreground": len(masks[0]),
        "trained_parameters": sum(int(np.prod(v.shape)) for v in model.trainable_variables),
    }
    return iteration, facts


def main():
    """Builds the model and serves the driver."""
    given = work.arguments()
    replicas.strategy()  # memory as `mrcnn train` has it
    tf.config.threading.set_intra_op_parallelism_threads(given.threads)
    tf.config.threading.set_inter_op_parallelism_threads(given.threads)
    keras.utils.set_random_seed(0)
    image = work.image(given.height, given.width)
    boxes, classes = work.objects(given.height, given.width)
    count = len(boxes)
    inputs = {"images": image[None], "image_sizes": np.array([[given.height, given.width]], np.int32)}
    targets = {
        "boxes": boxes[None],
        "classes": classes[None],
        "valid": np.ones((1, count), bool),
        "masks": np.ones((1, count, 112, 112), np.uint8),
        "has_mask": np.ones((1, count), bool),
    }
    inputs, targets = (tf.nest.map_structure(tf.constant, batch) for batch in (inputs, targets))
    model = build(given.precision, given.features)

    def prepare(command):
        if command == "inference":
            return prepare_inference(model, inputs)
        return prepare_train(model, inputs, targets)

    work.serve(prepare)


if __name__ == "__main__":
    main()
