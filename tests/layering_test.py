"""DESIGN's layers, read off the imports: each floor imports only lower ones.

The rules are a function of {path: source}, so that each is tried on a small wrong
house as well. A new file of diffjax/ must be given its floor in FLOORS; operators/ and
models/ are floor 0 whole.
"""

import ast
import graphlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

FLOORS = (
    {
        "linear",
        "losses",
        "metrics",
        "predictions",
        "priors",
        "samplers",
        "schedules",
        "solvers",
        "times",
    },
    {"degradations", "cold", "hot", "laws", "occlusions"},
    {"diagnostics", "measurements", "preconditioning", "training", "verdicts"},
    {"checkpoints", "data", "parallel"},
)
WHOLE_FOLDERS = ("operators", "models")  # floor 0

FLOOR_0_MAY_IMPORT = {"jax", "numpy", "chex"}
AND_MAY = {"models": {"flax"}, "metrics": {"dm_pix"}, "priors": {"sklearn"}}

# Who alone may import a package; the benchmark's opponents may be torch's, and import the twins,
# which need it whole, where they are called.
TWINS = "experiments/lib/torch_twins.py"
OWNERS = {
    "orbax": {"diffjax/checkpoints.py"},
    "grain": {"diffjax/data.py"},
    "tensorflow_datasets": {"diffjax/data.py"},
    "tensorflow": set(),
    "torch": {"experiments/lib/opponents.py", TWINS},
}

MAPPED = {"pmap", "shard_map", "NamedSharding", "Mesh", "multihost_utils"}
TOPOLOGY = {"process_index", "process_count", "local_device_count", "device_count"}
# laws.py tries the law "jit = eager = vmap = pmap" on a user's degradation.
MAY_MAP = {"diffjax/parallel.py", "diffjax/laws.py"}
MAY_ASK_FOR_TOPOLOGY = MAY_MAP | {"diffjax/data.py"}


def floor(module):
    """0..3 for `diffjax.module`; None for one that FLOORS does not know."""
    if module.split(".")[0] in WHOLE_FOLDERS:
        return 0
    return next((i for i, modules in enumerate(FLOORS) if module in modules), None)


def module_name(path):
    """operators/noise.py -> operators.noise; a package by its own name; diffjax itself is ''."""
    parts = pathlib.PurePosixPath(path).with_suffix("").parts[1:]
    return ".".join(part for part in parts if part != "__init__")


def imports(path, source):
    """Every dotted name that an import statement may load, absolute; `from a import b`: a.b."""
    package = pathlib.PurePosixPath(path).parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def internal(path, source, modules):
    """The modules of diffjax that a file imports; '' is the facade diffjax/__init__.py."""
    for name in imports(path, source):
        head, *rest = name.split(".")
        if head == "diffjax":
            # The longest beginning that is a module: the rest is a name in it.
            names = (".".join(rest[:n]) for n in range(len(rest), 0, -1))
            yield next((name for name in names if name in modules), "")


