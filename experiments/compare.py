"""Compares finished runs, or trains a small grid of variants under one budget and set of seeds.

python -m experiments.compare runs/a runs/b runs/c
python -m experiments.compare --study=losses --output=docs/results/losses
python -m experiments.compare --study=preconditioning --output=docs/results/preconditioning
python -m experiments.compare --study=preconditioning --data=mnist --seeds=1 --steps=400 \
    --output=docs/results/preconditioning_mnist
python -m experiments.compare --study=perturbation --steps=300 --output=docs/results/perturbation

Writes OUTPUT.json and, where there are curves, OUTPUT.png; for runs comparison.json and
comparison.png beside the first of them, unless --output says where: how their configs differ, their
curves, and every way back from the same held-out images.

A study is a table of variants in this file, each a delta on default.py. Every variant is judged on
held-out images: the RMSE of x0_hat, averaged over ten severities and at t = 1 (where SSIM is taken
too), and, for losses, by the Frechet distance between 1,024 generated images and the training
images, in the space of their pixels; x_T is not perturbed. The study of train.perturbation compares
Algorithm 2 with one call of R, from x_T as computed and rounded to 8 bits. All numbers are of
images in [0, 1]. It can be interrupted, and goes on with the next variant.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tqdm
from absl import flags

from diffjax import data, metrics, restorers, samplers, training
from diffjax.degradations.base import degrade, draw
from experiments.configs import default
from experiments.lib import build, commands, comparison, files, judge, runs, walks
from experiments.lib.commands import UsageError
from experiments.lib.config import resolve

_STUDY = flags.DEFINE_enum(
    "study", "losses", ["losses", "preconditioning", "perturbation"], "What is compared."
)
_DATA = flags.DEFINE_enum("data", "digits", ["digits", "mnist"], "On which images.")
_DIRECTORY = flags.DEFINE_string("directory", None, "TFDS's data_dir.")
_STEPS = flags.DEFINE_integer("steps", 600, "Training steps of each variant.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 3, "How many.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 360, "Held-out images judged on.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "Path of the .json and .png to write.")

BLUR = {
    "family": "gaussian_blur",
    "stds": (0.8,) * 10,
    "kernel_size": 5,
    "boundary": "reflect",
}
MNIST_BLUR = {
    "family": "gaussian_blur",
    "stds": (7.0,) * 20,
    "kernel_size": 11,
    "boundary": "circular",
}
SMALL = {"width": 16}  # so that nine variants and three seeds take minutes
HOT = {
    "degradation": {"family": "gaussian_noise", "schedule": "cosine"},
    "model": SMALL | {"precondition": False},
    "train": {"loss": "l2", "prediction": "noise"},
    "sample": {"sampler": "ddpm", "steps": 50},
}
COLD = {
    "degradation": BLUR,
    "model": SMALL,
    "train": {},
    "sample": {"sampler": "improved"},
}


def with_train(base: dict, **fields) -> dict:
    return base | {"train": base["train"] | fields}


def losses_study() -> dict[str, dict]:
    plain = COLD | {"model": SMALL | {"precondition": False}}
    return {
        "hot, noise, L2": HOT,
        "hot, noise, L1": with_train(HOT, loss="l1"),
        "hot, x0, L2": with_train(HOT, prediction="x0"),
        "hot, v, L2, min-SNR": with_train(HOT, prediction="v", weighting="min_snr"),
        "cold blur, x0, L1": COLD,
        "cold blur, x0, L2": with_train(COLD, loss="l2"),
        "cold blur, x0, L1, not preconditioned": plain,
    }


def restoring_tasks(mnist: bool) -> dict[str, dict]:
    shrink = {"family": "downsample", "steps": 3 if mnist else 2, "method": "bicubic"}
    return {"deblurring": MNIST_BLUR if mnist else BLUR, "super-resolution": shrink}


def preconditioning_study(mnist: bool) -> dict[str, dict]:
    model = {"width": 16, "multipliers": (1, 2, 4, 4)} if mnist else {}
    return {
        f"{task}, {'preconditioned' if on else 'plain'}": {
            "degradation": degradation,
            "model": model | {"precondition": on},
        }
        for task, degradation in restoring_tasks(mnist).items()
        for on in (True, False)
    }


def perturbation_study(mnist: bool) -> dict[str, dict]:
    model = {"width": 64, "patch": 4} if mnist else SMALL
    return {
        f"{task}, q = {q:g}": {
            "degradation": degradation,
            "model": model,
            "train": {"perturbation": q},
        }
        for task, degradation in restoring_tasks(mnist).items()
        for q in (0.0, 1e-3, 1e-2)
    }


def configure(delta: dict, base: dict, steps: int):
    """The config of a variant; base is the section config.data."""
    config = default.get_config()
    config.data.update(base)
    config.train.steps = steps
    for section, fields in delta.items():
        if section == "degradation":
            config.degradation = fields
        else:
            config[section].update(fields)
    return resolve(config)


def scores(experiment: build.Experiment, problem, key, params, clean_BHWC) -> dict:
    """Held-out "rmse", averaged over severities, and "rmse1", "ssim1" at t = 1, of one network."""

    def restored(key, x0, t):
        omega = draw(problem.degradation, key, x0)
        xt = degrade(problem.degradation, x0, t, omega)
        return metrics.to_unit(restorers.restore(experiment.objective, params, problem, xt, t))

    keys = jax.random.split(key, len(clean_BHWC))
    unit_BHWC = metrics.to_unit(clean_BHWC)

    def rmse(t):
        x0_hat = jax.vmap(restored, in_axes=(0, 0, None))(keys, clean_BHWC, t)
        return jnp.sqrt(jnp.mean(jnp.square(x0_hat - unit_BHWC))), x0_hat

    rmses, _ = jax.lax.map(lambda t: (rmse(t)[0], 0), jnp.arange(1, 11) / 10)
    rmse1, x0_hat = rmse(jnp.float32(1))
    return {
        "rmse": jnp.mean(rmses),
        "rmse1": rmse1,
        "ssim1": jnp.mean(jax.vmap(metrics.ssim)(x0_hat, unit_BHWC)),
    }


def round_to_8_bits(x):
    return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5) / 127.5 - 1


def walk_scores(experiment: build.Experiment, ts, problem, key, params, clean_BHWC) -> dict:
    """Held-out RMSE from x_T as computed, and rounded to 8 bits, of R and of Algorithm 2."""
    restore_fn = restorers.restorer(experiment.objective, params, problem)
    process = restorers.process(problem.degradation, restore_fn)

    def restored(key, x0):
        omega = draw(problem.degradation, key, x0)
        xT = degrade(problem.degradation, x0, 1.0, omega)

        def ways(xT):
            walked = samplers.sample(samplers.improved, process, key, xT, ts, omega)
            return {"direct": restore_fn(xT, ts[0]), "Algorithm 2": walked}

        rounded = ways(round_to_8_bits(xT))
        return ways(xT) | {f"{way}, 8 bits": x for way, x in rounded.items()}

    made = jax.vmap(restored)(jax.random.split(key, len(clean_BHWC)), clean_BHWC)
    # Half the error in [-1, 1] is that in [0, 1].
    return {way: jnp.sqrt(jnp.mean(jnp.square(x - clean_BHWC))) / 2 for way, x in made.items()}


def train_variant(
    name: str, config, seeds: list[int], *, images: int, generate: bool, walk: bool
) -> dict[str, list]:
    """{"step": [E], "rmse": [E, seeds], ...}, and of the last step alone, [seeds]: "frechet" where
    images are generated, the scores of `walk_scores` where x_T is walked back, and nothing before.
    """
    experiment, source = build.build(config, "train")
    _, held_out = build.build(config, "test")
    fitted = build.fit(experiment, source)
    problem = build.problem(experiment, fitted["wiener"])
    clean = held_out.fetch_fn(range(min(images, held_out.size)))["image"]
    init_fn = jax.jit(
        lambda key: training.create_state(experiment.init_params(key), experiment.optimizer)
    )
    step_fn = jax.jit(
        functools.partial(
            training.train_step,
            objective=experiment.objective,
            optimizer=experiment.optimizer,
            ema_decay=config.train.ema_decay,
        ),
        donate_argnums=0,
    )
    score_fn = jax.jit(functools.partial(scores, experiment))
    ts = build.grid(experiment, name="uniform")
    walk_fn = jax.jit(functools.partial(walk_scores, experiment, ts))
    make_fn = jax.jit(
        jax.vmap(
            walks.generator(experiment),
            in_axes=(None, 0, None),
        )
    )
    every = config.train.steps if walk else max(1, config.train.steps // 10)
    points = [*range(every, config.train.steps, every), config.train.steps]
    curves = {"step": points} | {
        score: [[] for _ in points] for score in ("rmse", "rmse1", "ssim1")
    }
    if generate:
        curves["frechet"] = []
    for seed in seeds:
        key = jax.random.key(seed)
        state = init_fn(key)
        batches = data.batches(source, batch_size=config.train.batch_size, seed=seed)
        bar = tqdm.trange(1, config.train.steps + 1, desc=f"{name}, seed {seed}", mininterval=1)
        for step in bar:
            state, _ = step_fn(state, next(batches), key, problem)
            if step in points:
                judged = jax.device_get(
                    score_fn(problem, jax.random.key(1), state.ema_params, clean)
                )
                for score, value in judged.items():
                    curves[score][points.index(step)].append(float(value))
        if walk:
            judged = jax.device_get(walk_fn(problem, jax.random.key(1), state.ema_params, clean))
            for score, value in judged.items():
                curves.setdefault(score, []).append(float(value))
        if generate:
            # Unperturbed: this blur leaves more than the mean, and so no symmetry to break.
            operand = (state.ema_params, problem, fitted["prior"], jnp.float32(0))
            keys = jax.random.split(jax.random.key(2), 1024)
            made = np.asarray(make_fn(operand, keys, experiment.objective.num_classes))
            reference = source.fetch_fn(range(source.size))["image"]
            curves["frechet"].append(
                judge.distances(judge.as_pixels(made), judge.as_pixels(reference))["frechet"]
            )
    return curves


COLUMNS = {
    "rmse": "RMSE over all t",
    "rmse1": "RMSE at t = 1",
    "ssim1": "SSIM at t = 1",
    "frechet": "Frechet, pixels",
    "direct": "direct",
    "Algorithm 2": "Algorithm 2",
    "direct, 8 bits": "direct, 8 bits",
    "Algorithm 2, 8 bits": "Algorithm 2, 8 bits",
}


def markdown(results: dict[str, dict]) -> str:
    """Mean and standard deviation over the seeds."""
    shown = [name for name in COLUMNS if any(name in result for result in results.values())]
    lines = [
        "| | " + " | ".join(COLUMNS[name] for name in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for variant, result in results.items():
        cells = [variant]
        for name in shown:
            values = result[name] if np.ndim(result[name]) == 1 else result[name][-1]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_curves(path: pathlib.Path, results: dict[str, dict]) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for axis, name in zip(axes, ("rmse", "rmse1", "ssim1"), strict=True):
        for variant, result in results.items():
            values = np.array(result[name])
            (line,) = axis.plot(result["step"], values.mean(1), lw=1.2, label=variant)
            axis.fill_between(
                result["step"], values.min(1), values.max(1), color=line.get_color(), alpha=0.2
            )
        axis.set(xlabel="step", ylabel=f"held-out {COLUMNS[name]}")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(*workdirs: str) -> None:
    if workdirs:
        if len(workdirs) < 2:
            raise UsageError(f"{workdirs[0]} alone cannot be compared: name two runs or more")
        beside = pathlib.Path(workdirs[0]).parent / "comparison"
        output = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else beside
        comparison.compare(list(workdirs), output, _IMAGES.value)
        return
    if _OUTPUT.value is None:
        raise UsageError("--output must be given: the .json and .png that a study writes")
    mnist = _DATA.value != "digits"
    study = {
        "losses": losses_study,
        "preconditioning": functools.partial(preconditioning_study, mnist),
        "perturbation": functools.partial(perturbation_study, mnist),
    }[_STUDY.value]()
    seeds = list(range(_SEEDS.value))
    output = pathlib.Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    report_path = output.with_suffix(".json")
    settings = {
        "study": _STUDY.value, "data": _DATA.value, "steps": _STEPS.value, "seeds": seeds,
        "held_out_images": _IMAGES.value, "device": runs.describe_device(),
    }  # fmt: skip
    results = {}
    if report_path.exists():
        held = files.read_json(report_path, "remove it, or choose another --output")
        if held.get("settings") != settings:
            raise UsageError(f"{report_path} holds another comparison: choose another --output")
        results = held["results"]
    data_fields = {
        "name": _DATA.value,
        "directory": _DIRECTORY.value,
        "image_size": 32 if mnist else None,
    }
    for name, delta in study.items():
        if name in results:
            continue
        results[name] = train_variant(
            name,
            configure(delta, data_fields, _STEPS.value),
            seeds,
            images=_IMAGES.value,
            generate=_STUDY.value == "losses",
            walk=_STUDY.value == "perturbation",
        )
        # After every variant, so that an interrupted comparison goes on with the next.
        files.write_json(report_path, {"settings": settings, "results": results})
    if _STUDY.value != "perturbation":
        draw_curves(output.with_suffix(".png"), results)
    print(f"{_STEPS.value} steps, {len(seeds)} seeds: mean ± standard deviation\n")
    print(markdown(results))


if __name__ == "__main__":
    commands.run(main, again="the same command goes on where it stopped", operands=True)
