"""l1 and l2. Expected values are worked out by hand; gradients by finite differences (chex)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from diffjax import losses

PREDICTIONS = np.array([[1.5, -2.0, 0.25], [0.0, 3.0, -1.0]], np.float32)
TARGETS = np.array([[1.0, 1.0, 0.25], [-0.5, -1.0, 1.0]], np.float32)
# Differences: 1/2, -3, 0; 1/2, 4, -2.
VALUES = {
    "l1": np.array([[0.5, 3.0, 0.0], [0.5, 4.0, 2.0]], np.float32),
    "l2": np.array([[0.25, 9.0, 0.0], [0.25, 16.0, 4.0]], np.float32),
}
# The sign (NaN where it has a kink), and twice the difference: there is no factor 1/2.
SLOPES = {
    "l1": np.array([[1.0, -1.0, np.nan], [1.0, 1.0, -1.0]], np.float32),
    "l2": np.array([[1.0, -6.0, 0.0], [1.0, 8.0, -4.0]], np.float32),
}
ALL = ["l1", "l2", "l1_loss", "l2_loss"]


class LossesTest(chex.TestCase):
    @chex.all_variants
    @parameterized.named_parameters((name, name) for name in ("l1", "l2"))
    def test_values(self, name):
        loss = self.variant(getattr(losses, name))(PREDICTIONS, TARGETS)
        np.testing.assert_array_equal(loss, VALUES[name])
        assert loss.dtype == jnp.float32

    @chex.all_variants
    @parameterized.named_parameters((name, name) for name in ("l1", "l2"))
    def test_scalars(self, name):
        loss = self.variant(getattr(losses, name))(jnp.float32(-1), jnp.float32(1))
        assert loss == {"l1": 2, "l2": 4}[name]


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_entry_point_is_the_body_jitted(name):
    entry = getattr(losses, f"{name}_loss")
    np.testing.assert_array_equal(entry(PREDICTIONS, TARGETS), VALUES[name])
    assert entry.__wrapped__ is getattr(losses, name)
    [equation] = jax.make_jaxpr(entry)(PREDICTIONS, TARGETS).eqns
    assert equation.primitive.name in ("jit", "pjit")


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_gradient(name):
    loss_fn = getattr(losses, name)
    gradient = jax.grad(lambda predictions: jnp.sum(loss_fn(predictions, TARGETS)))
    slopes = gradient(PREDICTIONS)
    assert np.all(np.isfinite(slopes))
    smooth = np.isfinite(SLOPES[name])
    np.testing.assert_array_equal(slopes[smooth], SLOPES[name][smooth])


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_numerical_gradient(name):
    # Away from the kink of l1, where a difference across it would have no meaning.
    predictions = jnp.array([1.5, -2.0, 0.25])
    targets = jnp.array([1.0, 1.0, 0.75])
    chex.assert_numerical_grads(getattr(losses, name), (predictions, targets), order=1, atol=1e-2)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("predictions", "targets"),
    [((4,), (4, 1)), ((4, 1), (4,)), ((2, 3), (3,)), ((1,), ()), ((4,), (1,))],
)
def test_shapes_that_would_broadcast_raise(name, predictions, targets):
    with pytest.raises(AssertionError, match="shape"):
        getattr(losses, name)(jnp.zeros(predictions), jnp.zeros(targets))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32])
def test_another_dtype_raises(name, dtype):
    with pytest.raises(AssertionError, match="dtype"):
        getattr(losses, name)(jnp.zeros(3), jnp.zeros(3, dtype))


@pytest.mark.parametrize("name", ALL)
def test_low_precision_is_kept(name):
    loss = getattr(losses, name)(jnp.ones(3, jnp.bfloat16), jnp.zeros(3, jnp.bfloat16))
    assert loss.dtype == jnp.bfloat16
