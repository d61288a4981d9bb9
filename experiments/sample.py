"""Restores held-out images, or, with --num, generates new ones.

python -m experiments.sample --workdir=runs/demo
python -m experiments.sample --workdir=runs/demo --num=64

Writes: the first samples.png, clean, degraded, direct and both algorithms. The second starts
from the run's prior (or from drawn noise, colors, ...) and writes, into --output, the images
as uint8 arrays in batch_*.npz, grid.png and trajectory.gif. It can be interrupted: the same
command goes on, and image i depends on --seed and i alone, whatever the batch or the host.
"""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags

from diffjax import metrics, parallel
from diffjax.samplers import SAMPLERS
from experiments.lib import build, commands, files, hosts, pictures, provenance, runs, walks
from experiments.lib.commands import UsageError
from experiments.lib.config import float32

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_STEP = flags.DEFINE_string(
    "step", None, "Of the checkpoint, or best, by its held-out loss; none: the latest."
)
_COLUMNS = flags.DEFINE_integer("columns", 16, "Held-out images to restore.", lower_bound=1)
_NUM = flags.DEFINE_integer("num", None, "Images to generate.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the images; none: workdir/generated.")
_SAMPLER = flags.DEFINE_enum("sampler", None, tuple(SAMPLERS), "None: the config's.")
_STEPS = flags.DEFINE_integer("steps", None, "None: the config's.", lower_bound=1)
_PERTURBATION = flags.DEFINE_float("perturbation", None, "None: the config's.", lower_bound=0)
_LABEL = flags.DEFINE_integer("label", None, "Class of every image; none: one after another.")
_GUIDANCE = flags.DEFINE_float("guidance", 1.0, "Classifier-free guidance; 1 is none.")
_CLIP = flags.DEFINE_bool("clip", False, "Clip every estimate of the clean image to [-1, 1].")
_SEED = flags.DEFINE_integer("seed", 0, "Of the images.", lower_bound=0)
_DIRECTORY = flags.DEFINE_string(
    "config.data.directory", None, "Where the run's data lies now; none: where it lay."
)
_GRID_IMAGES, _GIF_IMAGES, _GIF_STATES = 64, 16, 40


def draw_restorations(run: runs.Run, path: pathlib.Path, count: int) -> None:
    batches = list(
        walks.restorations(run.experiment, run.state.ema_params, run.problem, run.source, count)
    )
    rows = {"clean": np.concatenate([clean for clean, _ in batches])}
    for name in walks.METHODS:
        rows[name] = np.concatenate([outputs[name] for _, outputs in batches])
    pictures.draw_grid(path, list(rows.values()), names=list(rows))
    print(f"wrote {path}")


def check_label(label: int | None, guidance: float, num_classes: int | None) -> None:
    """Raises UsageError if the run has no such class, or none at all."""
    if num_classes is None:
        if label is not None or guidance != 1:
            raise UsageError(
                "--label and --guidance need a run with config.model.class_conditional"
            )
    elif label is not None and not 0 <= label < num_classes:
        raise UsageError(f"--label must lie in 0..{num_classes - 1}; got {label}")


def claim(output: pathlib.Path, chosen: dict, about: dict, num: int) -> None:
    """Writes settings.json; raises UsageError if the folder holds images of others."""
    wanted = max(num, files.read_settings(output, chosen).get("images", 0))
    output.mkdir(parents=True, exist_ok=True)
    files.write_json(output / "settings.json", about | chosen | {"images": wanted})


