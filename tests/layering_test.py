"""The README's picture of the layers, against the imports: each goes strictly down.

The rules are functions of {path: source}, README.md among them, so that each is tried on a small
wrong house as well. A new file needs its word in the picture under "## Layers" of README.md, and
nothing here. experiments/studies, lib and configs are left out of the picture: they lie, from top
to bottom, between the commands and the library.
"""

import ast
import graphlib
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# How the picture's lines begin, from top to bottom, and the folder that each means.
PLACES = {
    "experiments/": "experiments/",
    "diffjax/auditing/": "diffjax/auditing/",
    "diffjax/": "diffjax/",
    "diffjax/degradations/": "diffjax/degradations/",
    "ground": "diffjax/",
    "devices, data": "diffjax/",
}
UNDRAWN = ("experiments/studies/", "experiments/lib/", "experiments/configs/")

# Ground and degradations lift out.
LIFTED_MAY_IMPORT = {"jax", "numpy", "chex"}
AND_MAY = {"models": {"flax"}, "metrics": {"dm_pix"}, "priors": {"sklearn"}}
# What lifts out with a family: base, and for these schedules.
NEED_SCHEDULES = {"noise", "heat"}

# Who alone may import a package; the benchmark's opponents may be torch's, and import the twins,
# which need it whole, where they are called.
TWINS = "experiments/lib/torch_twins.py"
OWNERS = {
    "orbax": {"diffjax/checkpoints.py"},
    "grain": {"diffjax/data.py"},
    "tensorflow_datasets": {"diffjax/encoded.py"},
    "tensorflow": set(),
    "torch": {"experiments/lib/opponents.py", TWINS},
    # Between the hosts of one run; a user's file is never unpickled.
    "pickle": {"experiments/lib/build.py", "experiments/lib/scores.py"},
}
EVALUATES = {"eval", "exec"}  # nobody: what a config names is imported
# What is optional or slow to import: inside functions only.
INSIDE_FUNCTIONS = {
    "torch": "experiments/",
    "sklearn": "diffjax/",
    "matplotlib": "experiments/lib/",
}

MAPPED = {"pmap", "shard_map", "NamedSharding", "Mesh", "multihost_utils"}
TOPOLOGY = {"process_index", "process_count", "local_device_count", "device_count"}
# laws.py tries the law "jit = eager = vmap = pmap" on a user's degradation.
MAY_MAP = {"diffjax/parallel.py", "diffjax/degradations/laws.py"}
# One host alone renames what is damaged on disk.
MAY_ASK_FOR_TOPOLOGY = MAY_MAP | {"diffjax/data.py", "diffjax/checkpoints.py"}


def picture(readme):
    """[(place, [path, ...]), ...] from top to bottom: the indented lines under "## Layers"."""
    section = readme.partition("\n## Layers\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^    (\S+(?: \S+)*) {2,}(\S.*)$", section, re.MULTILINE)
    return [
        (place, [f"{PLACES.get(place, place)}{name}.py" for name in names.split()])
        for place, names in lines
    ]


def levels(house):
    """{path: how far below the top}, with studies, lib and configs below the commands."""
    drawn = [paths for _, paths in picture(house["README.md"])]
    undrawn = [[path for path in house if path.startswith(folder)] for folder in UNDRAWN]
    return {
        path: level
        for level, paths in enumerate([*drawn[:1], *undrawn, *drawn[1:]])
        for path in paths
    }


def lines_of(house, place, *parts):
    """The files of the place's lines that each slice picks."""
    lines = [paths for where, paths in picture(house["README.md"]) if where == place]
    return [[path for paths in lines[part] for path in paths] for part in parts]


def ground(house):
    """The files that lift out alone; those that know devices, disk or data."""
    (alone,) = lines_of(house, "ground", slice(None))
    (outside,) = lines_of(house, "devices, data", slice(None))
    return alone, outside


def degradations(house):
    """What stands above the families, e.g. their laws; the families; base."""
    place = "diffjax/degradations/"
    return lines_of(house, place, slice(-2), slice(-2, -1), slice(-1, None))


