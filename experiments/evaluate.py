"""Judges a trained restorer on the held-out split: RMSE, PSNR, SSIM of every way back.

python -m experiments.evaluate --workdir=runs/demo
python -m experiments.evaluate --workdir=runs/demo --generated=runs/demo/generated

Writes evaluation.json into the workdir, or distances.json beside the generated images. The second
judges those: their Frechet and kernel distance to the training images, in the space of the
pixels, beside those of the held-out images. An image learned by heart is at a distance of 0: look
at the pictures, too.
"""

import json
import pathlib

import jax
import numpy as np
import tqdm
from absl import flags

from diffjax import metrics
from experiments.lib import build, commands, pictures, runs, walks
from experiments.lib.commands import UsageError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_IMAGES = flags.DEFINE_integer(
    "images", None, "Held-out images; none: the config's.", lower_bound=1
)
_DISTANT = 10_000  # images of a set compared, at most: the kernel distance takes their square
_GENERATED = flags.DEFINE_string("generated", None, "Folder of images from experiments.sample.")


@jax.jit
def _scores(images_BHWC, clean_BHWC):
    images_BHWC, clean_BHWC = metrics.to_unit(images_BHWC), metrics.to_unit(clean_BHWC)
    return {
        "mse": jax.vmap(metrics.mse)(images_BHWC, clean_BHWC),
        "psnr": jax.vmap(metrics.psnr)(images_BHWC, clean_BHWC),
        "ssim": jax.vmap(metrics.ssim)(images_BHWC, clean_BHWC),
    }


def evaluate(run: runs.Run, count: int) -> dict[str, dict[str, float]]:
    """{method: {"rmse", "psnr", "ssim"}}: RMSE over all pixels, the others averaged over images."""
    collected = {name: [] for name in walks.METHODS}
    with tqdm.tqdm(total=count, unit="image", desc="restoring") as bar:
        for clean, outputs in walks.restorations(
            run.experiment, run.state.ema_params, run.problem, run.source, count
        ):
            for name, images in outputs.items():
                collected[name].append(jax.device_get(_scores(images, clean)))
            bar.update(len(clean))

    def summary(scores):
        mse, psnr, ssim = (
            np.concatenate([one[name] for one in scores]) for name in ("mse", "psnr", "ssim")
        )
        return {
            "rmse": float(np.sqrt(mse.mean())),
            "psnr": float(psnr.mean()),
            "ssim": float(ssim.mean()),
        }

    return {name: summary(scores) for name, scores in collected.items()}


def markdown(table: dict[str, dict[str, float]]) -> str:
    rows = ["| | RMSE | PSNR (dB) | SSIM |", "|---|---|---|---|"]
    rows += [
        f"| {name} | {row['rmse']:.3f} | {row['psnr']:.2f} | {row['ssim']:.3f} |"
        for name, row in table.items()
    ]
    return "\n".join(rows)


def evaluate_generated(run: runs.Run, folder: pathlib.Path) -> None:
    images = pictures.read_images(folder)
    if not len(images):
        raise UsageError(f"--generated={folder} holds no images of experiments.sample")
    _, train = build.build(run.experiment.config, "train", run.roots)

    def some(source):
        count = min(source.size, _DISTANT)
        chosen = np.random.default_rng(0).choice(source.size, count, replace=False)
        return source.fetch_fn(np.sort(chosen))["image"]

    reference = some(train)
    report = {
        "step": int(run.state.step),
        "features": "pixels in [0, 1]",
        "training images": len(reference),
    }
    for name, those in (("generated", images[:_DISTANT]), ("held-out", some(run.source))):
        report[name] = {"images": len(those), **walks.distances(those, reference)}
    (folder / "distances.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"distance to {len(reference):,} training images, features: the pixels\n")
    print("| | images | Frechet | kernel |\n|---|---|---|---|")
    for name in ("generated", "held-out"):
        row = report[name]
        print(f"| {name} | {row['images']:,} | {row['frechet']:.4f} | {row['kernel']:.5f} |")


def main() -> None:
    workdir = pathlib.Path(_WORKDIR.value)
    run = runs.load_run(workdir)
    if _GENERATED.value is not None:
        evaluate_generated(run, pathlib.Path(_GENERATED.value))
        return
    config = run.experiment.config
    count = min(_IMAGES.value or config.sample.images or run.source.size, run.source.size)
    table = evaluate(run, count)
    report = {
        "step": int(run.state.step),
        "data": config.data.name,
        "split": "test",
        "images": count,
        "sample_steps": len(build.grid(run.experiment, name="uniform")) - 1,
        "device": runs.describe_device(),
        "methods": table,
    }
    (workdir / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"{report['images']:,} held-out images of {report['data']}, step {report['step']:,}\n")
    print(markdown(table))


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    commands.run(main)
