"""What lifts out, copied alone into an empty folder, imports there: no diffjax in reach.

Every ground file by itself; every family of degradations/ as a package with base.py, and with
schedules.py where it needs it. The names come from the README's picture (layering_test).
"""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from layering_test import NEED_SCHEDULES, ROOT, degradations, ground, internal, the_house

HOUSE = the_house()
GROUND = [
    ROOT / path
    for paths in ground(HOUSE)
    for path in paths
    if not list(internal(path, HOUSE))  # data.py brings encoded.py, images.py and cache.py along
]
FAMILIES = [ROOT / path for path in degradations(HOUSE)[1]]

# One of each family, in the lifted package.
CALLS = {
    "noise": "gaussian_noise((4, 4, 1))",
    "blur": "gaussian_blur((4, 4, 1), stds=[1.0], kernel_size=3)",
    "heat": "heat((4, 4, 1), sigma_max=2.0)",
    "mask": "fade((4, 4, 1), stds=[1.0])",
    "color": "decolor((4, 4, 3), steps=2)",
    "snow": "snow((4, 4, 3), steps=2)",
}

# One process for all: most of the time goes into importing jax and flax once.
SCRIPT = """
import importlib, json, pathlib, sys, traceback

root, jobs = sys.argv[1], json.loads(sys.argv[2])
sys.path[:] = [p for p in sys.path if not pathlib.Path(p, "diffjax").is_dir()]
# An editable installation of diffjax would be found by a hook, not along the path.
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
outcome = {}
for folder, (name, call) in jobs.items():
    sys.path.insert(0, str(pathlib.Path(root, folder)))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
        made = eval(call, vars(module)) if call else None
        outcome[folder] = [module.__file__, type(made).__name__]
    except Exception:
        outcome[folder] = [traceback.format_exc(), ""]
    del sys.path[0]
    for loaded in [m for m in sys.modules if m.split(".")[0] == name.split(".")[0]]:
        del sys.modules[loaded]
outcome["leaked"] = sorted(m for m in sys.modules if m.split(".")[0] == "diffjax")
print(json.dumps(outcome))
"""


def copy_alone(path, folder):
    folder.mkdir()
    shutil.copy(path, folder)
    return folder / path.name


def copy_family(path, folder):
    """folder/mine/degradations/ with the family and base.py, and folder/mine/schedules.py."""
    inner = folder / "mine" / "degradations"
    inner.mkdir(parents=True)
    (folder / "mine" / "__init__.py").touch()
    (inner / "__init__.py").touch()
    shutil.copy(path.with_name("base.py"), inner)
    shutil.copy(path, inner)
    if path.stem in NEED_SCHEDULES:
        shutil.copy(ROOT / "diffjax" / "schedules.py", folder / "mine")
    return inner / path.name


@pytest.fixture(scope="session")
def lifted(tmp_path_factory):
    """{original: (its copy, what was imported or the traceback, the type that was made)}."""
    root = tmp_path_factory.mktemp("lifted")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    # Two that do need diffjax come last, and must fail.
    (elsewhere / "clinging.py").write_text("from diffjax.losses import l1\n")
    (elsewhere / "base.py").touch()
    (elsewhere / "leaning.py").write_text("from ..samplers import sample\n")
    alone = [*GROUND, elsewhere / "clinging.py"]
    families = [*FAMILIES, elsewhere / "leaning.py"]
    copies, jobs = {}, {"diffjax": ("diffjax", "")}
    for number, path in enumerate([*alone, *families]):
        copy_fn = copy_alone if path in alone else copy_family
        copies[path] = copy_fn(path, root / str(number))
        name = path.stem if path in alone else f"mine.degradations.{path.stem}"
        jobs[str(number)] = (name, CALLS.get(path.stem, "") if path in FAMILIES else "")
    run = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, str(root), json.dumps(jobs)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    outcome = json.loads(run.stdout)
    found = {path: (copies[path], *outcome[str(number)]) for number, path in enumerate(copies)}
    return found | {"diffjax": outcome["diffjax"], "leaked": outcome["leaked"]}


def test_diffjax_is_out_of_reach(lifted):
    missing = "ModuleNotFoundError: No module named 'diffjax'"
    assert missing in lifted["diffjax"][0]
    assert lifted["leaked"] == []
    clinging, leaning = (
        next(lifted[path] for path in lifted if getattr(path, "stem", "") == name)
        for name in ("clinging", "leaning")
    )
    assert missing in clinging[1]
    assert "ModuleNotFoundError: No module named 'mine.samplers'" in leaning[1]


def test_every_family_has_a_call():
    assert set(CALLS) == {path.stem for path in FAMILIES}


@pytest.mark.parametrize("path", GROUND, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_ground_file_imports_alone(lifted, path):
    copy, imported, _ = lifted[path]
    if imported != str(copy):
        pytest.fail(imported)
    assert [p.name for p in copy.parent.glob("*.py")] == [path.name]


@pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.stem)
def test_family_imports_with_base_and_makes_a_degradation(lifted, path):
    copy, imported, made = lifted[path]
    if imported != str(copy):
        pytest.fail(imported)
    assert made == "Degradation"
    package = pathlib.Path(copy.parents[1])
    files = {p.relative_to(package).as_posix() for p in package.rglob("*.py")}
    expected = {"__init__.py", *(f"degradations/{n}.py" for n in ("__init__", "base", path.stem))}
    assert files == expected | ({"schedules.py"} if path.stem in NEED_SCHEDULES else set())
