"""Which images an epoch holds, in which order, and which of them a worker gets."""

import dataclasses

import numpy as np
import pytest

from keras_mrcnn.data.order import epoch_images, epoch_order, repeat_factors, worker_order
from keras_mrcnn.data.pipeline import trainable


class TestOrder:
    @pytest.mark.parametrize(("wide", "tall"), [(10, 10), (13, 6), (0, 7), (5, 0), (1, 1), (17, 3), (1, 0)])
    @pytest.mark.parametrize("batch_size", [1, 2, 4, 20])
    def test_groups(self, wide, tall, batch_size):
        groups = np.random.default_rng(1).permutation([True] * wide + [False] * tall)
        for epoch in range(5):
            order = epoch_order(groups, batch_size, 0, epoch)
            np.testing.assert_array_equal(np.sort(order), np.arange(wide + tall))
            chunks = [groups[order[i : i + batch_size]] for i in range(0, len(order), batch_size)]
            mixed = sum(0 < chunk.sum() < len(chunk) for chunk in chunks)
            left_over = wide % batch_size + tall % batch_size
            assert mixed <= -(-left_over // batch_size)
            np.testing.assert_array_equal(order, epoch_order(groups, batch_size, 0, epoch))

    def test_epochs_and_seeds_differ(self):
        groups = np.arange(20) % 3 == 0
        orders = {tuple(epoch_order(groups, 4, seed, epoch)) for seed in range(5) for epoch in range(5)}
        assert len(orders) == 25

    @pytest.mark.parametrize(("last", "expected"), [(0, [0, 0, 0]), (1, [1, 1, 1]), (4, [2, 1, 1])])
    def test_workers_by_hand(self, last, expected):
        order = np.arange(12 + last) + 100
        parts = [worker_order(order, 6, 3, worker) for worker in range(3)]
        assert [list(part[:4]) for part in parts] == [
            [100, 101, 106, 107],
            [102, 103, 108, 109],
            [104, 105, 110, 111],
        ]
        assert [len(part) - 4 for part in parts] == expected
        assert set(np.concatenate(parts)) == set(order)


class TestRepeats:
    def test_factors_by_hand(self, mixed):
        records = [dataclasses.replace(record) for record in trainable(mixed)[:4]]
        for record, classes in zip(records, ([0], [0, 1, 9], [0], [0]), strict=True):
            object.__setattr__(record, "classes", np.array(classes, np.int32))
        # category 0 is in all four images, 1 in one of them, 9 is that of a crowd: sqrt(0.5 / 0.25)
        np.testing.assert_allclose(repeat_factors(records, 0.5), [1, 2**0.5, 1, 1])
        np.testing.assert_array_equal(repeat_factors(records, 0.0), [1, 1, 1, 1])
        assert len(repeat_factors([], 0.5)) == 0

    @pytest.mark.parametrize("factors", [[1, 1, 1], [2.5, 1, 1.25, 1.1], [1.2] * 50, [3, 2], [1 + 1e-12, 1]])
    def test_epochs(self, factors):
        factors = np.array(factors, np.float64)
        counts = np.zeros(len(factors))
        for epoch in range(400):
            index, copy = epoch_images(factors, 3, epoch)
            again = epoch_images(factors, 3, epoch)
            np.testing.assert_array_equal(index, again[0])
            assert len(index) == np.ceil(factors.sum() - 1e-9)
            own = np.bincount(index, minlength=len(factors))
            assert (own >= np.floor(factors)).all()
            assert sorted(zip(index, copy, strict=True)) == [
                (i, c) for i, n in enumerate(own) for c in range(n)
            ]
            counts += own
        scale = np.ceil(factors.sum() - 1e-9) / factors.sum()
        np.testing.assert_allclose(counts / 400, factors * scale, rtol=0.12)
