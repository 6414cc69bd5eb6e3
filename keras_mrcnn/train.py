"""A whole training run: what `mrcnn train` does."""

import dataclasses
import pathlib
import sys

import keras

from keras_mrcnn import config as configs
from keras_mrcnn.data.coco import load_coco
from keras_mrcnn.data.pipeline import evaluation_dataset, trainable, training_dataset
from keras_mrcnn.evaluation import CocoEvaluator
from keras_mrcnn.model import MaskRCNN
from keras_mrcnn.training import schedule
from keras_mrcnn.training.callbacks import Checkpoints, CocoScores, Log


def run(config, resume=False, callbacks=()):
    """Train as a `config.Config` says; checkpoints, logs and scores go to `config.training.output`.

    Args:
        config: `config.Config`; without validation annotations nothing is scored.
        resume: bool, go on from the last finished epoch.
        callbacks: more Keras callbacks.

    Returns:
        The trained `MaskRCNN`.
    """
    data, training = config.data, config.training
    output = _output_folder(config, resume)
    configs.save(config, output / "config.yaml")
    keras.utils.set_random_seed(training.seed)

    options = {"invalid": data.invalid, "check_images": data.check_images}
    learn = load_coco(data.train_annotations, data.train_images, **options)
    print(f"Training: {learn.summary()}")
    steps = -(-len(trainable(learn.records)) // data.batch_size)
    model = _compiled_model(config, learn.categories, steps, output / "last.keras" if resume else None)
    first_epoch = model.epochs_done

    watchers, validation = [], None
    if data.val_annotations:
        valid = load_coco(data.val_annotations, data.val_images, categories=learn.categories, **options)
        print(f"Validation: {valid.summary()}")
        validation = evaluation_dataset(valid.records, data, config.model.input)
        limit = config.model.detections.max_detections
        evaluator = CocoEvaluator(valid, max_detections=limit, iou_types=model.iou_types)
        watchers.append(CocoScores(validation, valid.records, evaluator, training.evaluate_every, output))
    watchers += [
        Checkpoints(output, monitor=f"val_{model.iou_types[-1]}_AP"),
        Log(output / "log.csv", ("loss", *model.loss_names), model.iou_types, append=resume),
        keras.callbacks.TerminateOnNaN(),
        *callbacks,
    ]
    model.fit(
        training_dataset(learn.records, data, config.model.input, training.seed, first_epoch),
        validation_data=validation,
        validation_freq=training.evaluate_every,
        epochs=training.epochs,
        initial_epoch=first_epoch,
        callbacks=watchers,
        shuffle=False,
        verbose="auto" if sys.stdout.isatty() else 2,
    )
    print(f"{model.epochs_done} epochs done. The last and the best model: {output}/{{last,best}}.keras")
    return model


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
        if training.weights:
            model.load_weights(training.weights)
        elif training.backbone:
            print(f"{training.backbone}: {model.load_backbone(training.backbone)}")
        model.compile(schedule.optimizer(training, steps))
        model.optimizer.build(model.trainable_variables)  # wrong learning_rate_factors are told at once
    if training.optimizer == "sgd":
        schedule.regularize(model, training.weight_decay)
    return model
