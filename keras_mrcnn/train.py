"""A whole training run: what `mrcnn train` does."""

import dataclasses
import functools
import pathlib
import sys

import keras

from keras_mrcnn import config as configs
from keras_mrcnn import replicas
from keras_mrcnn.data.cityscapes import load_cityscapes
from keras_mrcnn.data.coco import load_coco
from keras_mrcnn.data.pipeline import evaluation_dataset, trainable, training_dataset
from keras_mrcnn.evaluation import CityscapesEvaluator, CocoEvaluator, LvisEvaluator, VocEvaluator
from keras_mrcnn.model import MaskRCNN
from keras_mrcnn.training import schedule
from keras_mrcnn.training.averages import ValidateAverage
from keras_mrcnn.training.callbacks import Checkpoints, CocoScores, Log
from keras_mrcnn.weights.class_mapping import map_classes


def run(config, resume=False, callbacks=(), devices=None):
    """Train as a `config.Config` says; checkpoints, logs and scores go to `config.training.output`.

    Args:
        config: `config.Config`; without validation annotations nothing is scored.
        resume: bool, go on from the last finished epoch.
        callbacks: more Keras callbacks.
        devices: int, GPUs that train, see `replicas.strategy`. Of several workers only the chief scores and
            writes; the others need the folder only to resume.

    Returns:
        The trained `MaskRCNN`; with `training.ema` it has the averaged weights, as averaged.keras does, and
        best.keras. last.keras has those that learn.
    """
    data, training = config.data, config.training
    strategy = replicas.strategy(devices)
    is_chief = replicas.is_chief(strategy)
    _check_divisible(config, strategy.num_replicas_in_sync)
    output = _output_folder(config, resume)
    if is_chief:
        configs.save(config, output / "config.yaml")
    keras.utils.set_random_seed(training.seed)

    learn = load_data(data, "train")
    print(f"Training: {learn.summary()}")
    steps = -(-len(trainable(learn.records)) // data.batch_size)
    with strategy.scope():
        model = _compiled_model(config, learn.categories, steps, output / "last.keras" if resume else None)
    first_epoch = model.epochs_done

    watchers, validation = [], None
    if data.val_annotations:
        valid = load_data(data, "val", learn.categories)
        print(f"Validation: {valid.summary()}")
        validation = evaluation_dataset(valid.records, data, config.model.input)
        evaluator = evaluator_of(valid, model, data.format)
        watchers.append(CocoScores(validation, valid.records, evaluator, training.evaluate_every, output))
    watchers += [
        Checkpoints(output, monitor=f"val_{model.iou_types[min(1, len(model.iou_types) - 1)]}_AP"),
        Log(output / "log.csv", ("loss", *model.loss_names), model.iou_types, append=resume),
        keras.callbacks.TerminateOnNaN(),
        *callbacks,
    ]
    make_dataset = functools.partial(
        training_dataset, learn.records, data, config.model.input, training.seed, first_epoch
    )
    model.fit(
        replicas.distribute(strategy, make_dataset, data.batch_size),
        steps_per_epoch=steps,
        validation_data=validation,
        validation_freq=training.evaluate_every,
        epochs=training.epochs,
        initial_epoch=first_epoch,
        callbacks=[ValidateAverage(), *(watchers if is_chief else callbacks)],
        shuffle=False,
        verbose="auto" if sys.stdout.isatty() else 2,
    )
    if training.ema and is_chief:
        model.save(output / "averaged.keras")
    replicas.meet(strategy)
    if is_chief:
        print(f"{model.epochs_done} epochs done. The last and the best model: {output}/{{last,best}}.keras")
    return model


def load_data(data, split, categories=None):
    """The `CocoDataset` of one split, "train" or "val", of a `config.Data`."""
    annotations, images = getattr(data, f"{split}_annotations"), getattr(data, f"{split}_images")
    options = {"categories": categories, "invalid": data.invalid, "check_images": data.check_images}
    if data.format == "cityscapes":
        return load_cityscapes(images, annotations, **options)
    return load_coco(annotations, images, **options)


def evaluator_of(dataset, model, metric="coco", annotations=None):
    """What scores a model's detections.

    Args:
        dataset: what `load_coco` or `load_cityscapes` returned.
        model: `MaskRCNN`.
        metric: "coco", "lvis", "voc" or "cityscapes".
        annotations: path of the json; "lvis" needs it.

    Returns:
        An evaluator of `evaluation`.
    """
    limit = model.config.detections.max_detections
    boxes_and_masks = [kind for kind in model.iou_types if kind != "keypoints"]
    if metric == "cityscapes":
        return CityscapesEvaluator(dataset)
    if metric == "voc":
        return VocEvaluator(dataset, iou_types=boxes_and_masks)
    if metric == "lvis":
        return LvisEvaluator(dataset, annotations, max_detections=limit, iou_types=boxes_and_masks)
    sigmas = model.config.keypoint_head.sigmas
    sigmas = sigmas[0] if len(sigmas) == 1 else sigmas or None
    return CocoEvaluator(dataset, max_detections=limit, iou_types=model.iou_types, sigmas=sigmas)


def _check_divisible(config, number):
    size, parts = config.data.batch_size, config.training.accumulate
    if size % (number * parts):
        raise ValueError(
            f"`data.batch_size` is a multiple of the {number} devices times training.accumulate={parts}. "
            f"Received: {size}"
        )


def _output_folder(config, resume):
    """The folder of a run, made; checked against what is in it already, before anything slow."""
    needed = ["train_annotations", "train_images"] + ["val_images"] * bool(config.data.val_annotations)
    for key in needed:
        if not getattr(config.data, key):
            raise ValueError(f"`data.{key}` says where the data is. It is empty: add data.{key}=PATH.")
    output = pathlib.Path(config.training.output)
    last = output / "last.keras"
    if resume and not last.is_file():
        raise FileNotFoundError(f"Nothing to resume: there is no {last}. Train without --resume first.")
    if last.is_file() and not resume:
        raise ValueError(
            f"{output} holds an earlier run. Go on with it (--resume), or choose another training.output=..."
        )
    if resume:
        _check_same_run(config, output / "config.yaml")
    else:
        (output / "best.json").unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    return output


def _check_same_run(config, path):
    """A resumed run goes on with the settings that its checkpoint was made with."""
    was = configs.load(path)
    free = {"output": config.training.output, "evaluate_every": config.training.evaluate_every}
    was.training = dataclasses.replace(was.training, **free)
    before = was.model, was.training, was.data.batch_size
    if before != (config.model, config.training, config.data.batch_size):
        raise ValueError(
            f"A run is resumed with the model, training and data.batch_size of {path}. These differ: pass "
            "that file as CONFIG, or train anew with another training.output=..."
        )


def _compiled_model(config, categories, steps, checkpoint):
    """The model to train: from a checkpoint with its optimizer, or new."""
    training = config.training
    if checkpoint:
        model = keras.models.load_model(checkpoint)
    else:
        if config.model.backbone.norm == "frozen" and not (training.weights or training.backbone):
            raise ValueError(
                "A frozen normalisation needs weights that were trained with it. Give training.weights=FILE "
                "or training.backbone=NAME (`mrcnn presets` lists them), or train from scratch with "
                "model.backbone.norm=group model.backbone.frozen_stages=0."
            )
        model = MaskRCNN(config.model, categories, seed=training.seed, dtype=training.precision)
        if training.class_mapping:
            source = MaskRCNN.from_preset(training.weights)
            mapping = {name: of_source or None for name, of_source in training.class_mapping.items()}
            print(f"{training.weights}: {map_classes(source, model, mapping)}")
        elif training.weights:
            model.load_weights(training.weights)
        elif training.backbone:
            print(f"{training.backbone}: {model.load_backbone(training.backbone)}")
        model.compile(schedule.optimizer(training, steps, config.data.batch_size))
        model.optimizer.build(model.trainable_variables)  # wrong learning_rate_factors are told at once
    if training.optimizer == "sgd":
        schedule.regularize(model, training.weight_decay)
    model.micro_batches = training.accumulate
    replicas.synchronize(model)
    return model
