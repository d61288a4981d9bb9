"""Judges a trained restorer on the held-out split: RMSE, PSNR, SSIM of every way back.

python -m experiments.evaluate --workdir=runs/demo
"""

import json
import pathlib

import jax
import numpy as np
import tqdm
from absl import flags

from diffjax import metrics
from experiments import building, common, restoring

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
flags.mark_flag_as_required("workdir")


@jax.jit
def _scores(images_BHWC, clean_BHWC):
    images_BHWC, clean_BHWC = metrics.to_unit(images_BHWC), metrics.to_unit(clean_BHWC)
    return {
        "mse": jax.vmap(metrics.mse)(images_BHWC, clean_BHWC),
        "psnr": jax.vmap(metrics.psnr)(images_BHWC, clean_BHWC),
        "ssim": jax.vmap(metrics.ssim)(images_BHWC, clean_BHWC),
    }


def evaluate(run: building.Run) -> dict[str, dict[str, float]]:
    """{method: {"rmse", "psnr", "ssim"}}: RMSE over all pixels, the others averaged over images."""
    collected = {name: [] for name in restoring.METHODS}
    count = min(run.experiment.config.sample.images or run.source.size, run.source.size)
    with tqdm.tqdm(total=count, unit="image", desc="restoring") as bar:
        for clean, outputs in restoring.restorations(run, count):
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


def main() -> None:
    workdir = pathlib.Path(_WORKDIR.value)
    run = building.load_run(workdir)
    table = evaluate(run)
    config = run.experiment.config
    report = {
        "step": int(run.state.step),
        "data": config.data.name,
        "split": "test",
        "images": min(config.sample.images or run.source.size, run.source.size),
        "sample_steps": config.sample.steps,
        "device": common.describe_device(),
        "methods": table,
    }
    (workdir / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"{report['images']:,} held-out images of {report['data']}, step {report['step']:,}\n")
    print(markdown(table))


if __name__ == "__main__":
    common.run(main)
