"""Batches: what is in them, in which order, and that a seed decides everything."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn import config
from keras_mrcnn.data.coco import load_coco
from keras_mrcnn.data.pipeline import evaluation_dataset, trainable, training_dataset

INPUT = config.Input(short_edge=64, long_edge=100)


def data(**changes):
    return config.Data(**{"batch_size": 3, "short_edges": [48, 64], "flip": 0.5} | changes)


def batches(dataset):
    return list(dataset.as_numpy_iterator())


def assert_same(a, b):
    assert len(a) == len(b)
    tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def differ(a, b):
    return any(
        x["images"].shape != y["images"].shape or (x["images"] != y["images"]).any()
        for (x, _), (y, _) in zip(a, b, strict=True)
    )


def image_numbers(batch):
    return [int(image[0, 0, 0]) // 10 - 1 for image in batch[0]["images"]]


class TestElements:
    @pytest.mark.parametrize("make", [training_dataset, evaluation_dataset])
    def test_types_and_static_shapes(self, mixed, make):
        dataset = make(mixed, data(), INPUT)
        inputs, targets = dataset.element_spec
        expected = {
            "images": ([None, None, None, 3], tf.uint8),
            "image_sizes": ([None, 2], tf.int32),
            "boxes": ([None, None, 4], tf.float32),
            "classes": ([None, None], tf.int32),
            "valid": ([None, None], tf.bool),
            "masks": ([None, None, 112, 112], tf.uint8),
            "has_mask": ([None, None], tf.bool),
        }
        assert {k: (v.shape.as_list(), v.dtype) for k, v in {**inputs, **targets}.items()} == expected

    def test_evaluation_by_hand(self, mixed):
        first, second, third = batches(evaluation_dataset(mixed, data(), INPUT))
        # 30 x 40 to a short edge of 64: 64 x 85.33; the batch has both orientations: 96 x 96
        assert first[0]["images"].shape == (3, 96, 96, 3)
        np.testing.assert_array_equal(first[0]["image_sizes"], [[64, 85], [85, 64], [64, 85]])
        np.testing.assert_array_equal(first[1]["valid"], [[True, False], [True, True], [True, False]])
        np.testing.assert_array_equal(first[1]["has_mask"], [[True, False], [True, False], [True, False]])
        x, y = 85 / 40, 64 / 30
        np.testing.assert_allclose(first[1]["boxes"][0, 0], [4 * x, 6 * y, 14 * x, 18 * y], rtol=1e-6)
        assert first[1]["masks"][0, 0].all() and not first[1]["masks"][1, 1].any()
        assert not first[1]["boxes"][0, 1].any()
        assert not first[0]["images"][0, 64:].any() and not first[0]["images"][0, :, 85:].any()
        assert (first[0]["images"][0, :64, :85] == 10).all()
        assert [image_numbers(b) for b in (first, second, third)] == [[0, 1, 2], [3, 4, 5], [6]]
        # the last image has no object
        assert third[1]["boxes"].shape == (1, 1, 4) and not third[1]["valid"].any()

    def test_a_crowd_is_no_target(self, mixed):
        assert [len(record.boxes) for record in trainable(mixed)] == [1, 3, 1, 1, 1]
        for inputs, targets in batches(training_dataset(mixed, data(), INPUT)):
            assert targets["valid"].sum(axis=1).max() <= 2
            assert {n for n in image_numbers((inputs, targets))} <= {0, 1, 2, 3, 4}

    def test_flips_and_short_edges(self, mixed):
        for horizontal, vertical in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (1.0, 1.0)):
            changes = {"flip": horizontal, "vertical_flip": vertical, "short_edges": [32]}
            for inputs, targets in batches(training_dataset(mixed[:1], data(**changes), INPUT)):
                height, width = inputs["image_sizes"][0]
                x = [26, 36] if horizontal else [4, 14]
                y = [12, 24] if vertical else [6, 18]
                expected = np.array([x[0], y[0], x[1], y[1]]) * np.tile([width / 40, height / 30], 2)
                np.testing.assert_allclose(targets["boxes"][0, 0], expected, rtol=1e-5)
        turned = data(flip=0.0, transpose=1.0, short_edges=[32])
        for inputs, targets in batches(training_dataset(mixed[:1], turned, INPUT)):
            height, width = inputs["image_sizes"][0]
            expected = np.array([6, 4, 18, 14]) * np.tile([width / 30, height / 40], 2)
            np.testing.assert_allclose(targets["boxes"][0, 0], expected, rtol=1e-5)
        dataset = training_dataset(mixed, data(batch_size=1), INPUT)
        edges = {int(inputs["image_sizes"].min()) for _ in range(4) for inputs, _ in batches(dataset)}
        assert edges == {48, 64}
        long = batches(training_dataset(mixed, data(short_edges=[90]), INPUT))  # 40 * 3 = 120 > 100
        assert {int(inputs["image_sizes"].max()) for inputs, _ in long} == {100}


class TestEpochs:
    def test_cardinality_and_partial_batch(self, mixed):
        for batch_size, expected in ((1, 5), (2, 3), (8, 1)):
            dataset = training_dataset(mixed, data(batch_size=batch_size), INPUT)
            epoch = batches(dataset)
            assert dataset.cardinality() == len(epoch) == expected
            sizes = [len(inputs["images"]) for inputs, _ in epoch]
            assert sizes[:-1] == [batch_size] * (expected - 1) and sum(sizes) == 5
        for batch_size, expected in ((2, 4), (7, 1)):
            dataset = evaluation_dataset(mixed, data(batch_size=batch_size), INPUT)
            assert dataset.cardinality() == len(batches(dataset)) == expected

    def test_every_image_once_in_every_epoch(self, mixed):
        dataset = training_dataset(mixed, data(batch_size=2), INPUT)
        orders = [sum((image_numbers(batch) for batch in batches(dataset)), []) for _ in range(6)]
        assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
        assert len({tuple(order) for order in orders}) > 1

    def test_the_seed_decides(self, mixed):
        first = training_dataset(mixed, data(), INPUT, seed=3)
        again = training_dataset(mixed, data(), INPUT, seed=3)
        other = training_dataset(mixed, data(), INPUT, seed=4)
        for _ in range(3):
            epoch = batches(first)
            assert_same(epoch, batches(again))
            assert differ(epoch, batches(other)) or len(epoch) < 2

    def test_a_resumed_run_sees_what_the_whole_one_saw(self, mixed):
        whole = training_dataset(mixed, data(), INPUT)
        epochs = [batches(whole) for _ in range(4)]
        resumed = training_dataset(mixed, data(), INPUT, first_epoch=2)
        assert_same(epochs[2], batches(resumed))
        assert_same(epochs[3], batches(resumed))
        assert differ(epochs[0], epochs[1])

    def test_a_run_resumed_within_an_epoch(self, mixed):
        whole = training_dataset(mixed, data(batch_size=2), INPUT)
        epochs = [batches(whole) for _ in range(2)]
        for skipped in (0, 1, 2):
            rest = training_dataset(mixed, data(batch_size=2), INPUT, first_epoch=1, first_batch=skipped)
            assert rest.cardinality() == 3 - skipped
            assert_same(epochs[1][skipped:], batches(rest))
        with pytest.raises(ValueError, match="one of the 3 batches .* first_batch=3"):
            training_dataset(mixed, data(batch_size=2), INPUT, first_batch=3)

    def test_batches_passed_over_are_not_read(self, mixed):
        settings = data(batch_size=1)
        first = image_numbers(batches(training_dataset(mixed, settings, INPUT))[0])[0]
        broken = [dataclasses.replace(r, path="none") if i == first else r for i, r in enumerate(mixed)]
        assert len(batches(training_dataset(broken, settings, INPUT, first_batch=1))) == 4
        with pytest.raises(tf.errors.NotFoundError):
            batches(training_dataset(broken, settings, INPUT))

    def test_workers_share_the_batches_of_one(self, mixed):
        """Five images in batches of 4: two for each worker, and one image that both get."""
        settings = data(batch_size=4, short_edges=[48], transpose=0.5)
        both = [training_dataset(mixed, settings, INPUT, workers=2, worker=worker) for worker in (0, 1)]
        alone = training_dataset(mixed, settings, INPUT)
        for _ in range(3):
            seen = batches(alone)
            for step, parts in enumerate(zip(*map(batches, both), strict=True)):
                images = [image for inputs, _ in parts for image in inputs["images"]]
                assert len(images) == (4, 2)[step]
                for one, other in zip(seen[step][0]["images"], images):  # noqa: B905 the last is there twice
                    size = np.minimum(one.shape, other.shape)
                    np.testing.assert_array_equal(one[: size[0], : size[1]], other[: size[0], : size[1]])
        rest = training_dataset(mixed, settings, INPUT, first_batch=1, workers=2, worker=1)
        assert_same(batches(training_dataset(mixed, settings, INPUT, workers=2, worker=1))[1:], batches(rest))
        for workers, worker in ((3, 0), (2, 2), (2, -1)):
            with pytest.raises(ValueError, match=f"workers={workers}, worker={worker}, batch_size=4"):
                training_dataset(mixed, settings, INPUT, workers=workers, worker=worker)

    def test_evaluation_is_the_same_each_time(self, mixed):
        dataset = evaluation_dataset(mixed, data(), INPUT)
        assert_same(batches(dataset), batches(dataset))

    def test_fit_counts_epochs_as_it_should(self, mixed):
        """`fit` starts one iteration an epoch: the epochs seen are 0, 1, 2."""
        seen = []

        class Watch(keras.Model):
            def train_step(self, batch):
                tf.py_function(lambda image: seen.append(image.numpy()), [batch[0]["images"]], [])
                return {"loss": tf.constant(0.0)}

        model = Watch()
        model.compile(run_eagerly=True)
        model.fit(training_dataset(mixed, data(), INPUT), epochs=3, verbose=0)
        whole = training_dataset(mixed, data(), INPUT)
        expected = [inputs["images"] for _ in range(3) for inputs, _ in batches(whole)]
        assert_same(seen, expected)

    @pytest.mark.parametrize("make", [training_dataset, evaluation_dataset])
    def test_nothing_to_give(self, mixed, make):
        with pytest.raises(ValueError, match="at least one image"):
            make([], data(), INPUT)
        if make is training_dataset:
            with pytest.raises(ValueError, match="at least one image"):
                make(mixed[5:], data(), INPUT)

    def test_an_image_that_changed_since_it_was_checked(self, mixed):
        record = dataclasses.replace(mixed[0], height=31)
        with pytest.raises(tf.errors.InvalidArgumentError, match="check_images"):
            batches(evaluation_dataset([record], data(), INPUT))


class TestExtremes:
    @pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_images_of_one_pixel_width(self, coco_folder, size, batch_size):
        names = {"a.png": size, "b.png": (20, 30)}
        images = [
            {"id": i, "file_name": n, "height": s[0], "width": s[1]} for i, (n, s) in enumerate(names.items())
        ]
        runs = {"size": list(size), "counts": [0, size[0] * size[1]]}
        objects = [{"id": 1, "image_id": 0, "category_id": 3, "segmentation": runs}]
        objects += [{"id": 2, "image_id": 1, "category_id": 3, "bbox": [0, 0, 30, 20]}]
        records = load_coco(*coco_folder(objects, images, sizes=names), invalid="error").records
        for make in (training_dataset, evaluation_dataset):
            settings = data(batch_size=batch_size, vertical_flip=0.5)
            for inputs, targets in batches(make(records, settings, INPUT)):
                valid = targets["valid"]
                boxes = targets["boxes"][valid]
                assert np.isfinite(targets["boxes"]).all() and valid.any(axis=1).all()
                assert ((boxes[:, 2:] - boxes[:, :2]) > 0).all()
                assert targets["masks"][targets["has_mask"]].all()
                assert inputs["images"].shape[1] % 32 == inputs["images"].shape[2] % 32 == 0
                assert inputs["image_sizes"].min() >= 1 and inputs["image_sizes"].max() <= 100

    def test_kinds_of_pixels(self, coco_folder):
        random = np.random.default_rng(0)
        kinds = {"grey.png": (1, np.uint8), "alpha.png": (4, np.uint8), "deep.png": (3, np.uint16)}
        images = [{"id": n, "file_name": n, "height": 20, "width": 30} for n in kinds]
        files = coco_folder([], images, sizes={})
        for name, (channels, dtype) in kinds.items():
            pixels = random.integers(0, np.iinfo(dtype).max, (20, 30, channels), dtype)
            tf.io.write_file(str(files[1] / name), tf.io.encode_png(pixels))
        records = load_coco(*files, invalid="error").records
        (batch,) = batches(evaluation_dataset(records, data(), INPUT))
        assert batch[0]["images"].shape == (3, 64, 96, 3)
        assert (batch[0]["images"][0, ..., 0] == batch[0]["images"][0, ..., 2]).all()


class TestKeypoints:
    CATEGORIES = [
        {"id": 3, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"]},
        {"id": 4, "name": "nut"},
    ]

    def records(self, coco_folder, categories=CATEGORIES):
        """Three images of 32 x 64: a person and a nut, a person without labels, a crowd and a nut."""
        names = {f"{i}.png": (32, 64) for i in range(3)}
        images = [{"id": i, "file_name": n, "height": 32, "width": 64} for i, n in enumerate(names)]
        box = {"bbox": [4, 6, 20, 12], "area": 240}
        points = {"keypoints": [5, 7, 2, 20, 10, 1, 0, 0, 0]}
        objects = [
            {"id": 1, "image_id": 0, "category_id": 4, **box},
            {"id": 2, "image_id": 0, "category_id": 3, **box, **points},
            {"id": 3, "image_id": 1, "category_id": 3, **box},
            {"id": 4, "image_id": 2, "category_id": 3, "iscrowd": 1, **box, **points},
            {"id": 5, "image_id": 2, "category_id": 4, **box},
        ]
        files = coco_folder(objects, images, categories=categories, sizes=names)
        return load_coco(*files, invalid="error").records

    def test_evaluation(self, coco_folder):
        # 32 x 64 to a short edge of 64, but the long edge is 100: all by 100 / 64
        (batch,) = batches(evaluation_dataset(self.records(coco_folder), data(), INPUT))
        points = batch[1]["keypoints"]
        assert points.shape == (3, 2, 3, 3) and points.dtype == np.float32
        expected = np.zeros((3, 2, 3, 3))
        expected[0, 1, :2] = [[5.5 * 100 / 64, 7.5 * 100 / 64, 2], [20.5 * 100 / 64, 10.5 * 100 / 64, 1]]
        np.testing.assert_allclose(points, expected, rtol=1e-6)
        assert "mirrored" not in batch[1]

    @pytest.mark.parametrize(("flips", "place"), [((1.0, 0.0), (58.5, 7.5)), ((0.0, 1.0), (5.5, 24.5))])
    def test_training(self, coco_folder, flips, place):
        settings = data(flip=flips[0], vertical_flip=flips[1], short_edges=[32])
        found = []
        for _, targets in batches(training_dataset(self.records(coco_folder), settings, INPUT)):
            found += list(targets["keypoints"][targets["valid"]])
        labelled = [points for points in found if points.any()]
        assert len(found) == 4 and len(labelled) == 1
        np.testing.assert_allclose(labelled[0][0], [*place, 2], rtol=1e-6)
        assert labelled[0][:, 2].tolist() == [2, 0, 1]  # the left eye is a right one now

    def test_none_without_names(self, coco_folder, mixed):
        for targets in (t for _, t in batches(evaluation_dataset(mixed, data(), INPUT))):
            assert "keypoints" not in targets

    def test_records_of_several_data_sets(self, coco_folder):
        records = self.records(coco_folder)
        plain = [dataclasses.replace(record, keypoints=None, mirrored=None) for record in records]
        (batch,) = batches(evaluation_dataset(plain[:2] + records[2:], data(), INPUT))
        np.testing.assert_array_equal(batch[1]["keypoints"], np.zeros((3, 2, 3, 3)))
        other = dataclasses.replace(records[0], keypoints=records[0].keypoints[:, :2])
        with pytest.raises(ValueError, match="records with 2, 3 keypoints"):
            evaluation_dataset([other, *records], data(), INPUT)


class TestRealData:
    @pytest.mark.parametrize("name", ["nuclei", "coco_sample"])
    def test_an_epoch(self, name, request):
        records = request.getfixturevalue(name).records[:24]
        settings = data(short_edges=[160, 200], batch_size=5, vertical_flip=0.5)
        dataset = training_dataset(records, settings, config.Input(long_edge=320))
        objects = 0
        for inputs, targets in batches(dataset):
            valid = targets["valid"]
            boxes = targets["boxes"][valid]
            limits = np.repeat(inputs["image_sizes"][:, None, ::-1], valid.shape[1], axis=1)[valid]
            assert (boxes[:, :2] >= -1e-3).all() and (boxes[:, 2:] <= limits + 1e-3).all()
            assert (boxes[:, :2] < boxes[:, 2:]).all()
            assert targets["has_mask"][valid].mean() > 0.99
            assert not targets["masks"][~valid].any() and targets["masks"].max() == 1
            objects += valid.sum()
        assert objects == sum((~record.crowd).sum() for record in records)
