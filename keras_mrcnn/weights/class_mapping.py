"""From a model of some classes to one of others: what the two have in common is carried over."""

import numpy as np

from keras_mrcnn.weights.load import Report, is_weight


def map_classes(source_model, target_model, mapping):
    """Copies all weights of a model into one of other classes, class by class where they belong to one.

    A class of the target that stands for one of the source gets its classifier, its boxes and its masks; the
    background gets the background. The others stay as they were initialised.

    Args:
        source_model: `MaskRCNN` with weights, of COCO for example.
        target_model: `MaskRCNN` of the same config and other categories; it is changed.
        mapping: dict, for the name of each category of the target the name of a category of the source, or
            None for a class that the source has not.

    Returns:
        `Report`; variables of which only some classes were copied stand under `initialised`, with the others.

    Raises:
        ValueError: `mapping` leaves out a category of the target or names one that a model has not, or the
            models differ in more than their classes. Nothing is copied then.

    Example:

    >>> coco = MaskRCNN.from_preset("detectron2/mask_rcnn_r50_fpn_3x")
    >>> model = MaskRCNN(coco.config, data.cityscapes.CATEGORIES)
    >>> print(map_classes(coco, model, data.cityscapes.FROM_COCO))
    """
    rows = _rows(source_model, target_model, mapping)
    sources = {variable.path: variable for variable in source_model.variables if is_weight(variable)}
    targets = {variable.path: variable for variable in target_model.variables if is_weight(variable)}
    _check(source_model, sources, target_model, targets)
    without = [name for name, of_source in mapping.items() if of_source is None]
    copied, partly = [], {}
    for path, variable in targets.items():
        value = np.asarray(sources[path])
        layout = _layout(path, target_model.config)
        if layout:
            value = _by_class(value, len(source_model.categories), np.asarray(variable), rows, *layout)
        variable.assign(value)
        if layout and without:
            partly[path] = f"for {', '.join(without)} only"
        else:
            copied.append(path)
    return Report(copied, partly)


def _rows(source_model, target_model, mapping):
    """For each class of the target the index of its class in the source, or None."""
    positions = {category.name: index for index, category in enumerate(source_model.categories)}
    names = [category.name for category in target_model.categories]
    if set(names) != set(mapping):
        raise ValueError(
            f"`mapping` must have an entry for every category of the target model: {', '.join(names)}. "
            f"Received: {', '.join(mapping) or 'none'}"
        )
    unknown = [name for name in mapping.values() if name is not None and name not in positions]
    if unknown:
        raise ValueError(
            "`mapping` must map to categories of the source model or to None. The source has no "
            f"{', '.join(map(repr, unknown))}. It has: {', '.join(positions)}"
        )
    return [None if mapping[name] is None else positions[mapping[name]] for name in names]


def _check(source_model, sources, target_model, targets):
    """The models differ in their classes only."""
    differ = sorted(sources.keys() ^ targets.keys())
    for path in sorted(sources.keys() & targets.keys()):
        kinds = []
        for model, variables in ((source_model, sources), (target_model, targets)):
            shape, layout = tuple(variables[path].shape), _layout(path, model.config)
            if layout:
                each, background = layout
                shape = (*shape[:-1], shape[-1] / (each * (len(model.categories) + background)))
            kinds.append((shape, layout))
        if kinds[0] != kinds[1]:
            differ.append(f"{path} {tuple(sources[path].shape)}, {tuple(targets[path].shape)}")
    if differ:
        raise ValueError(
            "`target_model` must differ from `source_model` in its classes only: make it with the config of "
            f"the source. Received models that differ in {len(differ)} weights: {'; '.join(differ[:5])}"
        )


def _layout(path, config):
    """How the last axis of a variable runs over the classes: (numbers of each, is there a background?)."""
    if path.startswith("box_head/classes/"):
        return 1, True
    if path.startswith("box_head/deltas/") and not config.box_head.class_agnostic:
        return 4, False
    if path.startswith("mask_head/logits/") and not config.mask_head.class_agnostic:
        return 1, config.mask_head.activation == "softmax"
    return None


def _by_class(source, source_classes, target, rows, each, background):
    """The target's array with the source's numbers for each class that has them.

    The last axis is [pixels of a mask where a fully connected layer makes it,] classes, numbers of each.
    """
    mapped = target.reshape(*target.shape[:-1], -1, len(rows) + background, each).copy()
    source = source.reshape(*source.shape[:-1], -1, source_classes + background, each)
    for index, row in enumerate(rows):
        if row is not None:
            mapped[..., index, :] = source[..., row, :]
    if background:
        mapped[..., -1, :] = source[..., -1, :]
    return mapped.reshape(target.shape)
