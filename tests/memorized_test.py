"""What is said of a run on a few images. Oracle: losses written down by hand."""

import pytest

from experiments.lib import records


def line(*losses):
    mean = None if None in losses else sum(losses) / len(losses)
    return {"loss": mean, "severity": {"loss": list(losses)}}


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        ((1.0, 3.0), (0.01, 0.02), "learned by heart: the loss went from 2 to 0.015, 0.8% of it"),
        ((1.0, 3.0), (0.1, 0.3), "not learned by heart: the loss went from 2 to 0.2, 10.0% of it"),
        ((1.0, 3.0), (0.1, 0.3), "falls at every severity"),
        ((1.0, 3.0), (1.0, 2.9), "no severity is learned"),
        ((1.0, 3.0), (0.01, 2.9), "hardly falls in the severities up to 1.0: look at the weight"),
        ((1.0, 3.0), (None, 1.0), "the loss is not finite"),
    ],
)
def test_in_a_sentence(first, last, words):
    assert words in records.memorized([line(*first), line(2.0, 2.0), line(*last)])


def test_the_first_words_say_which():
    assert records.memorized([line(1.0), line(0.001)]).startswith("learned by heart")
    assert records.memorized([line(1.0), line(0.1)]).startswith("not learned by heart")
