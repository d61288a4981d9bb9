"""The smallest experiment, and networks of other libraries as README shows them.

Oracles: the degraded images, whose error a restorer must halve; Algorithm 2 written out.
"""

import ast
import itertools
import pathlib
import re
import time

import numpy as np
import pytest

import diffjax
from experiments import minimal

ROOT = pathlib.Path(__file__).parents[1]
SOURCE = pathlib.Path(minimal.__file__).read_text()


def test_it_halves_the_error(capsys):
    started = time.process_time()  # of this process: other work on the machine does not count
    before, after = minimal.main()
    assert time.process_time() - started < 60
    assert after <= before / 2
    assert f"degraded {before:.3f}, Algorithm 2 {after:.3f}" in capsys.readouterr().out


def test_it_is_short_and_stands_on_the_library_alone():
    assert len(SOURCE.splitlines()) <= 70
    imported = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
            assert node.level == 0
    assert "diffjax" in imported
    assert "experiments" not in imported


def blocks():
    """The Python under README's heading: what all share, then one network a block."""
    text = (ROOT / "README.md").read_text()
    section = re.search(r"^## Your own network\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"```python\n(.*?)```", section[1], re.DOTALL) if section else []


@pytest.mark.parametrize("library", ["flax", "equinox", "plain"])
def test_networks_of_other_libraries_walk_back(library):
    shared, *networks = blocks() or [""]
    assert len(networks) == 3
    name = {"plain": "weights ="}.get(library, library)
    (code,) = [block for block in networks if name in block]
    if library == "equinox":
        pytest.importorskip("equinox", reason="equinox is not installed: it comes with .[test]")
    names = {}
    exec(compile(shared + code, f"README.md, {library}", "exec"), names)

    degradation, restore_fn, ts = names["blur"], names["restore_fn"], np.asarray(names["ts"])
    x = np.asarray(names["xT"])
    for t, s in itertools.pairwise(ts):
        x0_hat = restore_fn(x, t)
        x = x - diffjax.degrade(degradation, x0_hat, t) + diffjax.degrade(degradation, x0_hat, s)
    assert np.any(restore_fn(x, 1.0) != restore_fn(x, 0.5))
    np.testing.assert_allclose(names["x0"], x, rtol=0, atol=1e-4)
