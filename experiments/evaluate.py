"""Judges a trained restorer on the held-out split: RMSE, PSNR, SSIM of every way back.

python -m experiments.evaluate --workdir=runs/demo
python -m experiments.evaluate --workdir=runs/demo --generated=runs/demo/generated

Writes evaluation.json (with --step evaluation_STEP.json) into the workdir, or distances.json beside
the generated images. The second judges those against the training images, beside the held-out ones:
Frechet and kernel distance in the pixels and in the features of a small classifier, how sure that
classifier is, and how far the nearest training image lies. An image learned by heart is at a
distance of 0.
"""

import pathlib

import jax
import numpy as np
import tqdm
from absl import flags

from diffjax import data
from experiments.lib import (
    build,
    commands,
    files,
    hosts,
    judge,
    pictures,
    provenance,
    runs,
    scores,
    walks,
)
from experiments.lib.commands import UsageError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_IMAGES = flags.DEFINE_integer(
    "images", None, "Held-out images; none: the config's.", lower_bound=1
)
_STEP = flags.DEFINE_string(
    "step", None, "Of the checkpoint, or best, by its held-out loss; none: the latest."
)
_GENERATED = flags.DEFINE_string("generated", None, "Folder of images from experiments.sample.")
_DIRECTORY = flags.DEFINE_string(
    "config.data.directory", None, "Where the run's data lies now; none: where it lay."
)


def evaluate(run: runs.Run, count: int) -> dict[str, dict[str, float]]:
    """The scores of every way back, see `scores.tabulate`; all hosts must call it."""
    restored = walks.restorations(
        run.experiment, run.state.ema_params, run.problem, run.source, count, shared=True
    )
    mine, quiet = -(-count // jax.process_count()), not hosts.is_first()
    with tqdm.tqdm(total=mine, unit="image", desc="restoring", disable=quiet) as bar:

        def watched():
            for batch in restored:
                yield batch
                bar.update(len(batch[0]))

        return scores.tabulate(watched(), shared=True)


def markdown(table: dict[str, dict[str, float]]) -> str:
    rows = ["| | RMSE | PSNR (dB) | SSIM |", "|---|---|---|---|"]
    rows += [
        f"| {name} | {row['rmse']:.3f} | {decibels(row['psnr'])} | {row['ssim']:.3f} |"
        for name, row in table.items()
    ]
    exact = [f"{row['exact']} of {name}" for name, row in table.items() if row.get("exact")]
    note = f"\n\nExact, and in no PSNR: {', '.join(exact)}." if exact else ""
    return "\n".join(rows) + note


def decibels(psnr: float | None) -> str:
    return "exact" if psnr is None else f"{psnr:.2f}"


def some(source: data.Source, most: int = judge.COMPARED) -> np.ndarray:
    """Images of a source, chosen at random, up to so many."""
    count = min(source.size, most)
    chosen = np.random.default_rng(0).choice(source.size, count, replace=False)
    return source.fetch_fn(np.sort(chosen))["image"]


def evaluate_generated(
    folder: pathlib.Path, train: data.Source, held_out: data.Source, about: dict
) -> None:
    """Judges what `experiments.sample --num` wrote into a folder, beside held-out images."""
    missing = pictures.incomplete(folder)
    if missing:
        print(f"incomplete: {missing}")
    images = pictures.read_images(folder)
    if not len(images):
        raise UsageError(f"--generated={folder} holds no images of experiments.sample")
    reference, classifier = some(train), judge.fit_judge(train, held_out)
    report = about | {
        "incomplete": missing,
        "training images": len(reference),
        "classifier accuracy": None if classifier is None else classifier.accuracy,
    }
    images = images[: judge.COMPARED]
    # As many of each, where there are: a distance grows as the images become fewer.
    for name, those in (("generated", images), ("held-out", some(held_out, len(images)))):
        report[name] = judge.judge_images(those, reference, classifier)
    files.write_json(folder / "distances.json", report)
    print(f"distances to {len(reference):,} training images")
    if classifier is not None:
        print(f"classifier: {100 * classifier.accuracy:.1f}% of held-out images right")
    print(f"\n{generated_markdown({name: report[name] for name in ('generated', 'held-out')})}")


def generated_markdown(rows: dict[str, dict]) -> str:
    """A table of what `judge.judge_images` says."""
    lines = [
        "| | images | Frechet, pixels | kernel, pixels | Frechet, classifier | sure | nearest |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        far = f"{row['classifier']['frechet']:.2f}" if "classifier" in row else ""
        sure = f"{100 * row['sure']:.0f}%" if "sure" in row else ""
        lines.append(
            f"| {name} | {row['images']:,} | {row['pixels']['frechet']:.3f} | "
            f"{row['pixels']['kernel']:.4f} | {far} | {sure} | {row['nearest']['median']:.2f} |"
        )
    return "\n".join(lines)


@hosts.joined()
def main() -> int:
    workdir = files.folder(_WORKDIR.value)
    run = runs.load_run(workdir, _STEP.value, directory=_DIRECTORY.value)
    config = run.experiment.config
    about = {"step": int(run.state.step), "data": config.data.name}
    about |= provenance.brief(run.fingerprint)
    if _GENERATED.value is not None:

        def compare() -> None:
            train = build.load_data(config, "train", run.roots)
            evaluate_generated(files.folder(_GENERATED.value), train, run.source, about)

        return hosts.on_first(compare)

    count = min(_IMAGES.value or config.sample.images or run.source.size, run.source.size)
    table = evaluate(run, count)

    def tell() -> None:
        report = about | {
            "split": "test",
            "images": count,
            "sample_steps": len(build.grid(run.experiment, name="uniform")) - 1,
            "device": runs.describe_device(),
            "methods": table,
        }
        suffix = "" if _STEP.value is None else f"_{_STEP.value}"
        files.write_json(workdir / f"evaluation{suffix}.json", report)
        print(
            f"{report['images']:,} held-out images of {report['data']}, step {report['step']:,}\n"
        )
        print(markdown(table))

    return hosts.on_first(tell)


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    commands.run(main, buckets={"workdir", "generated"})
