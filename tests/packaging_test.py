"""What an installation brings. Oracles: setup.cfg, as setuptools reads it; the imports, as
ast reads them; Python's own import system, told that a package is absent.
"""

import ast
import configparser
import importlib.metadata
import itertools
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

CORE = {"jax", "flax", "optax", "orbax-checkpoint", "chex", "dm-pix", "numpy"}
# Read by those who installed them by hand: oracles and comparisons.
BY_HAND = {"torch", "diffusers", "denoising_diffusion_pytorch"}
# What a stranger who wants only the library has no use for; absl comes with chex.
ABSENT = [
    *("array_record", "equinox", "grain", "matplotlib", "ml_collections", "mypy", "PIL", "pytest"),
    *("sklearn", "tensorboardX", "tensorflow", "tensorflow_datasets", "torch", "tqdm"),
]

# Not read by `import diffjax`, and of use only with the extra.
OF_THE_DATA_EXTRA = {"diffjax/data.py", "diffjax/encoded.py", "diffjax/images.py"}

INSTALLED = importlib.metadata.packages_distributions()  # {module: [distribution]}
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def lines(text):
    return {line.strip() for line in text.splitlines() if line.strip() and line.strip()[0] != "#"}


def name(requirement):
    """The name alone, spelled as in an index: lower case, hyphens."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def requirements(extra=None):
    """What comes with the library alone, or with an extra and those that the extra names."""
    found = lines(SETUP["options"]["install_requires"])
    for line in lines(SETUP["options.extras_require"][extra]) if extra else ():
        other = re.fullmatch(r"diffjax\[(\w+)\]", line)
        found |= requirements(other[1]) if other else {line}
    return found


def imports(source):
    """(what is imported when the module is, what only inside functions): top-level names."""
    tree = ast.parse(source)
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = set(), set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        found[node in inside].update(name.split(".")[0] for name in names)
    return found


def foreign(modules, allowed):
    """Those of the modules that are neither Python's, ours nor of an allowed distribution."""
    ours = {"diffjax", "experiments"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    allowed = {name(requirement) for requirement in allowed}
    return {
        module
        for module in modules - ours - sys.stdlib_module_names
        if module not in BY_HAND
        and not allowed & {name(one) for one in INSTALLED.get(module, [module])}
    }


def test_the_library_needs_what_the_design_names_and_no_more():
    assert {name(line) for line in requirements()} == CORE


def test_requirements_txt_is_all_that_setup_cfg_names():
    listed = lines((ROOT / "requirements.txt").read_text())
    assert listed == requirements("test")


def test_an_extra_brings_what_it_builds_on():
    chain = [requirements(extra) for extra in (None, "data", "experiments", "test")]
    assert all(less < more for less, more in itertools.pairwise(chain))


@pytest.mark.parametrize(
    ("folder", "extra", "extra_in_functions"),
    [
        ("diffjax", None, "data"),
        ("experiments", "experiments", "gcs"),
        ("tests", "test", "test"),
    ],
)
def test_every_import_belongs_to_what_is_declared(folder, extra, extra_in_functions):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    for path in paths:
        at_once, later = imports(path.read_text(encoding="utf-8"))
        top = "data" if path.relative_to(ROOT).as_posix() in OF_THE_DATA_EXTRA else extra
        assert foreign(at_once, requirements(top)) == set(), f"{path}: at its top"
        assert foreign(later, requirements(extra_in_functions)) == set(), f"{path}: in functions"


def test_an_import_that_nothing_declares_is_seen():
    at_once, later = imports(
        "import os, jax.numpy as jnp\nimport yaml\ndef f():\n    from sklearn import svm\n"
        "class A:\n    import PIL.Image\n"
    )
    assert (at_once, later) == ({"os", "jax", "yaml", "PIL"}, {"sklearn"})
    assert foreign(at_once, requirements()) == {"yaml", "PIL"}
    assert foreign(later, requirements()) == {"sklearn"}
    assert foreign(at_once | later, requirements("data")) == {"yaml"}


# An absent package is one that no finder finds.
WITHOUT = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)

sys.meta_path.insert(0, Absent())
import diffjax
for module in pkgutil.walk_packages(diffjax.__path__, "diffjax."):
    if module.name not in {"diffjax.data", "diffjax.encoded", "diffjax.images"}:
        importlib.import_module(module.name)
"""


def without(*packages, code=WITHOUT):
    command = [sys.executable, "-c", code, *packages]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300)


def test_the_library_imports_without_the_extras():
    run = without(*ABSENT)
    assert run.returncode == 0, run.stderr


def test_a_package_that_the_library_needs_is_missed():
    run = without("optax")
    assert run.returncode == 1
    assert "No module named 'optax'" in run.stderr


def test_the_version_is_written_once_where_setuptools_reads_it_without_importing():
    assert SETUP["metadata"]["version"] == "attr: diffjax.__version__"
    tree = ast.parse((ROOT / "diffjax" / "__init__.py").read_text(encoding="utf-8"))
    values = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert len(values) == 1
    assert re.fullmatch(r"\d+\.\d+\.\d+", values[0])


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "diffjax" / "py.typed").is_file()
    assert SETUP["options.package_data"]["diffjax"] == "py.typed"
