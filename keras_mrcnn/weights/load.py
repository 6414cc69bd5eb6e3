"""Strict loading: all of a file into all of a model, or an error that lists what does not fit."""

import difflib
import fnmatch
from typing import NamedTuple

import keras
import numpy as np

MOST_LISTED = 20  # of each kind of misfit, and of what was initialised anew
PLAIN = {  # how `conv_norm` initialises what names no initializer
    "kernel": "N(0, 2 / fan_out)",
    "bias": "zeros",
    "gamma": "ones",
    "beta": "zeros",
    "moving_mean": "zeros",
    "moving_variance": "ones",
}


class Report(NamedTuple):
    """What was loaded. Its text is `loaded 307/307`, and what was initialised anew and how."""

    loaded: list[str]  # paths of variables
    initialised: dict[str, str]  # path of each variable left as it was: how it was initialised

    def __str__(self):
        total = len(self.loaded) + len(self.initialised)
        lines = [f"loaded {len(self.loaded)}/{total}"]
        anew = [f"  initialised anew: {path}, {how}" for path, how in self.initialised.items()]
        return "\n".join(lines + _cut(anew))


def load_table(model, weights, table, source, anew=(), within=()):
    """Fill the variables of a model from the arrays of a file.

    Args:
        model: `MaskRCNN`, or a layer of it, whose variables have the paths that the table names.
        weights: dictionary of arrays by the names of the file.
        table: `tables.Table`.
        source: where the weights come from, for messages.
        anew: prefixes of paths of variables that are not loaded and stay as they were initialised.
        within: prefixes of paths of the only variables that this is about; without them it is about all.

    Returns:
        `Report`.

    Raises:
        ValueError: a name of the table is missing in the file, the file has a name that the table does not
            know, a shape differs, or the model has a variable that the table does not fill; all are listed
            and the model is as before.
    """
    variables = {variable.path: variable for variable in model.variables if is_weight(variable)}
    if within:
        variables = {path: kept for path, kept in variables.items() if path.startswith(tuple(within))}
    left = [path for path in variables if path.startswith(tuple(anew))] if anew else []
    rows = [row for row in table.rows if row.ours not in left]
    known = {row.theirs for row in table.rows}
    unexpected = [
        name
        for name in weights
        if name not in known and not any(fnmatch.fnmatchcase(name, pattern) for pattern in table.ignored)
    ]
    misfits, arrays = _misfits(rows, weights, variables, left, unexpected)
    if misfits:
        raise ValueError(_explain(misfits, source, len(arrays), len(variables) - len(left)))
    for path, array in arrays.items():
        variables[path].assign(array)
    return Report(list(arrays), {path: _initializer(model, path) for path in left})


def _misfits(rows, weights, variables, left, unexpected):
    """Lists of what does not fit by kind, and the converted arrays of what does by path."""
    missing, misshapen, foreign, arrays = [], [], [], {}
    for row in rows:
        if row.ours not in variables:
            foreign.append(f"{row.ours}, of {row.theirs}")
        elif row.theirs is not None and row.theirs not in weights:
            near = _nearest(row.theirs, unexpected) if len(missing) < MOST_LISTED else ""
            missing.append(f"{row.theirs}, for {row.ours}{near}")
        else:
            given, expected = weights.get(row.theirs), tuple(variables[row.ours].shape)
            try:
                array = row.convert(given)
                fits = array.shape == expected
            except ValueError:
                fits = False
            if fits:
                arrays[row.ours] = array
            else:
                misshapen.append(f"{row.theirs} {np.shape(given)}, does not make {row.ours} {expected}")
    filled = {row.ours for row in rows}
    found = {
        "missing in the file": missing,
        "unexpected in the file": [f"{name} {np.shape(weights[name])}" for name in unexpected],
        "of another shape": misshapen,
        "not in the model": foreign,
        "in the model, but not of this kind of file": [
            path for path in variables if path not in filled and path not in left
        ],
    }
    return {kind: lines for kind, lines in found.items() if lines}, arrays


def _nearest(name, unexpected):
    near = difflib.get_close_matches(name, unexpected, n=1)
    return f" (the file has {near[0]})" if near else ""


def _explain(misfits, source, fitting, total):
    lines = [f"{source} does not fit this model, and nothing was loaded: {fitting} of {total} fit."]
    for kind, found in misfits.items():
        lines.append(f"{kind}: {len(found)}")
        lines += _cut([f"  {line}" for line in found])
    return "\n".join(lines)


def _cut(lines):
    more = [f"  ... and {len(lines) - MOST_LISTED} more"] if len(lines) > MOST_LISTED else []
    return lines[:MOST_LISTED] + more


def is_weight(variable):
    """Whether a variable is learned or measured; the states of random generators are not."""
    return "seed_generator" not in variable.path


def _initializer(model, path):
    """How the variable at `path` was initialised, for people to read."""
    for layer in model._flatten_layers():
        for variable in layer._trainable_variables + layer._non_trainable_variables:
            if variable.path == path:
                given = getattr(layer, f"{variable.name}_initializer", None)
                return PLAIN[variable.name] if given is None else _described(given)
    raise KeyError(path)


def _described(initializer):
    """An initializer with its numbers: "RandomNormal(mean=0.0, stddev=0.01)"; "zeros", which has none."""
    initializer = keras.initializers.get(initializer)
    name, given = type(initializer).__name__, initializer.get_config()
    if not given:
        return name.lower()
    numbers = [f"{key}={value}" for key, value in given.items() if key != "seed" and value is not None]
    return f"{name}({', '.join(numbers)})"
