"""A small LVIS json and detections on it, made by rule; needs numpy and pycocotools only.

Some categories are not marked exhaustively in an image, some are known to be absent, the rest was not looked
for; one category has no object at all; some images have more detections than count.
"""

import numpy as np
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 300, 400
FREQUENCIES = "rcfrcfrcf"


def polygon(box, random):
    """A quadrilateral within a box (x, y, width, height)."""
    x, y, width, height = box
    a, b, c, d = random.uniform(0, 1, 4)
    points = [x + a * width, y, x + width, y + b * height, x + c * width, y + height, x, y + d * height]
    return [round(float(value), 2) for value in points]


def rle(outline):
    """Compressed run lengths, as a str."""
    encoded = coco_mask.merge(coco_mask.frPyObjects([outline], HEIGHT, WIDTH))
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode("ascii")}


def random_box(random):
    side = random.choice([15, 40, 70, 150]) * random.uniform(0.6, 1.4, 2)
    x, y = random.uniform(0, WIDTH - side[0]), random.uniform(0, HEIGHT - side[1])
    return [round(float(value), 2) for value in (max(x, 0), max(y, 0), side[0], min(side[1], HEIGHT))]


def make(seed, images=10):
    """The content of an LVIS v1 json."""
    random = np.random.RandomState(seed)
    names = [f"thing {index}" for index in range(len(FREQUENCIES))]
    categories = [
        {"id": 3 * index + 1, "name": name, "frequency": FREQUENCIES[index], "synset": f"{name}.n.01"}
        for index, name in enumerate(names)
    ]
    content = {"info": {}, "licenses": [], "images": [], "annotations": [], "categories": categories}
    for image in range(images):
        ids = random.permutation([category["id"] for category in categories[:-1]])
        present, absent, rest = ids[:3], ids[3:5], ids[5:]
        absent = [*absent, 25] if image % 3 == 0 else absent  # of the category without objects
        open_ids = [category for category in present if random.uniform() < 0.3] + list(rest[:1])
        content["images"].append(
            {
                "id": 7 * image + 3,
                "height": HEIGHT,
                "width": WIDTH,
                "coco_url": f"http://images.cocodataset.org/val2017/{image:012d}.jpg",
                "neg_category_ids": [int(category) for category in absent],
                "not_exhaustive_category_ids": [int(category) for category in open_ids],
            }
        )
        for category in present if image else []:
            for _ in range(random.randint(1, 5)):
                outline = polygon(random_box(random), random)
                mask = rle(outline)
                if not coco_mask.area(mask):
                    continue
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": 7 * image + 3,
                        "category_id": int(category),
                        "segmentation": [outline],
                        "bbox": [float(value) for value in coco_mask.toBbox(mask)],
                        "area": float(coco_mask.area(mask)),
                    }
                )
    return content


def detections(content, seed):
    """COCO results: good ones, twice, missed, of wrong categories and of categories nobody looked for."""
    random = np.random.RandomState(seed + 1000)
    ids = [category["id"] for category in content["categories"]]
    found = []

    def add(image, category, box, outline):
        found.append(
            {
                "image_id": image,
                "category_id": int(category),
                "bbox": [float(value) for value in box],
                "segmentation": rle(outline),
                "score": random.randint(1, 30) / 30.0,  # with ties
            }
        )

    for annotation in content["annotations"]:
        for _ in range(random.choice([0, 1, 1, 1, 2])):
            shift = random.normal(0, 1.5, 2)
            x, y, width, height = annotation["bbox"]
            box = [max(x + shift[0], 0), max(y + shift[1], 0), width, height]
            outline = np.array(annotation["segmentation"][0]).reshape(-1, 2) + shift
            other = random.choice(ids) if random.uniform() < 0.15 else annotation["category_id"]
            add(annotation["image_id"], other, box, outline.ravel().tolist())
    for index, image in enumerate(content["images"]):
        for _ in range(320 if index % 4 == 1 else 15):
            box = random_box(random)
            add(image["id"], random.choice(ids), box, polygon(box, random))
    order = random.permutation(len(found))
    return [found[index] for index in order]
