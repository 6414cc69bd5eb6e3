"""What stands beside an exported model so that the stock image of TensorFlow Serving serves it.

    models/
        nuclei/1/saved_model.pb ...     export.py
        models.config                   which models
        batching.config                 how requests are joined, where that is asked for
        docker-compose.yml              mounts this folder
        docker-compose.gpu.yml          the same on a GPU
        Dockerfile                      or copies it

The files belong beside the model's folder, not into it; in there TensorFlow Serving looks at folders whose
name is a number. They lie in `deploy/` of this room, as they are written.
"""

import pathlib
import re

TEMPLATES = pathlib.Path(__file__).with_name("deploy")
_NAME = "MODEL_NAME"


def write(folder):
    """Write the files beside a model's folder; those that are there stay as they are.

    Args:
        folder: what TensorFlow Serving calls base path. Its name becomes the model's.

    Returns:
        Two lists of paths: written, and there before.

    Raises:
        ValueError: the folder's name cannot be a model's in an address.
    """
    folder = pathlib.Path(folder).resolve()
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", folder.name):
        raise ValueError(
            "A model's name stands in addresses: letters, digits and - _ . only. The model's folder is "
            f"named {folder.name!r}."
        )
    written, kept = [], []
    for template in sorted(TEMPLATES.iterdir()):
        path = folder.parent / template.name
        if path.exists():
            kept.append(path)
        else:
            path.write_text(
                template.read_text(encoding="utf-8").replace(_NAME, folder.name), encoding="utf-8"
            )
            written.append(path)
    return written, kept
