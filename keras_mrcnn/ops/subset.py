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
