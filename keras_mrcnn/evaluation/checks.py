"""What every detection must have before it is ranked."""

import math


def with_finite_scores(results):
    """The detections, in COCO's result format, as a list.

    Raises:
        ValueError: a score is not a finite number; such a detection has no place in a ranking.
    """
    results = list(results)
    for result in results:
        if not math.isfinite(result["score"]):
            raise ValueError(
                f"The scores of results must be finite numbers. Received: score={result['score']!r}, "
                f"image_id={result['image_id']!r}"
            )
    return results