def generate(run: runs.Run, output: pathlib.Path, num: int, chosen: dict) -> int:
    """Writes the batches that are not there yet, then the pictures of the first.

    Returns the exit status.
    """
    about = provenance.brief(run.fingerprint)
    hosts.first_on_one(lambda: claim(output, chosen, about, num))

    num_classes = run.experiment.objective.num_classes
    shared = {
        "sampler_name": chosen["sampler"],
        "steps": chosen["steps"],
        "guidance": chosen["guidance"],
        "clip": chosen["clip"],
    }
    make_fn = parallel.map_examples(walks.generator(run.experiment, **shared))
    operand = (run.state.ema_params, run.problem, run.prior, jnp.float32(chosen["perturbation"]))

    def keys_labels(start, count):
        indices = np.arange(start, start + count)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
            jax.random.key(chosen["seed"]), indices
        )
        given = indices % (num_classes or 1) if chosen["label"] is None else chosen["label"]
        return keys, np.broadcast_to(given, indices.shape).astype(np.int32)

    size, count = chosen["batch_size"], jax.process_count()
    quiet = not hosts.is_first()
    with tqdm.tqdm(total=num, unit="image", desc="generating", disable=quiet) as bar:
        for start in range(size * jax.process_index(), num, size * count):
            batch = output / f"batch_{start:08d}.npz"
            # One that an earlier, smaller --num cut short is made again; what it holds is the same.
            if pictures.count_images(batch) < min(size, num - start):
                keys, labels = keys_labels(start, size)
                images = metrics.to_uint8(make_fn(operand, keys, labels))
                with files.whole(batch) as file:
                    np.savez_compressed(
                        file, image=images[: num - start], label=labels[: num - start]
                    )
            bar.update(min(size * count, num - start))
    parallel.wait_for_all("generated")

    def draw() -> None:
        first = pictures.read_images(output, min(num, _GRID_IMAGES))
        columns = int(np.ceil(np.sqrt(len(first))))
        scale = max(1, 64 // first.shape[1])
        with files.whole(output / "grid.png") as file:
            pictures.to_pil(pictures.tile(first, columns), scale).save(file, format="PNG")
        every = -(-len(build.grid(run.experiment, chosen["steps"])) // _GIF_STATES)
        trace_fn = parallel.map_examples(
            walks.generator(run.experiment, **shared, keep_every=every)
        )
        _, trace = trace_fn(operand, *keys_labels(0, min(num, _GIF_IMAGES)))
        pictures.write_gif(output / "trajectory.gif", np.moveaxis(trace.xt, 1, 0))
        wanted = files.read_json(output / "settings.json", "choose another --output")["images"]
        print(f"{output} holds {wanted:,} images, grid.png and trajectory.gif")

    return hosts.on_first(draw)


@hosts.joined()
def main() -> int:
    for flag in (_PERTURBATION, _GUIDANCE):
        if flag.value is not None and not math.isfinite(float32(flag.value)):
            raise UsageError(f"--{flag.name} must be finite; got {flag.value}")
    workdir = files.folder(_WORKDIR.value)
    run = runs.load_run(workdir, _STEP.value, directory=_DIRECTORY.value)
    if _NUM.value is None:
        return hosts.on_first(
            lambda: draw_restorations(run, workdir / "samples.png", _COLUMNS.value)
        )
    config = run.experiment.config
    check_label(_LABEL.value, _GUIDANCE.value, run.experiment.objective.num_classes)
    given = _PERTURBATION.value
    restores = run.prior is not None and build.start_perturbation(config) == 0
    if restores and build.own_noise(run.experiment.degradation) == 0:
        print(
            "this run was trained to restore, not to generate: for that, train with "
            "--config.train.perturbation above 0, see docs/why-cold-diffusion-works.md"
        )
    # What the images depend on, beside the run: kept with them, and compared on resuming.
    chosen = {
        "step": int(run.state.step),
        "sampler": _SAMPLER.value or config.sample.sampler,
        "steps": len(build.grid(run.experiment, _STEPS.value)) - 1,
        "grid": config.sample.grid,
        "perturbation": build.start_perturbation(config) if given is None else given,
        "label": _LABEL.value,
        "guidance": _GUIDANCE.value,
        "clip": _CLIP.value,
        "seed": _SEED.value,
        "batch_size": config.sample.batch_size,
    }
    output = workdir / "generated" if _OUTPUT.value is None else files.folder(_OUTPUT.value)
    return generate(run, output, _NUM.value, chosen)


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    commands.run(
        main,
        again="the same command goes on where it stopped",
        buckets={"workdir", "output"},
    )
