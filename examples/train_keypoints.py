"""Learn the keypoints of your own data set, or COCO's persons; the json's categories name them.

    python examples/train_keypoints.py TRAIN.json VAL.json IMAGES/
    python examples/train_keypoints.py person_keypoints_train2017.json person_keypoints_val2017.json COCO/ \\
        --config paper/keypoints_masks_r50_fpn training.backbone=detectron2/resnet50_imagenet_msra

Settings are those of a config, changed at the end of the line, as in `training.epochs=50`. What has no
keypoints, or no mask, teaches the other heads only. Prints COCO's scores and how many pixels the points of
the best detection of each image are off.
"""

import pathlib

import click
import numpy as np

from keras_mrcnn import config
from keras_mrcnn.geometry.boxes import iou
from keras_mrcnn.train import load_data, run

PICTURES = 4


@click.command()
@click.argument("train")
@click.argument("val")
@click.argument("images")
@click.argument("overrides", nargs=-1)
@click.option("--config", "name", default="fly_keypoints_r18_fpn", show_default=True)
def main(train, val, images, overrides, name):
    """Learn from TRAIN.json, score on VAL.json (both COCO keypoints, of files in IMAGES)."""
    settings = config.load(name, overrides)
    settings.data.train_annotations, settings.data.val_annotations = train, val
    settings.data.train_images = settings.data.val_images = images
    model = run(settings)

    valid = load_data(settings.data, "val", model.categories)
    results = model.detect([record.path for record in valid.records])
    errors = [distances(record, found) for record, found in zip(valid.records, results, strict=True)]
    found = np.concatenate(errors)
    print(
        f"{len(found)} labelled points of found objects: {found.mean():.2f} pixels off on average, ", end=""
    )
    print(f"median {np.median(found):.2f}")
    folder = pathlib.Path(settings.training.output)
    for result in results[:PICTURES]:
        result.above(0.5).save(folder / f"{pathlib.Path(result.image_id).stem}_found.png")
    print(f"Pictures: {folder}/*_found.png")


def distances(record, results):
    """Pixels between the labelled points of each object and those of the detection that fits it best.

    Args:
        record: `Record` with keypoints.
        results: `Results` of its image.

    Returns:
        float `[n]`; nothing of objects that no detection overlaps by half.
    """
    errors = [np.zeros(0)]
    for box, points in zip(record.boxes, record.keypoints, strict=True):
        overlap = np.asarray(iou(box[None], results.boxes))[0]
        labelled = points[:, 2] > 0
        if labelled.any() and overlap.max(initial=0) >= 0.5:
            best = results.keypoints[overlap.argmax()]
            errors.append(np.linalg.norm(best[labelled, :2] - points[labelled, :2], axis=1))
    return np.concatenate(errors)


if __name__ == "__main__":
    main()
