"""The floor a trained model has to beat: Otsu's threshold and connected components, with nothing learned.

    python examples/otsu.py                                          # the demo's validation images
    python examples/otsu.py --annotations FILE.json --images FOLDER

Needs the extra `viz` (OpenCV).
"""

import argparse
import json
import pathlib

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from keras_mrcnn import CocoEvaluator, load_coco
from keras_mrcnn.data.images import load_image

DEMO = pathlib.Path(__file__).resolve().parent / "data" / "nuclei"
SMALLEST = 20  # pixels; what is smaller is taken for noise


def otsu_results(image, smallest=SMALLEST):
    """Objects of one image: the connected parts of the rarer side of Otsu's threshold.

    Args:
        image: uint8 RGB `[H, W, 3]`.
        smallest: area in pixels below which a part is left out.

    Returns:
        bool `[N, H, W]`, one mask per object; N may be 0.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    _, light = cv2.threshold(gray, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    # Nuclei are light on black or dark on light; either way they cover less than half.
    objects = light if light.mean() <= 0.5 else 1 - light
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(objects, connectivity=4)
    kept = [k for k in range(1, count) if statistics[k, cv2.CC_STAT_AREA] >= smallest]
    return labels == np.reshape(kept, (-1, 1, 1))


def score(annotations, images, smallest=SMALLEST, max_detections=200):
    """COCO scores of `otsu_results` on a data set of one category, as `CocoEvaluator.result` returns them.

    Args:
        annotations: path of the COCO json.
        images: folder of its images.
        smallest: as in `otsu_results`.
        max_detections: objects per image that count; all are scored alike.
    """
    dataset = load_coco(annotations, images)
    (category,) = dataset.categories
    evaluator = CocoEvaluator(dataset, max_detections=max_detections)
    for record in dataset.records:
        results = []
        for mask in otsu_results(load_image(record.path), smallest):
            rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            common = {"image_id": record.image_id, "category_id": category.id, "score": 1.0}
            results.append({**common, "segmentation": rle, "bbox": coco_mask.toBbox(rle).tolist()})
        evaluator.add_coco(results)
    return evaluator.result()


def main():
    """Scores the threshold on one COCO data set and prints the figures as json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", default=DEMO / "annotations" / "instances_val.json")
    parser.add_argument("--images", default=DEMO / "val")
    parser.add_argument("--smallest", type=int, default=SMALLEST, help="pixels; smaller parts are left out")
    scores = score(**vars(parser.parse_args()))
    for kind in ("segm", "bbox"):
        print(kind, json.dumps({name: round(scores[kind][name], 4) for name in ("AP", "AP50", "AP75")}))


if __name__ == "__main__":
    main()
