"""Fine-tune on your own photographs from ImageNet weights, and see what the weights are worth.

    python examples/finetune_own_dataset.py TRAIN.json VAL.json IMAGES/ --weights WEIGHTS
    python examples/finetune_own_dataset.py TRAIN.json VAL.json IMAGES/ --from-scratch

WEIGHTS is a file, or a name to download, as torchvision/resnet18_imagenet_v1. The settings are those of
configs/fruits_nuts_r18_fpn.yaml: the stem and C2 stay (model.backbone.frozen_stages), the backbone learns at
a tenth of the rate (training.learning_rate_factors). Change them at the end of the line, as in
`training.epochs=200 model.backbone.frozen_stages=3`.
"""

import click
import keras

from keras_mrcnn import CocoEvaluator, MaskRCNN, config, evaluation_dataset, load_coco, training_dataset
from keras_mrcnn.evaluation import format_table
from keras_mrcnn.training import callbacks, schedule


@click.command()
@click.argument("train")
@click.argument("val")
@click.argument("images")
@click.argument("overrides", nargs=-1)
@click.option("--weights", help="Name or file of a ResNet that knows ImageNet.")
@click.option("--from-scratch", is_flag=True)
@click.option("--output", default="finetuned", show_default=True)
def main(train, val, images, overrides, weights, from_scratch, output):
    """Learn from TRAIN.json, score on VAL.json (both COCO, of files in IMAGES) before and after."""
    if from_scratch == bool(weights):
        raise click.UsageError("Give either --weights FILE or --from-scratch.")
    settings = config.load("fruits_nuts_r18_fpn", overrides)
    if from_scratch:  # nothing to keep: everything learns at the full rate, with statistics of its own
        settings.model.backbone.norm, settings.model.backbone.frozen_stages = "batch", 0
        settings.training.learning_rate_factors = {}
    keras.utils.set_random_seed(settings.training.seed)
    learn = load_coco(train, images)
    valid = load_coco(val, images, categories=learn.categories)
    print(learn.summary(), valid.summary(), sep="\n")

    model = MaskRCNN(settings.model, learn.categories, dtype=settings.training.precision)
    if not from_scratch:
        report = model.load_backbone(weights)
        print(f"Backbone: {len(report.loaded)} weights loaded, {len(report.initialised)} new")
    batches = training_dataset(learn.records, settings.data, settings.model.input)
    model.compile(schedule.optimizer(settings.training, steps_per_epoch=len(batches)))

    scored = evaluation_dataset(valid.records, settings.data, settings.model.input)
    before = callbacks.score(model, scored, valid.records, CocoEvaluator(valid))
    model.fit(batches, epochs=settings.training.epochs, shuffle=False, verbose=2)
    after = callbacks.score(model, scored, valid.records, CocoEvaluator(valid))
    print("Before:", format_table(before), "After:", format_table(after), sep="\n")
    model.save(f"{output}.keras")
    model.detect(valid.records[0].path).above(0.5).save(f"{output}.png")


if __name__ == "__main__":
    main()
