"""From a model of some classes to one of others: what the two have in common is carried over."""

import numpy as np

from keras_mrcnn.weights.load import Report, is_weight

BOX_CLASSES, BOXES, MASKS = "box_head/classes", "box_head/deltas", "mask_head/logits"


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
    from_rows = _rows(source_model, target_model, mapping)
    sources = {variable.path: variable for variable in source_model.variables if is_weight(variable)}
    targets = {variable.path: variable for variable in target_model.variables if is_weight(variable)}
    per_class = _numbers_per_class(target_model.config)
    wrong = sorted(sources.keys() ^ targets.keys())
    wrong += [
        f"{path} {tuple(sources[path].shape)} and {tuple(targets[path].shape)}"
        for path in sorted(sources.keys() & targets.keys())
        if _fixed(sources[path], per_class) != _fixed(targets[path], per_class)
    ]
    if wrong:
        raise ValueError(
            "`target_model` must differ from `source_model` in its classes only, make it with the config of "
            f"the source. Received models that differ in {len(wrong)} weights: {'; '.join(wrong[:5])}"
        )
    without = [name for name, of_source in mapping.items() if of_source is None]
    copied, partly = [], {}
    for path, variable in targets.items():
        value, numbers = np.array(sources[path]), _of(path, per_class)
        if numbers:
            value = _by_class(value, np.array(variable), numbers, from_rows, path.startswith(BOX_CLASSES))
        variable.assign(value)
        if numbers and without:
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


def _numbers_per_class(config):
    """{prefix of a path: how many numbers of its last axis belong to one class}."""
    found = {BOX_CLASSES: 1}
    if not config.box_head.class_agnostic:
        found[BOXES] = 4
    if not config.mask_head.class_agnostic:
        found[MASKS] = 1
    return found


def _of(path, per_class):
    return next((numbers for prefix, numbers in per_class.items() if path.startswith(f"{prefix}/")), None)


def _fixed(variable, per_class):
    """The part of a shape that has nothing to do with classes."""
    shape = tuple(variable.shape)
    return shape[:-1] if _of(variable.path, per_class) else shape


def _by_class(source, target, numbers, rows, background):
    """The target's array with the source's numbers for each class that has them."""
    source = source.reshape(*source.shape[:-1], -1, numbers)
    mapped = target.reshape(*target.shape[:-1], -1, numbers).copy()
    for index, row in enumerate(rows):
        if row is not None:
            mapped[..., index, :] = source[..., row, :]
    if background:
        mapped[..., -1, :] = source[..., -1, :]
    return mapped.reshape(target.shape)
