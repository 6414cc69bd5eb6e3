"""Keras's optimizers with learning rates by group, and averages of all that a training moves."""

import difflib
import math

import keras
from keras import ops


class _RateFactors:
    """The learning rate of each variable times the factor of its group, weight decay included.

    Keras's optimizers have one rate for all. Clipping sees the gradients as they are, and momentum is kept
    as ever: with a constant factor f every update is f times what it would be.

    The average of `use_ema` begins short: step n leaves n / (n + 9) of it, at most `ema_momentum`. (With
    Keras's, 500 steps at 0.998 leave more than a third of the random weights of the beginning in it.)

    Args:
        learning_rate_factors: dictionary from the beginning of variables' paths ("backbone", "backbone/c5",
            "box_head/classes/bias") to a factor, at least 0; the longest that fits counts, 1 without any.
            A variable of factor 0 stays as it is.
        others: as for the optimizer of Keras.

    Raises:
        ValueError: a factor is negative or not a number; or, when the optimizer meets the variables, a key
            with which no trained variable's path begins.
    """

    def __init__(self, *args, learning_rate_factors=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.also_averaged = list
        self.learning_rate_factors = dict(learning_rate_factors or {})
        for key, factor in self.learning_rate_factors.items():
            if not (math.isfinite(factor) and factor >= 0):
                raise ValueError(
                    "`learning_rate_factors` are what the learning rate is multiplied by, numbers from 0 on. "
                    f"Received: {key}: {factor}"
                )

    def build(self, variables):
        if not self.built:
            self._factors = factors(self.learning_rate_factors, [variable.path for variable in variables])
        super().build(variables)

    def average_also(self, variables):
        """Further variables that `use_ema` averages, which no gradient moves; called after `build`."""
        if self.use_ema:
            self._model_variables_moving_average.extend(self.add_optimizer_variables(variables, "average"))
            self.also_averaged = lambda: variables  # Keras would save a list as the optimizer's own

    def _update_model_variables_moving_average(self, trainable_variables):
        steps = ops.cast(self.iterations, "float32")
        rate = 1 - ops.minimum(self.ema_momentum, steps / (steps + 9))
        variables = [*trainable_variables, *self.also_averaged()]
        for variable, average in zip(variables, self._model_variables_moving_average, strict=True):
            average.assign(average + (variable - average) * ops.cast(rate, variable.dtype))

    def _overwrite_model_variables_with_average_value(self, trainable_variables):
        super()._overwrite_model_variables_with_average_value([*trainable_variables, *self.also_averaged()])

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(learning_rate * self._factors[self._get_variable_index(variable)], variable.dtype)
        if self.weight_decay is not None and self._use_weight_decay(variable):
            self.assign_sub(variable, variable * self.weight_decay * rate)
        super().update_step(gradient, variable, rate)

    def _apply_weight_decay(self, variables):
        """Nothing: `update_step` decays each variable at its own rate."""

    def get_config(self):
        return {**super().get_config(), "learning_rate_factors": dict(self.learning_rate_factors)}


@keras.saving.register_keras_serializable(package="keras_mrcnn")
class SGD(_RateFactors, keras.optimizers.SGD):
    """SGD with learning rates by group.

    Args:
        learning_rate_factors: dictionary from the beginning of variables' paths to a factor, at least 0; the
            longest that fits counts, 1 without any.
        others: as for `keras.optimizers.SGD`; but the average of `use_ema` begins short: step n leaves at
            most n / (n + 9) of it.

    Example:
        >>> model.compile(SGD(0.01, momentum=0.9, learning_rate_factors={"backbone": 0.1}))
    """


@keras.saving.register_keras_serializable(package="keras_mrcnn")
class AdamW(_RateFactors, keras.optimizers.AdamW):
    """AdamW with learning rates by group, that leaves biases and normalisations alone in weight decay.

    (Keras saves no exceptions from weight decay; these hold after loading, too.)

    Args:
        learning_rate_factors: as for `SGD`.
        others: as for `keras.optimizers.AdamW`, and `SGD` about `use_ema`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])


def factors(by_prefix, paths):
    """The factor of each variable.

    Args:
        by_prefix: dictionary from the beginning of paths to a factor.
        paths: list of str, the paths of the trained variables.

    Returns:
        list of float: for each path the factor of the longest key it begins with, 1 without any.

    Raises:
        ValueError: no path begins with a key; the message names the nearest beginning.
    """
    for key in by_prefix:
        if not any(path.startswith(key) for path in paths):
            parts = [path.split("/") for path in paths]
            known = {"/".join(names[:depth]) for names in parts for depth in range(1, len(names) + 1)}
            close = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.4)
            raise ValueError(
                "`learning_rate_factors` names variables by how their paths begin, and no trained variable's "
                f"path begins with {key!r}."
                + (f" Did you mean `{close[0]}`?" if close else "")
                + f" They begin with {', '.join(sorted({names[0] for names in parts}))}; "
                "variables of frozen stages are not trained."
            )
    found = []
    for path in paths:
        fitting = [key for key in by_prefix if path.startswith(key)]
        found.append(float(by_prefix[max(fitting, key=len)]) if fitting else 1.0)
    return found
