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
