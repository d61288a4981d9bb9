"""Why cold diffusion generates, in closed form: nothing is trained and nothing is drawn.

R is the best linear restorer of x_t = A_t x0 + q n, n white noise of std 1:

    R(x) = mu + G (x - A_t mu),   G = S A_t' (A_t S A_t' + q^2 I)^-1

mu and S are the mean and the covariance of the data. A walk with it is one affine map a step,

    Algorithm 2   x_s = x_t + (A_s - A_t) R(x_t)   ->   M = I + (A_s - A_t) G
    Algorithm 1   x_s = A_s R(x_t)                 ->   M = A_s G

so that the covariance of what it makes is M ... M C M' ... M', with C = A_T S A_T' + p^2 I at
the start. The mean of the data stays: A_t mu becomes A_s mu. Where every A_t and S are diagonal
in one basis, a mode of amplitude a_t and variance S has the factor

    M = 1 + (a_s - a_t) a_t S / (a_t^2 S + q^2)

See docs/why-cold-diffusion-works.md. All in numpy, float64.
"""

import pathlib

import numpy as np

from diffjax import data, metrics, schedules
from diffjax.degradations import blur
from diffjax.degradations.base import Degradation

RATIOS = (0.1, 1.0, 1.1, 1.25, 1.5)  # p / q
STEPS, FIRST, LAST = 50, 0.5, 1.2 * 8  # the blur of digits_blur_generation
PERTURBATION = 0.02  # its q
MODE = (1, 0)  # drawn: the DCT mode that is bright above and dark below


def digits() -> np.ndarray:
    """The training images, [N, 8, 8, 1] in [-1, 1], float64."""
    source = data.load("digits", "train")
    return np.asarray(source.fetch_fn(range(source.size))["image"], np.float64)


def matrices(degradation: Degradation) -> np.ndarray:
    """A_0 = I, A_1, ..., A_T of a blur or a downsampling of one channel; [T + 1, HW, HW]."""
    tables = degradation.params
    rows = np.asarray(tables.rows, np.float64)
    cols = rows if tables.cols is None else np.asarray(tables.cols, np.float64)
    steps = [np.kron(*axes) for axes in zip(rows, cols, strict=True)]
    return np.stack([np.eye(len(steps[0])), *steps])


def propagate(
    table: np.ndarray, covariance: np.ndarray, q: float, p: float, algorithm: int = 2
) -> np.ndarray:
    """The covariance of what a walk makes from x_T = A_T x0 + p n.

    Args:
      table: A_0 = I, A_1, ..., A_T; [T + 1, D, D].
      covariance: S, [D, D].
      q: std of the noise that R was trained with, positive.
      p: std of the noise on x_T.
      algorithm: 1 or 2 of Cold Diffusion.
    Returns:
      [D, D]
    """
    identity = np.eye(len(covariance))
    made = table[-1] @ covariance @ table[-1].T + p**2 * identity
    for at, after in zip(table[:0:-1], table[-2::-1], strict=True):
        seen = at @ covariance @ at.T + q**2 * identity
        gain = np.linalg.solve(seen, at @ covariance).T
        step = after @ gain if algorithm == 1 else identity + (after - at) @ gain
        made = step @ made @ step.T
    return made


