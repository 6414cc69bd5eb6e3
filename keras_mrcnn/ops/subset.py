"""Random choice of a fixed number of candidates, in fixed shapes."""

import keras
from keras import ops


def random_subset(mask, size, seed):
    """Up to `size` random true entries of each row.

    Args:
        mask: bool `[B, N]`, the candidates.
        size: int, the most to choose.
        seed: int or `keras.random.SeedGenerator`.

    Returns:
        indices: int32 `[B, min(size, N)]`, distinct within a row.
        chosen: bool `[B, min(size, N)]`; False where a row has fewer candidates. The chosen come first.
    """
    keys = ops.where(mask, keras.random.uniform(ops.shape(mask), seed=seed), -1.0)
    keys, indices = ops.top_k(keys, ops.minimum(size, ops.shape(mask)[1]))
    return indices, keys >= 0


class RandomSubset(keras.layers.Layer):
    """`random_subset` with random numbers that go on where they were when a saved model is loaded.

    Args:
        seed: int or None.

    Call arguments: `mask` and `size` of `random_subset`.
    """

    def __init__(self, seed=None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_jit = False
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, mask, size):
        return random_subset(mask, size, self.seed_generator)

    def save_own_variables(self, store):
        store["state"] = self.seed_generator.state

    def load_own_variables(self, store):
        self.seed_generator.state.assign(store["state"])

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}