def code(house):
    return {path: source for path, source in house.items() if path.endswith(".py")}


def imports(path, source):
    """(dots, name) of all that an import statement may load; `from a import b`: a.b, absolute."""
    package = pathlib.PurePosixPath(path).parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            yield from ((node.level, ".".join([*base, alias.name])) for alias in node.names)


def roots(path, source):
    return {name.split(".")[0] for _, name in imports(path, source)}


def internal(path, house):
    """The files of the house that a file imports: the longest beginning of a name that is one."""
    for _, name in imports(path, house[path]):
        parts = name.split(".")
        beginnings = ("/".join(parts[:n]) for n in range(len(parts), 0, -1))
        files = (f"{b}{end}" for b in beginnings for end in (".py", "/__init__.py"))
        found = next((file for file in files if file in house), None)
        if found is not None:
            yield found


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


def picture_violations(house):
    drawn = picture(house["README.md"])
    places = [place for place, _ in drawn]
    for place in sorted({*places} - {*PLACES}):
        yield f"README.md draws {place}, which is none of {', '.join(PLACES)}"
    if list(dict.fromkeys(places)) != list(PLACES):
        yield f"README.md must draw {', '.join(PLACES)} in this order; it draws {places}"
    words = [path for _, paths in drawn for path in paths]
    for path in sorted({path for path in words if words.count(path) > 1}):
        yield f"README.md draws {path} twice"
    files = {
        path
        for path in code(house)
        if not path.endswith("/__init__.py") and not path.startswith(UNDRAWN)
    }
    for path in sorted(files - {*words}):
        yield f"{path} is not in the picture under ## Layers of README.md: add its word"
    for path in sorted({*words} - files):
        yield f"{path} is in the picture under ## Layers of README.md and nowhere else"


def direction_violations(house):
    level = levels(house)
    edges = {}
    for path in code(house):
        if path.endswith("/__init__.py") or path not in level:
            continue
        edges[path] = set(internal(path, house)) - {"experiments/__init__.py"}
        for other in sorted(edges[path]):
            # configs are deltas on one another, and the files of lib are one another's helpers.
            together = any(path.startswith(f) and other.startswith(f) for f in UNDRAWN)
            facade = other == "diffjax/__init__.py" and path.startswith("experiments/")
            if other not in level:
                if not facade:
                    yield f"{path} imports {other}: name a file that the picture holds"
            elif not (level[other] > level[path] or together):
                yield f"{path} imports {other}, which is not below it"
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        yield f"a cycle of imports: {' -> '.join(error.args[1])}"


def lifting_violations(house):
    alone, outside = ground(house)
    above, families, base = degradations(house)
    for path in [*alone, *above, *families, *base]:
        name = path.removeprefix("diffjax/").removesuffix(".py").split("/")[0]
        may = LIFTED_MAY_IMPORT | AND_MAY.get(name, set()) | sys.stdlib_module_names
        for root in sorted(roots(path, house.get(path, "")) - may - {"diffjax"}):
            yield f"{path} must lift out, and imports {root}"
    for path in [*alone, *outside, *base]:
        # Of devices and data, one file may use those below it.
        may = {*outside} if path in outside else set()
        for other in sorted({*internal(path, house)} - may if path in house else ()):
            yield f"{path} must lift out alone, and imports {other}"
    for path in families:
        may = {*base}
        if pathlib.PurePosixPath(path).stem in NEED_SCHEDULES:
            may.add("diffjax/schedules.py")
        for other in sorted({*internal(path, house)} - may if path in house else ()):
            yield f"{path} must lift out with {', '.join(sorted(may))}, and imports {other}"
        for dots, name in imports(path, house.get(path, "")):
            if name.split(".")[0] == "diffjax" and not dots:
                yield f"{path} must lift out, and imports {name} by its absolute name"


