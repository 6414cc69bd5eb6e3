"""The floor a trained model has to beat: Otsu's threshold and connected components, with nothing learned.

    python examples/otsu.py                                          # the demo's validation images
    python examples/otsu.py --annotations FILE.json --images FOLDER

Needs the extra `viz` (OpenCV).
"""

import argparse
import contextlib
import io
import json
import pathlib

import cv2
import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

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


def score(annotations, images, smallest=SMALLEST):
    """COCO scores of `otsu_results` on a data set of one category.

    Args:
        annotations: path of the COCO json.
        images: folder of its images.
        smallest: as in `otsu_results`.

    Returns:
        `{"segm": {"AP", "AP50", "AP75"}, "bbox": {...}}`, at most 100 objects per image, all scored alike.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        (category,) = truth.getCatIds()
        results = []
        for record in truth.dataset["images"]:
            image = cv2.imread(str(pathlib.Path(images) / record["file_name"]), cv2.IMREAD_COLOR)
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            for mask in otsu_results(image, smallest):
                code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
                box = [float(value) for value in rle.toBbox(code)]
                common = {"image_id": record["id"], "category_id": category, "score": 1.0}
                results.append({**common, "segmentation": code, "bbox": box})
        found = truth.loadRes(results)
        scores = {}
        for kind in ("segm", "bbox"):
            evaluation = COCOeval(truth, found, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            scores[kind] = dict(zip(("AP", "AP50", "AP75"), evaluation.stats[:3].round(4).tolist()))
    return scores


def main():
    """Scores the threshold on one COCO data set and prints the figures as json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", default=DEMO / "annotations" / "instances_val.json")
    parser.add_argument("--images", default=DEMO / "val")
    parser.add_argument("--smallest", type=int, default=SMALLEST, help="pixels; smaller parts are left out")
    print(json.dumps(score(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
