"""Looks for what is wrong with a run: the likeliest cause in one line, and the checks behind it.

python -m experiments.audit --workdir=runs/demo

Writes audit.json and audit.png into the workdir, and for a run that generates generation.png: what
the walk of the Wiener restorer alone makes of each mode of the held-out images. Exit status 1 if
something is broken; a run that is healthy, or too young to tell, ends with 0. What the audit cannot
see is said in `diffjax.auditing.audit`.
"""

import functools
import pathlib
import textwrap

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tqdm
from absl import flags

from diffjax import training
from diffjax.auditing.audit import Audit, audit
from diffjax.auditing.generation_laws import Generation
from experiments.lib import build, commands, files, hosts, pictures, provenance, runs

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_STEP = flags.DEFINE_string(
    "step", None, "Of the checkpoint, or best, by its held-out loss; none: the latest."
)
_IMAGES = flags.DEFINE_integer("images", 256, "Held-out images to look at.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 300, "Updates to learn a few images in.", lower_bound=1)
_DIRECTORY = flags.DEFINE_string(
    "config.data.directory", None, "Where the run's data lies now; none: where it lay."
)
flags.mark_flag_as_required("workdir")


def audit_run(run: runs.Run, workdir: pathlib.Path, count: int, steps: int) -> Audit:
    """The audit of what a workdir holds, on its held-out images."""
    experiment, config = run.experiment, run.experiment.config
    examples = run.source.fetch_fn(range(min(count, run.source.size)))
    step_fn = functools.partial(
        training.train_step,
        objective=experiment.objective,
        optimizer=experiment.optimizer,
        ema_decay=config.train.ema_decay,
    )
    # All in one place, or what is restored and what is new are compiled for apart.
    state, problem, start = jax.device_put(
        (run.state, run.problem, experiment.initial_state()), jax.devices()[0]
    )
    path = workdir / "metrics.jsonl"
    bar = tqdm.tqdm(bar_format="{elapsed} {desc}", leave=False)
    found = audit(
        state,
        problem,
        objective=experiment.objective,
        images=examples["image"],
        labels=examples.get("label"),
        key=jax.random.key(config.seed + 4),
        step_fn=jax.jit(step_fn, donate_argnums=0),
        initial_state=start,
        history=files.read_lines(path) if path.exists() else None,
        batch_size=config.train.batch_size,
        # The learning rate has fallen to zero where the schedule ends.
        steps=min(steps * config.train.accumulate, config.train.steps),
        progress_fn=bar.set_description_str,
    )
    bar.close()
    return found


def table(found: Audit) -> str:
    """The checks in Markdown, aligned."""
    rows = [("check", "status", "value", "fails if", "advice")]
    for c in found.checks:
        advice = c.advice if c.follows is None else f"follows from {c.follows}: {c.advice}"
        rows.append((c.name, c.status, f"{c.value:.3g}", c.limit, advice))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, tuple("-" * width for width in widths))

    def line(row):
        return "| " + " | ".join(map(str.ljust, row, widths)) + " |"

    return "\n".join(map(line, rows))


# What is behind each curve of the picture, for its legend.
MADE_BY = {
    "network": "R, the trained network",
    "zero": "an output of 0",
    "identity": "x_t itself",
    "Wiener": "Wiener restorer, the best linear one",
}


def draw(path: pathlib.Path, verdict: str, curves: dict[str, list[float]]) -> None:
    """Per severity: the RMSE of x0_hat, by who made it, and where the gradient comes from."""
    curves = dict(curves)
    ts, shares = curves.pop("t"), curves.pop("gradient share")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, squares in curves.items():
        width, style = (1.5, "o-") if name == "network" else (1, "--")
        # Half the error in [-1, 1] is that in [0, 1].
        axes[0].semilogy(ts, np.sqrt(squares) / 2, style, lw=width, ms=3, label=MADE_BY[name])
    axes[0].set(
        title="Error of x0_hat on held-out images",
        xlabel="severity t",
        ylabel="RMSE, images in [0, 1]",
    )
    axes[0].grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8, title="x0_hat made by")
    axes[1].bar(ts, 100 * np.array(shares), width=0.8 / max(10, len(ts)), label="network")
    even = 100 / len(ts)
    axes[1].axhline(even, ls="--", lw=1, color="gray", label="an even share")
    axes[1].set(
        title="Where the gradient comes from",
        xlabel="severity t",
        ylabel="share of the gradient (%)",
        xlim=(0, 1.05),
    )
    axes[1].legend(fontsize=8)
    figure.suptitle("\n".join(textwrap.wrap(verdict, 110)), fontsize=10)
    with files.whole(path) as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)


def report(run: runs.Run, workdir: pathlib.Path, foretold: Generation | None) -> int:
    """Audits, and writes and says what was found; the exit status."""
    found = audit_run(run, workdir, _IMAGES.value, _STEPS.value)
    facts = {
        **provenance.brief(run.fingerprint),
        "step": int(run.state.step),
        "data": run.experiment.config.data.name,
        "split": "test",
        "images": min(_IMAGES.value, run.source.size),
        "device": runs.describe_device(),
        "status": found.status,
        "verdict": found.verdict,
        "checks": [check._asdict() for check in found.checks],
        "severities": found.curves,
    }
    files.write_json(workdir / "audit.json", facts)
    draw(workdir / "audit.png", found.verdict, found.curves)
    written = [workdir / "audit.json", workdir / "audit.png"]
    if foretold is not None:
        written.append(workdir / "generation.png")
        pictures.draw_generation(written[-1], foretold)
    print(found.verdict)
    print(f"{facts['images']:,} held-out images of {facts['data']}, step {facts['step']:,}")
    print(f"written: {', '.join(map(str, written))}\n")
    print(table(found))
    if foretold is not None:
        print(f"\n{foretold.summary}")
    return 1 if found.failed else 0


@hosts.joined()
def main() -> int:
    workdir = files.folder(_WORKDIR.value)
    run = runs.load_run(workdir, _STEP.value, directory=_DIRECTORY.value)
    foretold = build.foretell(run.experiment, run.source)  # on all hosts
    return hosts.on_first(lambda: report(run, workdir, foretold))


if __name__ == "__main__":
    commands.run(main, buckets={"workdir"})