def ownership_violations(house):
    for path, source in code(house).items():
        for package, owners in OWNERS.items():
            if package in roots(path, source) and path not in owners:
                yield f"{path} imports {package}; only {', '.join(sorted(owners)) or 'nobody'} may"
        for package in sorted(roots(path, at_top_level(source)) & {*INSIDE_FUNCTIONS}):
            if path.startswith(INSIDE_FUNCTIONS[package]) and path != TWINS:
                yield f"{path} imports {package} at its top level"
        top = {name for _, name in imports(path, at_top_level(source))}
        if "experiments.lib.torch_twins" in top:
            yield f"{path} imports the twins, and with them torch, at its top level"
        names = set(named(source))
        for name in sorted(names & EVALUATES):
            yield f"{path} names {name}, which nobody may"
        if path not in MAY_MAP and names & MAPPED:
            yield f"{path} names {', '.join(sorted(names & MAPPED))}; only parallel.py may"
        if path.startswith("diffjax/") and path not in MAY_ASK_FOR_TOPOLOGY and names & TOPOLOGY:
            yield f"{path} names {', '.join(sorted(names & TOPOLOGY))}; only parallel.py may"


def is_name_or_import(node):
    """An import, or one of Python's own names: __version__, __all__."""
    if isinstance(node, ast.Assign):
        return all(isinstance(t, ast.Name) and t.id.startswith("__") for t in node.targets)
    return isinstance(node, ast.Import | ast.ImportFrom)


def facade_violations(house):
    for path, source in code(house).items():
        body = ast.parse(source).body
        body = body[ast.get_docstring(ast.parse(source)) is not None :]
        if path == "diffjax/__init__.py":
            if not all(map(is_name_or_import, body)):
                yield f"{path} holds more than imports"
        elif path.endswith("/__init__.py") and body:
            yield f"{path} must be empty"


RULES = (
    picture_violations,
    direction_violations,
    lifting_violations,
    ownership_violations,
    facade_violations,
)


