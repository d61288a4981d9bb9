"""The type, what all families share, and what Algorithm 2 does to D in closed form.

Oracles: hand computation for the toys; scipy.ndimage.correlate1d for A_T of a blur; for the
number of a family's steps, the images that it makes of one x0.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import iterated_blur

from diffjax import samplers, schedules
from diffjax.degradations import base
from diffjax.degradations.base import (
    Degradation,
    LinearMap,
    coefficients,
    compose,
    degrade,
    draw,
    has_coefficients,
    infer,
    keep,
    require,
)
from diffjax.degradations.blur import gaussian_blur
from diffjax.degradations.families import FAMILIES
from diffjax.degradations.mask import mask
from diffjax.degradations.noise import gaussian_noise
from diffjax.restorers import process

SHAPE = (4, 3, 2)


def draw_direction(params, key, x0):
    return jax.random.normal(key, x0.shape)


def add_direction(params, x0, t, omega):
    return x0 + t * params["scale"] * omega


def infer_direction(params, xt, t, x0_hat, omega):
    return (xt - x0_hat) / (t * params["scale"])


def straight(scale=1.0):
    """D = x0 + t e, where e = scale omega."""
    return Degradation(
        {"scale": jnp.float32(scale)},
        draw_fn=draw_direction,
        apply_fn=add_direction,
        infer_fn=infer_direction,
    )


def images(count=1):
    return np.random.default_rng(0).uniform(-1, 1, (count, *SHAPE)).astype(np.float32)


def walk(sampler, degradation, restore_fn, xT, ts, omega=None):
    key = jax.random.key(0)
    return samplers.sample(sampler, process(degradation, restore_fn), key, xT, ts, omega)


@pytest.mark.parametrize("t", [-0.1, 1.5, -1, 2, float("nan")])
def test_number_outside_the_severities_raises(t):
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]; got"):
        degrade(straight(), images()[0], t, images()[0])


@pytest.mark.parametrize("t", [0, 1, 0.25, np.float64(0.25), jnp.float32(0.25)])
def test_severity_may_be_any_number(t):
    x0, omega = images(2)
    xt = degrade(straight(2.0), x0, t, omega)
    np.testing.assert_allclose(xt, x0 + 2 * np.float32(t) * omega, rtol=1e-6)
    assert xt.dtype == jnp.float32


def test_apply_fn_is_asked_for_by_name():
    with pytest.raises(TypeError, match="apply_fn"):
        Degradation({})


def test_defaults_have_no_realization_and_keep_the_one_given():
    degradation = Degradation((), apply_fn=add_direction)
    assert draw(degradation, jax.random.key(0), images()[0]) is None
    omega = {"mask": images()[0]}
    assert infer(degradation, images()[0], 0.5, images()[0], omega) is omega
    assert keep((), None, None, None, 7) == 7
    assert degradation.linear_fn is None
    assert LinearMap() == (1.0, 0.0, None, None, None)


def test_draw_and_infer_see_the_params():
    x0, omega = images(2)
    degradation = straight(4.0)
    key = jax.random.key(3)
    np.testing.assert_array_equal(draw(degradation, key, x0), jax.random.normal(key, SHAPE))
    xt = x0 + 0.5 * 4 * omega
    np.testing.assert_allclose(infer(degradation, xt, 0.5, x0), omega, atol=1e-6)


def test_require():
    require(True, "never said")
    with pytest.raises(ValueError, match=r"^stds must be positive$"):
        require(False, "stds must be positive")


def test_step_index_rounds_and_clips():
    steps = [base.step_index(jnp.float32(t), 10).item() for t in (-1, 0, 0.04, 0.06, 1, 2)]
    assert steps == [0, 0, 0, 1, 10, 10]


def test_at_step_counts_from_one_and_stores_no_identity():
    table = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    picked = [base.at_step(table, jnp.int32(k), 7.0).tolist() for k in (0, 1, 2)]
    assert picked == [[7, 7], [1, 2], [3, 4]]


def test_transform_multiplies_rows_and_columns():
    rng = np.random.default_rng(3)
    x, rows, cols = (rng.normal(size=shape) for shape in ((4, 5, 2), (3, 4), (6, 5)))
    expected = np.stack([rows @ x[..., c] @ cols.T for c in range(2)], axis=-1)
    np.testing.assert_allclose(base.transform(x, rows, cols), expected, atol=1e-5)


def test_degradation_is_frozen():
    with pytest.raises(AttributeError):
        straight().params = {}


def test_leaves_are_the_params_alone():
    leaves, structure = jax.tree.flatten(straight(3.0))
    assert leaves == [3.0]
    assert structure == jax.tree.structure(straight(5.0))
    assert structure != jax.tree.structure(
        Degradation({"scale": jnp.float32(3)}, apply_fn=add_direction)
    )
    doubled = jax.tree.map(lambda leaf: 2 * leaf, straight(3.0))
    assert doubled.params["scale"] == 6


class VariantsTest(chex.TestCase):
    @chex.all_variants
    def test_degradation_is_an_argument(self):
        x0, omega = images(2)
        xt = self.variant(degrade)(straight(2.0), x0, jnp.float32(0.5), omega)
        np.testing.assert_allclose(xt, x0 + omega, atol=1e-6)


@chex.assert_max_traces(n=1)
def counted_degrade(degradation, x0, t, omega):
    return degrade(degradation, x0, t, omega)


def test_constructions_share_one_trace():
    chex.clear_trace_counter()
    jitted = jax.jit(counted_degrade)
    x0, omega = images(2)
    for scale, t in ((1.0, 0.5), (2.0, 0.75)):
        xt = jitted(straight(scale), x0, jnp.float32(t), omega)
        np.testing.assert_allclose(xt, x0 + t * scale * omega, atol=1e-6)


@pytest.mark.parametrize("field", ["draw_fn", "apply_fn", "infer_fn", "linear_fn"])
@pytest.mark.parametrize("nameless", [lambda *args: None, functools.partial(add_direction)])
def test_a_function_without_a_name_is_refused_by_its_field(field, nameless):
    with pytest.raises(ValueError, match=f"^{field} must be a function with a name: a lambda"):
        Degradation((), **({"apply_fn": add_direction} | {field: nameless}))


def made_anew():
    def apply_fn(params, x0, t, omega):
        return x0

    return Degradation((), apply_fn=apply_fn)


def test_a_function_made_anew_is_a_new_trace():
    chex.clear_trace_counter()
    jitted = jax.jit(counted_degrade)
    arguments = images()[0], jnp.float32(0), None
    jitted(made_anew(), *arguments)
    with pytest.raises(AssertionError, match="traced > 1 times"):
        jitted(made_anew(), *arguments)


def test_stack_of_params_is_a_sweep():
    x0, omega = images(2)
    scales = [0.5, 1.0, 3.0]
    sweep = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(straight, scales))
    swept = jax.vmap(degrade, in_axes=(0, None, None, None))(sweep, x0, jnp.float32(0.5), omega)
    expected = np.stack([x0 + 0.5 * scale * omega for scale in scales])
    np.testing.assert_allclose(swept, expected, atol=1e-6)


def test_two_devices_take_a_degradation_each():
    x0, omega = images(2)
    pair = jax.tree.map(lambda *leaves: jnp.stack(leaves), straight(1.0), straight(2.0))
    spread = jax.pmap(degrade, in_axes=(0, None, None, None))(pair, x0, jnp.float32(1), omega)
    np.testing.assert_allclose(spread, [x0 + omega, x0 + 2 * omega], atol=1e-6)


def test_scan_carries_a_degradation():
    x0, omega = images(2)

    def stronger(degradation, t):
        doubled = jax.tree.map(lambda leaf: 2 * leaf, degradation)
        return doubled, degrade(degradation, x0, t, omega)

    last, xts = jax.lax.scan(stronger, straight(1.0), jnp.array([1.0, 0.5, 0.25]))
    assert last.params["scale"] == 8
    # 1 x 1, 2 x 1/2 and 4 x 1/4 are all 1.
    np.testing.assert_allclose(xts, np.broadcast_to(x0 + omega, (3, *SHAPE)), atol=1e-6)


def zeros(xt, t):
    return jnp.zeros_like(xt)


def nonsense(xt, t):
    return 3 * jnp.cos(5 * xt + t) - 1


@pytest.mark.parametrize("restore_fn", [zeros, nonsense])
@pytest.mark.parametrize("steps", [1, 4, 64])
def test_straight_line_algorithm_2_is_exact_under_any_restorer(restore_fn, steps):
    # x_s = x_t - (x0_hat + t e) + (x0_hat + s e) = x_t - (t - s) e, whatever x0_hat is.
    x0, e = images(2)
    degradation = straight()
    ts = samplers.uniform_grid(steps)
    x = walk(samplers.improved, degradation, restore_fn, x0 + e, ts, e)
    np.testing.assert_allclose(x, x0, atol=2e-5)
    # Algorithm 1 ends with D(x0_hat, 0) = x0_hat, the restorer's last answer.
    x = walk(samplers.naive, degradation, zeros, x0 + e, ts, e)
    np.testing.assert_array_equal(x, np.zeros(SHAPE))


@pytest.mark.parametrize("steps", [1, 3, 12])
def test_constant_restorer_of_a_linear_degradation(steps):
    # The corrections telescope: x_0 = x_T + (I - A_T) c, for any number of steps.
    stds = [0.5, 0.8, 1.1]
    rng = np.random.default_rng(1)
    xT, c = rng.uniform(-1, 1, (2, 7, 6, 1))
    degradation = gaussian_blur((7, 6, 1), stds=stds, kernel_size=5)
    answer = jnp.asarray(c, jnp.float32)
    x = walk(
        samplers.improved,
        degradation,
        lambda xt, t: answer,
        jnp.asarray(xT, jnp.float32),
        samplers.uniform_grid(steps),
    )
    np.testing.assert_allclose(x, xT + c - iterated_blur(c, stds, [5] * 3, "wrap"), atol=1e-5)


def test_exact_restorer_with_inferred_realization_walks_along_the_line():
    x0, e = images(2)
    degradation = straight(2.0)
    omega_hat = infer(degradation, degrade(degradation, x0, 1.0, e), 1.0, x0)
    np.testing.assert_allclose(omega_hat, e, atol=1e-6)
    np.testing.assert_allclose(degrade(degradation, x0, 0.5, omega_hat), x0 + e, atol=1e-6)


IMAGE_SHAPE = (8, 6, 3)
TABLE = schedules.beta_table([0.1, 0.3, 0.9])
BLUR = {"stds": [1.0, 2.0, 3.0], "kernel_size": 5}
BANK = np.linspace(-1, 1, 288, dtype=np.float32).reshape(2, *IMAGE_SHAPE)
END = gaussian_blur(IMAGE_SHAPE, **BLUR)

# (family, settings, the number of steps that they ask for, or None).
CASES = [
    ("animorph", {"images": BANK}, None),
    ("animorph", {"images": BANK, "schedule": "tabulated", "table": TABLE}, 3),
    ("blurring_noise", {"blur_max": 3.0}, None),
    ("bridge", {"end": END, "noise": 0.1}, None),
    ("bridge", {"end": END, "noise": 0.1, "brownian": True}, None),
    ("decolor", {"steps": 4}, 4),
    ("decolor", {"steps": 5, "schedule": "constant", "gray_at_end": True}, 5),
    ("downsample", {"steps": 1}, 1),
    ("downsample", {"sizes": [(7, 5), (3, 3), 1], "method": "bilinear"}, 3),
    ("fade", {"stds": [1.0, 2.0]}, 2),
    ("fade", {"stds": [1.0, 2.0, 3.0], "color": "drawn", "reverse": True}, 3),
    ("fade", {"stds": [1.0] * 4, "place": "random", "color": 0.3}, 4),
    ("gaussian_blur", BLUR, 3),
    ("gaussian_blur", BLUR | {"cumulative": False, "mean_at_end": True}, 3),
    ("gaussian_noise", {}, None),
    ("gaussian_noise", {"schedule": "tabulated", "table": TABLE}, 3),
    ("heat", {"sigma_max": 3.0}, None),
    ("heat", {"sigma_max": 3.0, "levels": 6, "noise": 0.02}, 6),
    ("mask", {"mask": np.eye(8, 6)}, None),
    ("mask", {"mask": np.eye(8, 6) / 2, "soft": True}, None),
    ("mask", {"fraction": 0.5}, None),
    ("mask", {"size": (4, 3)}, None),
    ("snow", {"steps": 5}, 5),
    ("snow", {"steps": 4, "level": 1}, 4),
]
# Its arguments are degradations: see below.
COMPOSED = {"compose"}


def test_every_family_has_a_case():
    assert {family for family, _, _ in CASES} | COMPOSED == set(FAMILIES)


def images_along(degradation, ts):
    x0 = np.random.default_rng(0).uniform(-1, 1, IMAGE_SHAPE).astype(np.float32)
    omega = draw(degradation, jax.random.key(0), x0)
    along = jax.jit(jax.vmap(degrade, in_axes=(None, None, 0, None)))
    return np.asarray(along(degradation, x0, jnp.float32(ts), omega))


def assert_steps(degradation, steps):
    """That x_t is the image of the nearest k / T, and that there are T + 1 different ones."""
    ts = (np.arange(4 * steps) + 0.5) / (4 * steps)
    at_t = images_along(degradation, ts)
    at_k = images_along(degradation, np.round(ts * steps) / steps)
    np.testing.assert_array_equal(at_t, at_k)
    assert len(np.unique(at_t, axis=0)) == steps + 1


@pytest.mark.parametrize(("family", "settings", "steps"), CASES)
def test_a_family_says_its_number_of_steps(family, settings, steps):
    degradation = FAMILIES[family](IMAGE_SHAPE, **settings)
    assert degradation.steps == steps
    # A schedule's table is interpolated: its T steps are where it is that of its authors.
    if steps is not None and settings.get("schedule") != "tabulated":
        assert_steps(degradation, steps)


TWO = gaussian_blur(IMAGE_SHAPE, stds=[1.0, 2.0], kernel_size=3)
SIX = FAMILIES["heat"](IMAGE_SHAPE, sigma_max=4.0, levels=6)
CONTINUOUS = mask(IMAGE_SHAPE, fraction=0.5)


@pytest.mark.parametrize(
    ("first", "second", "share", "steps"),
    [
        (TWO, SIX, 2 / 8, 8),  # both move in eighths
        (SIX, TWO, 6 / 8, 8),
        (TWO, TWO, 0.5, 4),
        (TWO, SIX, 0.5, None),  # quarters, then twelfths
        (TWO, CONTINUOUS, 0.25, None),
        (CONTINUOUS, SIX, 0.25, None),
    ],
)
def test_composed_steps_add_up_where_they_are_equally_long(first, second, share, steps):
    degradation = compose(first, second, share=share)
    assert degradation.steps == steps
    if steps is not None:
        assert_steps(degradation, steps)


@pytest.mark.parametrize("image_shape", [(8, 8), (8, 0, 3), (8, 8, 3, 1), (8.0, 8, 3), (6,)])
@pytest.mark.parametrize(("family", "settings", "steps"), CASES)
def test_a_shape_that_cannot_be_raises(image_shape, family, settings, steps):
    with pytest.raises(ValueError, match="image_shape must be"):
        FAMILIES[family](image_shape, **settings)


def fits(family, settings, axis):
    """Whether an image of another size along the axis is one that D takes as well."""
    if axis == 2:
        of_any_channels = ("gaussian_blur", "downsample", "heat", "blurring_noise", "bridge")
        return family in of_any_channels or settings.get("color") == "drawn"
    return family == "decolor" or not {"fraction", "size"}.isdisjoint(settings)


MISFITS = [
    (family, settings, axis)
    for family, settings, _ in CASES
    for axis in range(3)
    if family != "gaussian_noise" and not fits(family, settings, axis)
]


@pytest.mark.parametrize(("family", "settings", "axis"), MISFITS)
def test_an_image_of_another_shape_raises(family, settings, axis):
    degradation = FAMILIES[family](IMAGE_SHAPE, **settings)
    other = tuple(n + (i == axis) for i, n in enumerate(IMAGE_SHAPE))

    def run(x0):
        return degrade(degradation, x0, 0.5, draw(degradation, jax.random.key(0), x0))

    with pytest.raises(AssertionError):
        jax.eval_shape(run, jax.ShapeDtypeStruct(other, jnp.float32))


WITH_COEFFICIENTS = {"gaussian_noise", "animorph", "bridge"}


@pytest.mark.parametrize(("family", "settings", "steps"), CASES)
def test_families_with_coefficients(family, settings, steps):
    degradation = FAMILIES[family](IMAGE_SHAPE, **settings)
    expected = family in WITH_COEFFICIENTS and not settings.get("brownian")
    assert has_coefficients(degradation) == expected
    if not expected:
        name = degradation.apply_fn.__qualname__
        message = f"^x_t = alpha x0 \\+ sigma omega is needed, which {name} is not"
        with pytest.raises(ValueError, match=message):
            coefficients(degradation, 0.5)


def test_coefficients_by_hand():
    flow = gaussian_noise(IMAGE_SHAPE, schedule="flow")
    alpha, sigma = coefficients(flow, 0.25)
    assert (alpha, sigma) == (0.75, 0.25)
    assert alpha.dtype == sigma.dtype == jnp.float32
    # alpha_bar = 0.64 after the first of two betas.
    table = schedules.beta_table([0.36, 0.4375])
    tabulated = gaussian_noise(IMAGE_SHAPE, schedule="tabulated", table=table)
    np.testing.assert_allclose(jax.jit(coefficients)(tabulated, 0.5), [0.8, 0.6], rtol=1e-6)


def test_compose_gives_each_its_share():
    first = gaussian_blur(IMAGE_SHAPE, stds=[1, 1], kernel_size=3)
    second = mask(IMAGE_SHAPE, fraction=0.5)
    both = compose(first, second, share=0.4)
    x0 = np.random.default_rng(0).uniform(-1, 1, IMAGE_SHAPE).astype(np.float32)
    omega = jax.jit(draw)(both, jax.random.key(3), x0)
    assert omega[0] is None
    blurred = degrade(first, x0, 1.0)
    np.testing.assert_array_equal(degrade(both, x0, 0.2, omega), degrade(first, x0, 0.5))
    np.testing.assert_array_equal(degrade(both, x0, 0.4, omega), blurred)
    np.testing.assert_allclose(
        degrade(both, x0, 0.7, omega), degrade(second, blurred, 0.5, omega[1]), atol=1e-6
    )
    expected = degrade(second, blurred, 1.0, omega[1])
    np.testing.assert_array_equal(degrade(both, x0, 1.0, omega), expected)


def _shift(params, x0, t, omega):
    """D = x0 + a t omega, whose realization can be inferred."""
    return x0 + params * t * omega


def _infer_shift(params, xt, t, x0_hat, omega):
    return jnp.where(t == 0, omega, (xt - x0_hat) / jnp.where(t == 0, 1, params * t))


def test_compose_infers_what_acts():
    shifts = [Degradation(a, apply_fn=_shift, infer_fn=_infer_shift) for a in (1.0, 2.0)]
    both = compose(*shifts)
    x0 = jnp.ones((2, 2, 1))
    xt = jnp.full((2, 2, 1), 4.0)
    kept = (jnp.full((2, 2, 1), 7.0), jnp.full((2, 2, 1), 9.0))
    # t = 0.25: only the first acts, at its 0.5: 4 = 1 + 0.5 omega.
    first, second = infer(both, xt, 0.25, x0, kept)
    np.testing.assert_array_equal(first, np.full((2, 2, 1), 6.0))
    np.testing.assert_array_equal(second, kept[1])
    # t = 0.75: the first is at its end point 1 + 7; 4 = 8 + 2 * 0.5 omega.
    first, second = infer(both, xt, 0.75, x0, kept)
    np.testing.assert_array_equal(first, kept[0])
    np.testing.assert_array_equal(second, np.full((2, 2, 1), -4.0))


@pytest.mark.parametrize("share", [0, 1, -0.5])
def test_a_share_that_cannot_be_raises(share):
    with pytest.raises(ValueError, match="share must lie strictly between 0 and 1"):
        compose(TWO, TWO, share=share)
