"""The house rules of CONTRIBUTING.md, read from the syntax trees; each rule is also shown a violation.

A rule is a function of (module, source) that returns what it found wrong. A module is named from the
package on: `rpn.anchors`; the package itself is the empty name.
"""

import ast
import functools
import pathlib
import re
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
NAME = "keras_mrcnn"
PACKAGE = REPOSITORY / NAME

# room -> what it may import of this package; None: anything.
ARROWS = {
    "": None,
    "__main__": None,
    "cli": None,
    "doctor": ("ops",),
    "config": (),
    "geometry": (),
    "ops": ("geometry",),
    "data": ("config", "geometry", "ops"),
    "conv_norm": (),
    "replicas": (),
    "residual": ("conv_norm",),
    "backbones": ("config", "conv_norm", "residual"),
    "rpn": ("config", "geometry", "ops"),
    "roi": ("config", "geometry", "ops", "conv_norm", "residual"),
    "losses": ("geometry",),
    "assembly": ("config", "backbones", "rpn", "roi"),
    "tta": ("data.images", "ops", "results"),
    "model": (
        "assembly",
        "replicas",
        "tta",
        "config",
        "roi",
        "losses",
        "data.images",
        "data.records",
        "results",
        "weights",
    ),
    "results": ("config", "geometry", "visualize"),
    "visualize": ("config", "geometry"),
    "evaluation": ("config", "geometry"),
    "training": ("config", "evaluation", "results"),
    "train": ("config", "data", "replicas", "evaluation", "model", "training", "weights"),
    "ablation": ("config", "train"),
    "serving": ("model", "config", "geometry", "ops", "data.images"),
    "weights": (
        "model",
        "assembly",
        "config",
        "residual",
        "geometry",
        "data.images",
        "results",
        "roi",
        "__version__",
    ),
}
TENSORFLOW_ROOMS = {"ops", "data", "replicas", "model", "serving"}
TENSORFLOW_LAZY = ("cli", "__main__", "weights.files")  # inside functions only
NUMPY_ONLY = ("config", "geometry.masks", "evaluation", "results", "visualize")
START = ("", "__main__", "cli")  # what `mrcnn --help` loads
HEAVY = {"tensorflow", "keras", "pycocotools"}
PICTURES = {"cv2", "matplotlib"}
CORE = {"tensorflow", "keras", "numpy", "pycocotools", "omegaconf", "click", "rich", "h5py", "yaml"}
OUTSIDE = {"examples", "tests", "benchmarks", "configs", "custom_ops"}
FILE_LINES, FUNCTION_LINES, CONSTRUCTOR_ARGUMENTS = 400, 80, 8
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def module_of(path):
    """`rpn.anchors` of .../keras_mrcnn/rpn/anchors.py; a folder's name of its __init__.py."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    return module.split(".")[0]


def within(target, names):
    return any(target == name or target.startswith(name + ".") for name in names)


@functools.cache
def sources(*folders):
    """{path: text} of every Python file below these folders of the repository."""
    paths = (path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))
    return {path: path.read_text(encoding="utf-8") for path in sorted(paths)}


def package_sources():
    """[(module, is it a folder's __init__, text)]."""
    return [(module_of(path), path.name == "__init__.py", text) for path, text in sources(NAME).items()]


def type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports(module, source, is_folder=False):
    """[(absolute dotted target, imported names included, line, when the module loads?)]."""
    found = []

    def visit(node, loading):
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, loading) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = [NAME, *filter(None, module.split("."))]
                here = here[: len(here) - node.level + bool(is_folder or not module)]
                base = ".".join([*here, *filter(None, [base])])
            found.extend((f"{base}.{alias.name}", node.lineno, loading) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            if node.args and isinstance(node.args[0], ast.Constant):
                found.append((str(node.args[0].value), node.lineno, loading))
        inside = isinstance(node, (*FUNCTIONS, ast.Lambda)) or type_checking(node)
        for child in ast.iter_child_nodes(node):
            visit(child, loading and not inside)

    visit(ast.parse(source), True)
    return found


def arrows(module, source, is_folder=False):
    """Only the imports of ARROWS; nothing from outside the package's own folder."""
    room = room_of(module)
    if room not in ARROWS:
        return [f"{module}: `{room}` is a new room: give it a row in ARROWS and in CONTRIBUTING.md"]
    wrong = []
    for target, line, _ in imports(module, source, is_folder):
        first, _, rest = target.partition(".")
        if first in OUTSIDE:
            wrong.append(f"{module}:{line} imports {target}")
        elif first == NAME and ARROWS[room] is not None and not within(rest, (room, *ARROWS[room])):
            wrong.append(f"{module}:{line} imports {rest or NAME}; {room} may import {ARROWS[room]}")
    return wrong


def libraries(module, source, is_folder=False):
    """Which third-party library may be imported where, and when."""
    room, wrong = room_of(module), []
    for target, line, loading in imports(module, source, is_folder):
        first = target.split(".")[0]
        lazy_command = room in ("cli", "__main__") and not loading
        lazy_tensorflow = within(module, TENSORFLOW_LAZY) and not loading
        if first == NAME or first in sys.stdlib_module_names:
            continue
        if first == "tensorflow" and not (room in TENSORFLOW_ROOMS or lazy_tensorflow):
            wrong.append(f"{module}:{line} imports tensorflow; only {sorted(TENSORFLOW_ROOMS)} may")
        if first == "keras" and within(module, NUMPY_ONLY):
            wrong.append(f"{module}:{line} imports keras, but works on numpy arrays")
        if first in PICTURES and not (room == "visualize" or lazy_command):
            wrong.append(f"{module}:{line} imports {first}; only visualize and cli may")
        if first not in CORE and loading:
            wrong.append(f"{module}:{line} imports {first}, which is not a core dependency, when it loads")
    return wrong


def heavy_start(modules):
    """Heavy libraries that load together with the command line; `modules`: [(module, is_folder, source)]."""
    by_name = {module: (source, is_folder) for module, is_folder, source in modules}
    waiting, seen, wrong = [name for name in START if name in by_name], set(), []
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        source, is_folder = by_name[module]
        for target, line, loading in imports(module, source, is_folder):
            first, _, rest = target.partition(".")
            if loading and first in HEAVY:
                wrong.append(f"{module or NAME}:{line} imports {first}, and `mrcnn --help` loads it")
            if loading and first == NAME:
                parts = rest.split(".")
                prefixes = (".".join(parts[: end + 1]) for end in range(len(parts)))
                waiting.extend(prefix for prefix in prefixes if prefix in by_name)
    return wrong


def sizes(module, source):
    """Short files, short functions."""
    wrong = []
    if len(source.splitlines()) > FILE_LINES:
        wrong.append(f"{module}: {len(source.splitlines())} lines, at most {FILE_LINES}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FUNCTIONS) and node.end_lineno - node.lineno >= FUNCTION_LINES:
            length = node.end_lineno - node.lineno + 1
            wrong.append(f"{module}:{node.lineno} {node.name} has {length} lines, at most {FUNCTION_LINES}")
    return wrong


def swallowed_errors(module, source):
    """No bare `except:`; no `except Exception` that does nothing."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        if node.type is None:
            wrong.append(f"{module}:{node.lineno} bare except")
        else:
            broad = re.search(r"\b(Base)?Exception\b", ast.unparse(node.type))
            idle = all(
                isinstance(s, ast.Pass) or isinstance(getattr(s, "value", 0), ast.Constant) for s in node.body
            )
            if broad and idle:
                wrong.append(f"{module}:{node.lineno} swallows every exception")
    return wrong


def leftovers(module, source):
    """Work is finished or written down elsewhere, not marked in the code."""
    marks = re.compile(r"\b(TO" + "DO|FIX" + r"ME)\b")
    return [
        f"{module}:{n} {line.strip()}" for n, line in enumerate(source.splitlines(), 1) if marks.search(line)
    ]


def docstrings(module, source):
    """Modules with content, public functions and public classes say what they are."""
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) or not tree.body else [f"{module}: the module has no docstring"]
    for node in tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                missing.append(f"{module}:{node.lineno} {node.name} has no docstring")
    return missing


def constructors(module, source):
    """Few arguments besides `name`, `dtype` and **kwargs."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(method, FUNCTIONS) and method.name == "__init__":
                arguments = method.args.posonlyargs + method.args.args + method.args.kwonlyargs
                names = [a.arg for a in arguments if a.arg not in ("self", "name", "dtype")]
                if len(names) > CONSTRUCTOR_ARGUMENTS:
                    wrong.append(
                        f"{module}:{method.lineno} {node.name} takes {names}, at most {CONSTRUCTOR_ARGUMENTS}"
                    )
    return wrong


@pytest.mark.parametrize("rule", [arrows, libraries], ids=lambda rule: rule.__name__)
def test_imports_of_the_package(rule):
    found = [w for module, is_folder, text in package_sources() for w in rule(module, text, is_folder)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", [docstrings, constructors], ids=lambda rule: rule.__name__)
def test_the_package(rule):
    found = [wrong for module, _, text in package_sources() for wrong in rule(module, text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", [sizes, swallowed_errors, leftovers], ids=lambda rule: rule.__name__)
def test_every_python_file(rule):
    files = sources(NAME, "tests", "examples", "benchmarks", "custom_ops", "configs")
    found = [w for path, text in files.items() for w in rule(str(path.relative_to(REPOSITORY)), text)]
    assert not found, "\n".join(found)


def test_the_command_line_starts_light():
    found = heavy_start(package_sources())
    assert not found, "\n".join(found)


def test_compiled_ops_know_no_module_of_the_package():
    assert not [
        path for path, text in sources("custom_ops").items() if re.search(rf"import.*\b{NAME}\b", text)
    ]


long_function = "def f():\n" + "    x = 1\n" * FUNCTION_LINES
nine = ", ".join(f"a{i}" for i in range(CONSTRUCTOR_ARGUMENTS + 1))


@pytest.mark.parametrize(
    "rule, module, source",
    [
        (arrows, "rpn.anchors", "from keras_mrcnn.roi import sampling"),
        (arrows, "roi.sampling", "from ..rpn.anchors import Anchors"),
        (arrows, "roi.sampling", "def f():\n    import keras_mrcnn.rpn.anchors"),
        (arrows, "roi.sampling", "from keras_mrcnn import MaskRCNN"),
        (arrows, "model", "from keras_mrcnn.data import pipeline"),
        (arrows, "model", "from .serving import export"),
        (arrows, "losses", "import importlib\nimportlib.import_module('keras_mrcnn.model')"),
        (arrows, "cli", "import tests.conftest"),
        (arrows, "cli", "from examples import otsu"),
        (arrows, "unheard_of", ""),
        (libraries, "rpn.head", "def f():\n    import tensorflow as tf"),
        (libraries, "cli", "from tensorflow import io"),
        (libraries, "losses", "from tensorflow.python import ops"),
        (libraries, "evaluation.coco", "import keras"),
        (libraries, "data.images", "def f():\n    import cv2"),
        (libraries, "visualize", "import matplotlib.pyplot as plt"),
        (libraries, "weights.files", "import torch"),
        (libraries, "weights.files", "import tensorflow as tf"),
        (libraries, "weights.load", "def f():\n    import tensorflow as tf"),
        (sizes, "m", "x = 1\n" * (FILE_LINES + 1)),
        (sizes, "m", long_function),
        (swallowed_errors, "m", "try:\n    x\nexcept:\n    raise"),
        (swallowed_errors, "m", "try:\n    x\nexcept (OSError, Exception):\n    pass"),
        (swallowed_errors, "m", "try:\n    x\nexcept BaseException as e:\n    ..."),
        (leftovers, "m", "x = 1  # TO" + "DO: later"),
        (docstrings, "m", "x = 1"),
        (docstrings, "m", '"""A module."""\ndef f():\n    pass'),
        (docstrings, "m", '"""A module."""\nclass C:\n    x = 1'),
        (constructors, "m", f"class C:\n    def __init__(self, {nine}, name=None):\n        pass"),
    ],
)
def test_rule_catches(rule, module, source):
    assert len(rule(module, source)) == 1


@pytest.mark.parametrize(
    "rule, module, source",
    [
        (
            arrows,
            "rpn.head",
            "from keras_mrcnn.rpn import anchors\nfrom .anchors import x\nfrom ..ops import nms",
        ),
        (arrows, "model", "from keras_mrcnn.data import images\nfrom .data.images import read"),
        (arrows, "cli", "from keras_mrcnn.serving import export\nfrom . import data"),
        (libraries, "cli", "def f():\n    import tensorflow as tf\n    import cv2"),
        (libraries, "weights.files", "def f():\n    import tensorflow as tf"),
        (libraries, "visualize", "import numpy as np\ndef f():\n    import cv2"),
        (libraries, "model", "import tensorflow as tf\nimport keras\nimport math"),
        (sizes, "m", "x = 1\n" * FILE_LINES),
        (sizes, "m", long_function.replace("    x = 1\n", "", 1)),
        (
            swallowed_errors,
            "m",
            "try:\n    x\nexcept OSError:\n    pass\nexcept Exception:\n    log()\n    raise",
        ),
        (docstrings, "m", ""),
        (docstrings, "m", '"""A module."""\ndef _f():\n    pass'),
        (
            constructors,
            "m",
            f"class C:\n    def __init__(self, {nine[4:]}, name=None, dtype=None, **kw):\n        pass",
        ),
    ],
)
def test_rule_lets_pass(rule, module, source):
    assert rule(module, source) == []


def test_relative_imports_of_a_folder_start_at_the_folder():
    assert [target for target, *_ in imports("rpn", "from . import head", True)] == ["keras_mrcnn.rpn.head"]
    assert [target for target, *_ in imports("", "from .model import X", True)] == ["keras_mrcnn.model.X"]
    assert arrows("rpn", "from ..roi import sampling", True)


def test_heavy_start_follows_the_imports():
    light = [("", True, ""), ("cli", False, "import click\ndef f():\n    from keras_mrcnn import model")]
    middle = ("middle", False, "from .model import M")
    model = ("model", False, "import keras")
    assert heavy_start([*light, middle, model]) == []
    assert len(heavy_start([("", True, "from .middle import M"), middle, model])) == 1
    assert len(heavy_start([("cli", False, "import keras_mrcnn.middle"), middle, model])) == 1