def the_house():
    return {"README.md": (ROOT / "README.md").read_text()} | {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for folder in ("diffjax", "experiments")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


@pytest.mark.parametrize("rule", RULES)
def test_the_house(rule):
    house = the_house()
    assert {"diffjax/__init__.py", "diffjax/degradations/blur.py"} <= set(house)
    lines = list(rule(house))
    assert not lines, "\n".join(lines)


README = """
# Title

## Layers

Prose.

    experiments/            train sample benchmark
    diffjax/auditing/       audit
    diffjax/auditing/       checks
    diffjax/                blind
    diffjax/                training
    diffjax/                restorers
    diffjax/degradations/   laws families
    diffjax/degradations/   noise mask
    diffjax/degradations/   base
    ground                  schedules losses samplers priors metrics models/unet
    devices, data           parallel checkpoints data

More prose.

## Next

    diffjax/                elsewhere
"""

GOOD = {
    "README.md": README,
    "diffjax/__init__.py": (
        '"""Names."""\nfrom diffjax.losses import l1 as l1\n__version__ = "1"\n__all__ = ["l1"]'
    ),
    "diffjax/auditing/__init__.py": "",
    "diffjax/auditing/audit.py": "from . import checks\nfrom diffjax import training",
    "diffjax/auditing/checks.py": "import jax",
    "diffjax/blind.py": "from diffjax import parallel, restorers",
    "diffjax/training.py": '"""pmap is not named here."""\nfrom diffjax import restorers, losses',
    "diffjax/restorers.py": "from diffjax import samplers\nfrom diffjax.degradations.base import x",
    "diffjax/degradations/__init__.py": "",
    "diffjax/degradations/laws.py": (
        "import jax\njax.pmap\nfrom diffjax import samplers\nfrom diffjax.degradations import base"
    ),
    "diffjax/degradations/families.py": "from .base import x\nfrom .mask import fade",
    "diffjax/degradations/noise.py": "from .. import schedules\nfrom .base import Degradation",
    "diffjax/degradations/mask.py": "import math\nimport jax.numpy as jnp\nfrom . import base",
    "diffjax/degradations/base.py": "import chex",
    "diffjax/schedules.py": "import numpy as np",
    "diffjax/losses.py": "import jax",
    "diffjax/samplers.py": "import jax",
    "diffjax/priors.py": "def fit():\n    from sklearn.mixture import GaussianMixture",
    "diffjax/metrics.py": "import dm_pix",
    "diffjax/models/__init__.py": '"""Nothing."""',
    "diffjax/models/unet.py": "import flax.linen as nn",
    "diffjax/parallel.py": "import jax\njax.pmap\nfrom jax.sharding import Mesh",
    "diffjax/data.py": "import grain\nimport jax\njax.process_index()",
    "diffjax/checkpoints.py": "import orbax.checkpoint as ocp",
    "experiments/__init__.py": "",
    "experiments/train.py": (
        "from diffjax import data\nimport jax\njax.process_index()\n"
        "from experiments.lib import build\nfrom experiments.configs import default"
    ),
    "experiments/sample.py": "import diffjax\nfrom experiments.lib.build import Run",
    "experiments/benchmark.py": "from experiments.lib import opponents",
    "experiments/lib/opponents.py": "def main():\n    import torch",
    "experiments/configs/__init__.py": "",
    "experiments/configs/default.py": "from diffjax import schedules",
    "experiments/configs/digits.py": "from experiments.configs import default",
    "experiments/lib/__init__.py": "",
    "experiments/lib/build.py": "from experiments.lib.config import load\nimport sklearn",
    "experiments/lib/config.py": "from diffjax import losses",
}


def drawn(old, new):
    """A picture that says something else."""
    assert old in README
    return ("README.md", README.replace(old, new))


WRONG = [
    ("diffjax/novel.py", "", "diffjax/novel.py is not in the picture"),
    ("diffjax/degradations/novel.py", "", "novel.py is not in the picture"),
    ("diffjax/models/dit.py", "", "models/dit.py is not in the picture"),
    ("experiments/novel.py", "", "experiments/novel.py is not in the picture"),
    (*drawn(" blind", " blind gone"), "diffjax/gone.py is in the picture under"),
    (*drawn(" mask", " mask base"), "README.md draws diffjax/degradations/base.py twice"),
    (*drawn("ground   ", "floor_0  "), "README.md draws floor_0, which is none of"),
    (*drawn("    diffjax/                restorers\n", ""), "restorers.py is not in the picture"),
    ("README.md", "# Title", "README.md must draw experiments/, diffjax/auditing/, diffjax/"),
    (
        "README.md",
        re.sub(r"( +ground.*\n)( +devices.*\n)", "", README).replace(
            "Prose.\n\n", "Prose.\n\n" + "".join(re.findall(r" +(?:ground|devices).*\n", README))
        ),
        "in this order; it draws ['ground', 'devices, data', 'experiments/'",
    ),
    (*drawn("restorers\n", "training\n"), "diffjax/training.py twice"),
    ("diffjax/auditing/checks.py", "from . import audit", "audit.py, which is not below it"),
    ("diffjax/blind.py", "from diffjax.auditing.audit import audit", "which is not below it"),
    ("diffjax/training.py", "from diffjax import blind", "blind.py, which is not below it"),
    ("diffjax/restorers.py", "import diffjax.training", "training.py, which is not below it"),
    ("diffjax/restorers.py", "def f():\n    import diffjax.blind", "which is not below it"),
    ("diffjax/degradations/laws.py", "from .. import restorers", "which is not below it"),
    ("diffjax/degradations/laws.py", "from . import families", "which is not below it"),
    ("diffjax/degradations/noise.py", "from . import laws", "which is not below it"),
    ("diffjax/degradations/noise.py", "from . import mask", "which is not below it"),
    ("diffjax/degradations/base.py", "from .mask import fade", "which is not below it"),
    ("diffjax/losses.py", "from diffjax import priors", "which is not below it"),
    ("diffjax/training.py", "from experiments.lib import build", "which is not below it"),
    ("experiments/sample.py", "from experiments import train", "which is not below it"),
    ("experiments/configs/default.py", "from experiments.lib import build", "not below it"),
    ("experiments/configs/default.py", "from experiments import train", "which is not below it"),
    ("experiments/lib/config.py", "from experiments.lib import build", "a cycle of imports: "),
    ("diffjax/restorers.py", "import diffjax", "imports diffjax/__init__.py: name a file"),
    ("diffjax/restorers.py", "from diffjax import degrade", "diffjax/__init__.py: name a file"),
    (
        "diffjax/restorers.py",
        "from diffjax.degradations import degrade",
        "imports diffjax/degradations/__init__.py: name a file that the picture holds",
    ),
    (
        "diffjax/samplers.py",
        "from .losses import l1",
        "samplers.py must lift out alone, and imports diffjax/losses.py",
    ),
    ("diffjax/samplers.py", "from diffjax import data", "alone, and imports diffjax/data.py"),
    ("diffjax/data.py", "from diffjax import losses", "alone, and imports diffjax/losses.py"),
    ("diffjax/losses.py", "def f():\n    import diffjax.priors", "alone, and imports"),
    ("diffjax/degradations/base.py", "from .. import schedules", "alone, and imports"),
    ("diffjax/losses.py", "import scipy.ndimage", "losses.py must lift out, and imports scipy"),
    ("diffjax/losses.py", "import flax.linen", "losses.py must lift out, and imports flax"),
    ("diffjax/models/unet.py", "import optax", "models/unet.py must lift out, and imports optax"),
    ("diffjax/degradations/mask.py", "import scipy", "mask.py must lift out, and imports scipy"),
    (
        "diffjax/degradations/mask.py",
        "from ..schedules import flow",
        "mask.py must lift out with diffjax/degradations/base.py, and imports diffjax/schedules",
    ),
    (
        "diffjax/degradations/noise.py",
        "from .. import samplers",
        "noise.py must lift out with diffjax/degradations/base.py, diffjax/schedules.py, and",
    ),
    (
        "diffjax/degradations/noise.py",
        "from diffjax.degradations.base import x",
        "imports diffjax.degradations.base.x by its absolute name",
    ),
    ("diffjax/training.py", "import orbax.checkpoint", "imports orbax; only diffjax/checkpoints"),
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
    ("experiments/lib/config.py", "import pickle", "imports pickle; only experiments/lib/build.py"),
    ("experiments/lib/config.py", "x = eval('1')", "names eval, which nobody may"),
    ("diffjax/data.py", "import builtins\nbuiltins.exec('')", "names exec, which nobody may"),
    ("diffjax/priors.py", "from sklearn import mixture", "imports sklearn at its top level"),
    (
        "experiments/lib/opponents.py",
        "from experiments.lib import torch_twins",
        "imports the twins",
    ),
    ("diffjax/training.py", "import jax\njax.pmap", "names pmap; only parallel.py may"),
    ("experiments/train.py", "from jax import shard_map", "names shard_map"),
    ("diffjax/training.py", "import jax\nf = jax.process_index", "names process_index"),
    ("diffjax/degradations/__init__.py", "from . import mask", "__init__.py must be empty"),
    ("diffjax/models/__init__.py", "import jax", "diffjax/models/__init__.py must be empty"),
    ("experiments/lib/__init__.py", "x = 1", "experiments/lib/__init__.py must be empty"),
    ("diffjax/__init__.py", "import jax\nx = 1", "holds more than imports"),
]


def test_a_good_house_has_no_violations():
    assert [line for rule in RULES for line in rule(GOOD)] == []


@pytest.mark.parametrize(("path", "source", "message"), WRONG)
def test_a_wrong_house_is_told_so(path, source, message):
    lines = []
    for rule in RULES:
        lines += rule(GOOD | {path: source})
    assert any(message in line for line in lines), lines


def test_the_picture_is_read_from_its_section_alone():
    drawn_paths = dict.fromkeys(path for _, paths in picture(README) for path in paths)
    assert "diffjax/elsewhere.py" not in drawn_paths
    assert [place for place, _ in picture(README)][:3] == [
        "experiments/",
        *["diffjax/auditing/"] * 2,
    ]
    assert picture(README)[-2][1][-1] == "diffjax/models/unet.py"
