"""Every floor-0 file, copied alone into an empty folder, imports there: no diffjax in reach."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from layering_test import FLOORS, ROOT, WHOLE_FOLDERS

PACKAGE = ROOT / "diffjax"
FILES = sorted(
    [path for folder in WHOLE_FOLDERS for path in (PACKAGE / folder).glob("*.py")]
    + [PACKAGE / f"{name}.py" for name in FLOORS[0] if (PACKAGE / f"{name}.py").exists()]
)

# One process for all files: most of the time goes into importing jax and flax once.
SCRIPT = """
import importlib, json, pathlib, sys, traceback

root, *names = sys.argv[1:]
sys.path[:] = [p for p in sys.path if not pathlib.Path(p, "diffjax").is_dir()]
# An editable installation of diffjax would be found by a hook, not along the path.
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
outcome = {}
for name in ["diffjax", *names]:
    folder = pathlib.Path(root, name)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name.split("-")[-1])
        outcome[name] = module.__file__
    except Exception:
        outcome[name] = traceback.format_exc()
    sys.path.remove(str(folder))
    sys.modules.pop(name.split("-")[-1], None)
outcome["leaked"] = sorted(name for name in sys.modules if name.split(".")[0] == "diffjax")
print(json.dumps(outcome))
"""


def lift(files, root):
    """{folder's name: the file that was imported, or the traceback}; plus diffjax and leaked."""
    names = []
    for number, path in enumerate(files):
        names.append(f"{number}-{path.stem}")
        (root / names[-1]).mkdir()
        shutil.copy(path, root / names[-1])
    run = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, str(root), *names],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), names


@pytest.fixture(scope="session")
def lifted(tmp_path_factory):
    root = tmp_path_factory.mktemp("lifted")
    # A file that does need diffjax comes last, and must fail.
    clinging = tmp_path_factory.mktemp("clinging") / "clinging.py"
    clinging.write_text("from diffjax.losses import l1\n")
    outcome, names = lift([*FILES, clinging], root)
    return outcome, dict(zip([*FILES, clinging], names, strict=True)), root


def test_diffjax_is_out_of_reach(lifted):
    outcome, names, _ = lifted
    assert "ModuleNotFoundError: No module named 'diffjax'" in outcome["diffjax"]
    clinging = outcome[next(name for name in names.values() if name.endswith("-clinging"))]
    assert "ModuleNotFoundError: No module named 'diffjax'" in clinging
    assert outcome["leaked"] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_file_imports_alone(lifted, path):
    outcome, names, root = lifted
    copy = root / names[path] / path.name
    if outcome[names[path]] != str(copy):
        pytest.fail(outcome[names[path]])
    assert [p.name for p in pathlib.Path(copy.parent).glob("*.py")] == [path.name]
