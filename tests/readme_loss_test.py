"""The README's loss test is run as it stands, and its broken variant says what is printed there."""

import pathlib
import re

import pytest

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def section():
    """The text under the heading "Unit-test your loss"."""
    return README.partition("\n## Unit-test your loss\n")[2].partition("\n## ")[0]


def snippet():
    return re.search(r"```python\n(.*?)```", section(), re.DOTALL)[1]


def test_the_snippet_passes():
    names = {}
    exec(snippet(), names)
    names["test_loss"]()


def test_the_snippet_is_short():
    assert len(snippet().splitlines()) <= 25


def test_a_sum_says_what_the_readme_says():
    names = {}
    exec(snippet().replace("jnp.mean(", "jnp.sum("), names)
    with pytest.raises(AssertionError) as caught:
        names["check_loss"](
            names["loss_fn"],
            names["noising"],
            names["jax"].random.key(0),
            (8, 8, 1),
            prediction="noise",
        )
    said = " ".join(re.search(r"it says `(.*?)`", section(), re.DOTALL)[1].split())
    first, last = said.split(" [...] ")
    assert str(caught.value).startswith(first)
    assert str(caught.value).endswith(last)
