"""Augmentation by the values of the config, through the whole pipeline."""

import dataclasses

import numpy as np
import pytest

from keras_mrcnn import config
from keras_mrcnn.data.pipeline import steps_per_epoch, trainable, training_dataset
from tests.data.test_pipeline import INPUT, assert_same, batches, data, differ, image_numbers


class TestAugmentation:
    EVERYTHING = dict(
        jitter_scales=[0.1, 2.0],
        crop_size=96,
        copy_paste=0.7,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
        hue=0.1,
        transpose=0.5,
    )

    def test_all_at_once(self, coco_sample):
        """Fixed frames, boxes inside, the same again; an image may be left without an object."""
        settings = data(batch_size=4, **self.EVERYTHING)
        first = batches(training_dataset(coco_sample.records[:12], settings, INPUT))
        assert_same(first, batches(training_dataset(coco_sample.records[:12], settings, INPUT)))
        for inputs, targets in first:
            assert inputs["images"].shape[1:] == (96, 96, 3) and (inputs["image_sizes"] == 96).all()
            boxes = targets["boxes"][targets["valid"]]
            assert (boxes >= 0).all() and (boxes <= 96).all() and (boxes[:, 2:] > boxes[:, :2]).all()
            assert targets["valid"].shape == targets["classes"].shape == targets["has_mask"].shape

    @pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
    def test_colours_leave_the_rest(self, coco_sample, name):
        records, settings = coco_sample.records[:4], data(short_edges=[64], batch_size=2)
        plain = batches(training_dataset(records, settings, INPUT))
        changed = batches(
            training_dataset(records, data(short_edges=[64], batch_size=2, **{name: 0.5}), INPUT)
        )
        assert differ(plain, changed)
        assert_same([targets for _, targets in plain], [targets for _, targets in changed])

    def test_pasted_objects_come_from_another_image(self, mixed):
        """Each image has a grey of its own, and all have their object at the same place."""
        settings = data(batch_size=1, flip=0.0, short_edges=[300], copy_paste=1.0)
        pasted = 0
        for inputs, targets in batches(training_dataset(mixed, settings, config.Input(long_edge=400))):
            height, width = inputs["image_sizes"][0]
            greys = np.unique(inputs["images"][0, :height, :width])
            pasted += len(greys) > 1
            assert set(greys) <= {10, 20, 30, 40, 50} and targets["valid"].all()
        assert pasted


class TestRepeats:
    def test_copies_look_different_and_epochs_keep_their_length(self, mixed):
        records = [dataclasses.replace(record) for record in trainable(mixed)]
        object.__setattr__(records[0], "classes", np.array([1], np.int32))
        # 1 of 5 images: sqrt(0.8 / 0.2) = 2 times; the other category is in 4 of 5
        settings = data(batch_size=2, repeat_threshold=0.8, short_edges=[40, 50, 60, 70], flip=0.0)
        assert steps_per_epoch(records, settings) == 3
        dataset, sizes = training_dataset(records, settings, INPUT), set()
        for _ in range(4):
            epoch = batches(dataset)
            assert sorted(sum((image_numbers(batch) for batch in epoch), [])) == [0, 0, 1, 2, 3, 4]
            edges = [
                int(i["image_sizes"][k].min())
                for i, _ in epoch
                for k in range(2)
                if image_numbers((i, _))[k] == 0
            ]
            sizes.add(edges[0] == edges[1])
        assert False in sizes
