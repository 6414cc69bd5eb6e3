"""The average of the weights over the steps (`training.ema`): it is scored and kept, and does not learn."""

import contextlib

import keras


@contextlib.contextmanager
def averaged(model):
    """Inside, a model has the averages that its optimizer keeps; afterwards its own weights, to the last bit.

    Without an optimizer that has `use_ema`, and before its first step, nothing changes. One that is not of
    `training.optimizers` has no averages of batch statistics; they stay as they are.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema or not optimizer.iterations.numpy():
        yield
        return
    variables = [*model.trainable_variables, *getattr(optimizer, "also_averaged", list)()]
    own = [variable.numpy() for variable in variables]
    for variable, average in zip(variables, optimizer._model_variables_moving_average, strict=True):
        variable.assign(average.numpy())
    try:
        yield
    finally:
        for variable, value in zip(variables, own, strict=True):
            variable.assign(value)


class ValidateAverage(keras.callbacks.Callback):
    """The validation losses of `fit` are those of the averaged weights, as the scores are."""

    def on_test_begin(self, logs=None):
        self.inside = averaged(self.model)
        self.inside.__enter__()

    def on_test_end(self, logs=None):
        self.inside.__exit__(None, None, None)
