"""Real data when it lies beside the checkout, and small COCO folders made on the spot."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.data.coco import load_coco


@pytest.fixture(scope="session")
def shared_data():
    """Folder of real data; tests that need it skip when it is absent."""
    folder = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared/data beside the repository")
    return folder


@pytest.fixture(scope="session")
def nuclei(shared_data):
    return load_coco(shared_data / "nuclei/annotations/instances_val.json", shared_data / "nuclei/images")


@pytest.fixture(scope="session")
def coco_sample(shared_data):
    folder = shared_data / "coco_sample"
    return load_coco(folder / "annotations/instances_train2017.json", folder / "train2017")


@pytest.fixture
def coco_folder(tmp_path):
    """Function that writes images and a json and returns the arguments of `load_coco`."""

    def write(annotations, images=None, categories=None, sizes=None, **other):
        """`sizes`: {file name: (height, width)} of PNG files to write; without: a.png, 20 x 30."""
        for name, size in ({"a.png": (20, 30)} if sizes is None else sizes).items():
            pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
            tf.io.write_file(str(tmp_path / "images" / name), tf.io.encode_png(pixels))
        (tmp_path / "images").mkdir(exist_ok=True)
        content = {
            "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}]
            if images is None
            else images,
            "categories": [{"id": 3, "name": "thing"}] if categories is None else categories,
            "annotations": annotations,
            **other,
        }
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        return path, tmp_path / "images"

    return write


@pytest.fixture
def mixed(coco_folder):
    """Seven images, wide and tall in turn, each of its own grey; 5 has only a crowd, 6 nothing."""
    sizes = {f"{i}.png": (30, 40) if i % 2 == 0 else (40, 30) for i in range(7)}
    images = [
        {"id": i, "file_name": f"{i}.png", "height": s[0], "width": s[1]}
        for i, s in enumerate(sizes.values())
    ]
    box, mask = [4, 6, 10, 12], [[4, 6, 14, 6, 14, 18, 4, 18]]
    shared = {"category_id": 3, "bbox": box, "area": 120}
    annotations = [{"image_id": i, "id": i, "segmentation": mask, **shared} for i in range(5)]
    annotations += [{"image_id": 1, "id": 10, "segmentation": [], **shared}]
    annotations += [{"image_id": 1, "id": 11, "segmentation": mask, "iscrowd": 1, **shared}]
    annotations += [{"image_id": 5, "id": 12, "segmentation": mask, "iscrowd": 1, **shared}]
    files = coco_folder(annotations, images, sizes=sizes)
    for i, size in enumerate(sizes.values()):
        pixels = np.full((*size, 3), 10 * i + 10, np.uint8)
        tf.io.write_file(str(files[1] / f"{i}.png"), tf.io.encode_png(pixels))
    return load_coco(*files, invalid="error").records
