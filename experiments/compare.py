"""Compares finished runs, or trains the variants of a study under one budget and set of seeds.

python -m experiments.compare runs/a runs/b runs/c
python -m experiments.compare --study=experiments/studies/losses.py --output=docs/results/losses

Writes OUTPUT.json and OUTPUT.png; for runs comparison.json and comparison.png beside the first of
them, unless --output says where: how their configs differ, their curves, and every way back from
the same held-out images.

A study is a file of a config with VARIANTS, what each changes of it: `experiments.lib.studies` says
how to write one, experiments/studies holds ours. Every run is kept as it ends: the same command
goes on with the next one, and a higher --seeds or another variant adds to what is there.
"""

import pathlib

from absl import flags

from experiments.lib import commands, comparison, studies
from experiments.lib.commands import UsageError

_STUDY = flags.DEFINE_string("study", None, "File of the study.")
_DIRECTORY = flags.DEFINE_string(
    "config.data.directory", None, "Where the study's data lies now; none: where its config says."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each variant.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 360, "Held-out images judged on.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "Path of the .json and .png to write.")


def main(*workdirs: str) -> None:
    if bool(workdirs) == bool(_STUDY.value):
        raise UsageError("name two runs or more, or --study=FILE.py")
    output = None if _OUTPUT.value is None else pathlib.Path(_OUTPUT.value)
    if workdirs:
        if len(workdirs) < 2:
            raise UsageError(f"{workdirs[0]} alone cannot be compared: name two runs or more")
        output = output or pathlib.Path(workdirs[0]).parent / "comparison"
        comparison.compare(list(workdirs), output, _IMAGES.value)
        return
    if output is None:
        raise UsageError("--output must be given: the .json and .png that a study writes")
    study = studies.load(pathlib.Path(_STUDY.value), _DIRECTORY.value)
    results = studies.run(study, _SEEDS.value, _IMAGES.value, output)
    print("held-out images, at the last step; mean ± standard deviation over the seeds\n")
    print(studies.markdown(results))
    print(f"\nwritten: {output.with_suffix('.json')}, {output.with_suffix('.png')}")


if __name__ == "__main__":
    commands.run(main, again="the same command goes on where it stopped", operands=True)