def amplitudes(stds: np.ndarray, frequencies: np.ndarray, taps: int | None = None) -> np.ndarray:
    """What is left of waves after 0, 1, ..., T blurs along one axis; [T + 1, F].

    A symmetric kernel g multiplies a wave of f cycles a pixel by sum_j g_j cos(2 pi f j), a whole
    Gaussian by exp(-(2 pi f std)^2 / 2).

    Args:
      stds: of the kernels, in pixels, [T].
      frequencies: f, [F]; k / N of a circular boundary, k / (2 N) of a symmetric one.
      taps: of a kernel, odd; None: whole Gaussians.
    """
    if taps is None:
        factors = list(np.exp(-0.5 * np.square(2 * np.pi * np.outer(stds, frequencies))))
    else:
        waves = np.cos(2 * np.pi * np.outer(frequencies, np.arange(taps) - taps // 2))
        factors = [waves @ blur.gaussian_kernel(taps, std) for std in stds]
    return np.cumprod([np.ones(len(frequencies)), *factors], axis=0)


def walk_of_mode(
    amplitude: np.ndarray, variance: np.ndarray, q: float, algorithm: int = 2
) -> np.ndarray:
    """x_t / x_T of a mode along a walk; [T + 1, ...], from t = T to 0.

    Args:
      amplitude: a_0 = 1, a_1, ..., a_T; [T + 1, ...].
      variance: S, [...].
      q: std of the noise that R was trained with, positive.
      algorithm: 1 or 2 of Cold Diffusion.
    """
    at, after = amplitude[:0:-1], amplitude[-2::-1]
    gain = at * variance / (at**2 * variance + q**2)
    factors = after * gain if algorithm == 1 else 1 + (after - at) * gain
    return np.cumprod([np.ones_like(factors[0]), *factors], axis=0)


def _degradations() -> list[tuple[str, Degradation, tuple[float, ...]]]:
    """(name, D, every q) of the rows of the table."""
    shape = (8, 8, 1)
    steps = schedules.blur_increments

    def blurred(stds, taps=None):
        return blur.gaussian_blur(
            shape, stds=stds, kernel_size=taps, boundary="symmetric", mean_at_end=True
        )

    def downsampled(**between):
        return blur.downsample(shape, steps=2, method="area", **between)

    first = blurred([0.3 + 0.05 * i for i in range(20)], 7)
    return [
        ("blur, stds 0.3 to 1.25 a step", first, (0.02,)),
        ("blur, total std 0.5 to 4", blurred(steps(50, first=FIRST, last=4.0)), (0.02,)),
        ("blur, total std 0.5 to 9.6", blurred(steps(20, first=FIRST, last=LAST)), (0.02,)),
        ("blur, total std 0.5 to 9.6", blurred(steps(STEPS, first=FIRST, last=LAST)), (0.02,)),
        (
            "blur, total std 0.3 to 12, kernels of 31",
            blurred(steps(STEPS, first=0.3, last=12.0), 31),
            (0.02,),
        ),
        ("blur, total std 0.5 to 9.6", blurred(steps(100, first=FIRST, last=LAST)), (0.002,)),
        ("downsample to 4 and 2, two halvings", downsampled(), (0.02, 0.1, 0.3)),
        ("downsample to 4 and 2, 20 steps each", downsampled(between=20, faintest=0.01), (0.02,)),
    ]


def table() -> dict:
    """Frechet distance to the digits of what the best linear restorer makes, D by D.

    Of two Gaussians of the digits' mean, pixels in [0, 1]: the data's, with its full covariance,
    and that of the walk.

    Returns:
      {"images": N, "rows": [{"degradation", "steps", "q", "algorithm 2": {p / q: distance},
      "p = 0", "algorithm 1"}]}; algorithm 1 from p = q.
    """
    images = digits().reshape(-1, 64)
    mean, covariance = images.mean(axis=0) / 2, np.cov(images, rowvar=False)

    def distance(*walk):
        made = propagate(*walk)
        return round(metrics.frechet_distance(mean, covariance / 4, mean, made / 4), 6)

    rows = []
    for name, degradation, perturbations in _degradations():
        steps = matrices(degradation)
        for q in perturbations:
            made = {f"{r:g}": distance(steps, covariance, q, r * q) for r in RATIOS}
            rows.append(
                {
                    "degradation": name,
                    "steps": len(steps) - 1,
                    "q": q,
                    "algorithm 2": made,
                    "p = 0": distance(steps, covariance, q, 0.0),
                    "algorithm 1": distance(steps, covariance, q, q, 1),
                }
            )
    return {"images": len(images), "rows": rows}


def paper() -> dict:
    """The setting of the paper's blur generation, on Gaussian images of spectrum 1 / f^2.

    128x128 pixels of std 0.5 around their mean, circular, kernels of 27 taps and std exp(0.01 i),
    T = 300, the last step to the mean, noise of 0.002 on x_T.

    Returns:
      {"perturbation": p, "made": {q: std made over std of the data}, "jump"}; the std over all
      modes together; jump: what D's last step takes of the strongest mode.
    """
    size, std, perturbation = 128, 0.5, 0.002
    frequencies = np.fft.fftfreq(size)
    squares = np.add.outer(frequencies**2, frequencies**2).ravel()[1:]  # all but the mean
    variance = 1 / squares
    variance *= std**2 * size**2 / variance.sum()
    axis = amplitudes(schedules.exponential_stds(300, rate=0.01), frequencies, 27)
    amplitude = (axis[:, :, None] * axis[:, None, :]).reshape(len(axis), -1)[:, 1:]
    amplitude[-1] = 0
    made = {}
    for q in (0.02, 0.00226, 0.0002, 0.00001):
        x = perturbation * walk_of_mode(amplitude, variance, q)[-1]
        made[f"{q:g}"] = round(float(np.sqrt(np.sum(x**2) / np.sum(variance))), 6)
    jump = np.max(np.abs(amplitude[-2]) * np.sqrt(variance))
    return {"perturbation": perturbation, "made": made, "jump": round(float(jump), 6)}


def curve() -> dict:
    """The std of one DCT mode of the digits along the walk, in four ways.

    Returns:
      {"mode", "q", "std": of the data's mode, "t": [T + 1] from 1 to 0, "data": std of
      a_t x0 + q n, "ways": {name: std, [T + 1]}}. Direct is R(x_T) from its first step on.
    """
    images = digits()[..., 0]
    size = images.shape[1]
    i = np.arange(size)
    basis = [np.cos(np.pi * k * (2 * i + 1) / (2 * size)) for k in MODE]
    row, col = (wave / np.linalg.norm(wave) for wave in basis)
    variance = np.var(np.einsum("nhw,h,w->n", images, row, col), ddof=1)
    stds = schedules.blur_increments(STEPS, first=FIRST, last=LAST)
    amplitude = np.prod(amplitudes(stds, np.array(MODE) / (2 * size)), axis=1)
    amplitude[-1] = 0  # the mean at the end
    q, last = PERTURBATION, np.sqrt(variance) * amplitude[-1]
    start = np.hypot(last, q)
    ways = {
        "Algorithm 2, p = q": start * walk_of_mode(amplitude, variance, q),
        "Algorithm 2, p = 0": last * walk_of_mode(amplitude, variance, q),
        "Algorithm 1, p = q": start * walk_of_mode(amplitude, variance, q, 1),
        "direct, p = q": start
        * walk_of_mode(amplitude[[0, -1]], variance, q, 1)[[0] + [1] * STEPS],
    }
    return {
        "mode": list(MODE),
        "q": q,
        "std": round(float(np.sqrt(variance)), 6),
        "t": _rounded(np.linspace(1, 0, STEPS + 1)),
        "data": _rounded(np.sqrt(amplitude[::-1] ** 2 * variance + q**2)),
        "ways": {name: _rounded(stds) for name, stds in ways.items()},
    }


def _rounded(values: np.ndarray) -> list[float]:
    return np.round(values, 6).tolist()


def draw(path: pathlib.Path) -> None:
    """Writes the walks of `curve` as an animation, path.gif, and its last frame, path.png."""
    from matplotlib.animation import PillowWriter
    from matplotlib.figure import Figure

    found = curve()
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axis = figure.subplots()
    axis.plot(found["t"], found["data"], color="0.75", lw=6, label="data: A_t x0 + q n")
    # Three of the four lie on each other, at 0: a wide, a dashed and a dotted line show them all.
    looks = {
        "Algorithm 2, p = q": ("C2", "-", 2.0),
        "Algorithm 2, p = 0": ("C1", "-", 6.0),
        "Algorithm 1, p = q": ("C0", "--", 3.0),
        "direct, p = q": ("k", ":", 2.0),
    }
    lines = {
        name: axis.plot([], [], color=color, ls=style, lw=width, label=_label(found, name))[0]
        for name, (color, style, width) in looks.items()
    }
    axis.set_yscale("symlog", linthresh=1e-3)
    axis.set(xlim=(1.01, -0.01), ylim=(-1e-4, 2.0))
    axis.set_xlabel("severity t: from the mean image (1) to the clean image (0)")
    axis.set_ylabel("std of the mode (images in [-1, 1])")
    axis.set_title(
        "Only Algorithm 2 with noise p on x_T makes this mode of the digits\n"
        f"(DCT mode {MODE}, bright above and dark below; blur, T = {STEPS}, q = {found['q']})"
    )
    axis.legend(loc="lower right", bbox_to_anchor=(1.0, 0.1), fontsize=9)
    writer = PillowWriter(fps=8)
    with writer.saving(figure, path.with_suffix(".gif"), dpi=90):
        for k in [*range(0, STEPS + 1, 2), *[STEPS] * 12]:
            for name, line in lines.items():
                line.set_data(found["t"][: k + 1], found["ways"][name][: k + 1])
            writer.grab_frame()
    figure.savefig(path.with_suffix(".png"), dpi=110)


def _label(found: dict, way: str) -> str:
    return f"{way}: ends at {100 * found['ways'][way][-1] / found['std']:.0f}% of the data's std"
