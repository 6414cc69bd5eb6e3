"""Learning rate over the steps, and the optimizer that follows it (section 3.1, "Training")."""

import keras
from keras import ops

from keras_mrcnn.training.optimizers import SGD, AdamW

WARMUP_START = 1e-3  # of the learning rate


@keras.saving.register_keras_serializable(package="keras_mrcnn")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Another schedule, held down linearly over its first steps.

    Args:
        schedule: the `LearningRateSchedule` that holds after the warm-up.
        steps: int; at step s < steps the rate is multiplied by a number that goes from 0.001 to 1.
    """

    def __init__(self, schedule, steps):
        self.schedule = schedule
        self.steps = steps

    def __call__(self, step):
        done = ops.minimum(ops.cast(step, "float32") / max(self.steps, 1), 1.0)
        factor = WARMUP_START + (1.0 - WARMUP_START) * done if self.steps else 1.0
        return self.schedule(step) * factor

    def get_config(self):
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "steps": self.steps,
        }

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["steps"])


def learning_rate(training, steps_per_epoch, batch_size=None):
    """The schedule of a `config.Training`, a function of the step.

    Args:
        training: `config.Training`.
        steps_per_epoch: int.
        batch_size: int, images in a step; with `training.base_batch` the rate is proportional to it, the
            linear scaling rule (Goyal et al. 2017, section 2.1). Warm-up and epochs stay as they are.
    """
    schedules = keras.optimizers.schedules
    peak = training.learning_rate
    if training.base_batch:
        peak *= batch_size / training.base_batch
    if training.decay == "cosine":
        schedule = schedules.CosineDecay(peak, max(training.epochs * steps_per_epoch, 1))
    else:
        # Keras takes the new value after the boundary step, hence the step before the epoch's first. It wants
        # a boundary in any case: the end is one, and changes nothing.
        drops = [*training.decay_epochs, training.epochs]
        boundaries = [epoch * steps_per_epoch - 1 for epoch in drops]
        values = [peak * 0.1 ** min(drop, len(drops) - 1) for drop in range(len(drops) + 1)]
        schedule = schedules.PiecewiseConstantDecay(boundaries, values)
    return WarmUp(schedule, training.warmup_steps)


def optimizer(training, steps_per_epoch, batch_size=None):
    """The Keras optimizer of a `config.Training`; the arguments are those of `learning_rate`.

    "sgd" is SGD with momentum 0.9; its weight decay is L2, which `regularize` adds to the loss. "adamw"
    decays the kernels by itself. Both obey `learning_rate_factors`. With mixed_float16 the loss is scaled, or
    small gradients vanish. With `training.ema` it keeps an average of the weights, see `averages`.
    """
    options = {
        "learning_rate": learning_rate(training, steps_per_epoch, batch_size),
        "learning_rate_factors": training.learning_rate_factors,
        "global_clipnorm": training.clip_norm or None,
    }
    if training.ema:
        options |= {"use_ema": True, "ema_momentum": training.ema}
    if training.optimizer == "sgd":
        chosen = SGD(momentum=0.9, **options)
    else:
        chosen = AdamW(weight_decay=training.weight_decay, **options)
    if training.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(chosen)
    return chosen


def regularize(model, weight_decay):
    """L2 on every trained kernel, `weight_decay / 2 * sum(w ** 2)`, as in the paper.

    Biases and normalisations are left alone. (The `weight_decay` of Keras optimizers is decoupled: another
    method, with another best value.)
    """
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.regularizer = keras.regularizers.L2(weight_decay / 2)