def named(source):
    """Every identifier in code: names, attributes and what is imported; no strings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield from node.name.split(".")


def at_top_level(source):
    """The source of the statements that run on import: function bodies left out."""
    return "\n".join(
        ast.unparse(node)
        for node in ast.parse(source).body
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def floor_violations(house):
    modules = {module_name(path) for path in house if path.startswith("diffjax/")}
    edges = {}
    for path, source in house.items():
        module = module_name(path)
        if not path.startswith("diffjax/") or not module or module in WHOLE_FOLDERS:
            continue
        own = floor(module)
        if own is None:
            yield f"{path} is on no floor: add it to a floor in tests/layering_test.py"
            continue
        edges[module] = set(internal(path, source, modules))
        for other in sorted(edges[module]):
            above = floor(other)
            if other == "" or above is None:
                yield f"{path} imports diffjax.{other}: name a module that is on a floor"
            elif own == 0:
                yield f"{path} is on floor 0 and imports diffjax.{other}"
            elif above > own:
                yield f"{path} is on floor {own} and imports diffjax.{other} of floor {above}"
        if own == 0:
            head = module.split(".")[0]
            may = FLOOR_0_MAY_IMPORT | AND_MAY.get(head, set()) | sys.stdlib_module_names
            for root in sorted({name.split(".")[0] for name in imports(path, source)}):
                if root not in may | {"diffjax"}:
                    yield f"{path} is on floor 0 and imports {root}"
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        yield f"a cycle of imports: {' -> '.join(error.args[1])}"


def ownership_violations(house):
    for path, source in house.items():
        roots = {name.split(".")[0] for name in imports(path, source)}
        for package, owners in OWNERS.items():
            if package in roots and path not in owners:
                yield f"{path} imports {package}; only {', '.join(owners) or 'nobody'} may"
        top_level = set(imports(path, at_top_level(source)))
        if path != TWINS and "torch" in {name.split(".")[0] for name in top_level}:
            yield f"{path} imports torch at its top level"
        if "experiments.lib.torch_twins" in top_level:
            yield f"{path} imports the twins, and with them torch, at its top level"
        names = set(named(source))
        if path not in MAY_MAP and names & MAPPED:
            yield f"{path} names {', '.join(sorted(names & MAPPED))}; only parallel.py may"
        if path.startswith("diffjax/") and path not in MAY_ASK_FOR_TOPOLOGY and names & TOPOLOGY:
            yield f"{path} names {', '.join(sorted(names & TOPOLOGY))}; only parallel.py may"


def facade_violations(house):
    for path, source in house.items():
        body = ast.parse(source).body
        if path in {f"diffjax/{folder}/__init__.py" for folder in WHOLE_FOLDERS}:
            if list(imports(path, source)):
                yield f"{path} imports something"
        elif path == "diffjax/__init__.py":
            docstring = ast.get_docstring(ast.parse(source)) is not None
            if not all(isinstance(node, ast.Import | ast.ImportFrom) for node in body[docstring:]):
                yield f"{path} holds more than imports"


RULES = (floor_violations, ownership_violations, facade_violations)


def test_the_house():
    house = {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for folder in ("diffjax", "experiments")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    assert {"diffjax/__init__.py", "diffjax/operators/separable.py"} <= set(house)
    assert [line for rule in RULES for line in rule(house)] == []


GOOD = {
    "diffjax/__init__.py": '"""Names."""\nfrom diffjax.losses import l1 as l1',
    "diffjax/operators/__init__.py": '"""Nothing."""',
    "diffjax/operators/mask.py": "import math\nimport jax.numpy as jnp\nimport chex",
    "diffjax/models/unet.py": "import flax.linen as nn",
    "diffjax/losses.py": "import jax",
    "diffjax/priors.py": "def fit():\n    from sklearn.mixture import GaussianMixture",
    "diffjax/degradations.py": "import jax",
    "diffjax/cold.py": "from diffjax.operators import mask\nfrom diffjax.degradations import x",
    "diffjax/training.py": '"""pmap is not named here."""\nfrom diffjax import cold, losses',
    "diffjax/parallel.py": "import jax\njax.pmap\nfrom jax.sharding import Mesh",
    "diffjax/data.py": "import grain\nimport jax\njax.process_index()",
    "diffjax/checkpoints.py": "import orbax.checkpoint as ocp",
    "experiments/train.py": "from diffjax import data\nimport jax\njax.process_index()",
    "experiments/lib/opponents.py": "def main():\n    import torch",
}

WRONG = [
    ("diffjax/novel.py", "", "add it to a floor"),
    ("diffjax/losses.py", "import diffjax", "losses.py imports diffjax.: name a module"),
    ("diffjax/losses.py", "from diffjax import priors", "on floor 0 and imports diffjax.priors"),
    ("diffjax/operators/snow.py", "from . import mask", "imports diffjax.operators.mask"),
    ("diffjax/operators/snow.py", "from ..losses import l1", "imports diffjax.losses"),
    ("diffjax/losses.py", "import scipy.ndimage", "on floor 0 and imports scipy"),
    ("diffjax/losses.py", "import flax.linen", "on floor 0 and imports flax"),
    ("diffjax/losses.py", "def f():\n    import diffjax.priors", "imports diffjax.priors"),
    ("diffjax/cold.py", "from diffjax.training import train_step", "imports diffjax.training of"),
    ("diffjax/cold.py", "from diffjax import degrade", "cold.py imports diffjax.: name a module"),
    ("diffjax/training.py", "import diffjax.parallel", "imports diffjax.parallel of floor 3"),
    ("diffjax/degradations.py", "from diffjax import cold", "a cycle of imports: "),
    (
        "diffjax/training.py",
        "import orbax.checkpoint",
        "imports orbax; only diffjax/checkpoints.py",
    ),
    ("experiments/train.py", "from orbax import checkpoint", "imports orbax"),
    ("experiments/train.py", "import grain", "imports grain; only diffjax/data.py may"),
    ("diffjax/parallel.py", "import tensorflow_datasets as tfds", "imports tensorflow_datasets"),
    ("diffjax/data.py", "def f():\n    import tensorflow as tf", "imports tensorflow; only nobody"),
    ("experiments/train.py", "def f():\n    import torch", "imports torch; only"),
    ("experiments/lib/opponents.py", "import torch", "imports torch at its top level"),
    (
        "experiments/lib/opponents.py",
        "try:\n    import torch\nfinally:\n    pass",
        "at its top level",
    ),
    (
        "experiments/lib/opponents.py",
        "from experiments.lib import torch_twins",
        "imports the twins",
    ),
    ("diffjax/training.py", "import jax\njax.pmap", "names pmap; only parallel.py may"),
    ("experiments/train.py", "from jax import shard_map", "names shard_map"),
    ("diffjax/training.py", "import jax\nf = jax.process_index", "names process_index"),
    ("diffjax/operators/__init__.py", "from diffjax.operators import mask", "imports something"),
    ("diffjax/models/__init__.py", "import jax", "imports something"),
    ("diffjax/__init__.py", "import jax\nx = 1", "holds more than imports"),
]


def test_a_good_house_has_no_violations():
    assert [line for rule in RULES for line in rule(GOOD)] == []


@pytest.mark.parametrize(("path", "source", "message"), WRONG)
def test_a_wrong_house_is_told_so(path, source, message):
    lines = [line for rule in RULES for line in rule(GOOD | {path: source})]
    assert any(message in line for line in lines), lines
