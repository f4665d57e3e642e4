import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lthjax import optim
from lthjax.config import Lengths, Optim


def lengths(warmup: int = 0, milestones: tuple[int, ...] = (), total: int = 100) -> Lengths:
    return Lengths(10, total, 10, warmup, milestones, (0,))


def run(optimiser: optim.Optimiser, start: int = 0, steps: int = 6) -> np.ndarray:
    """Runs a few steps on a quadratic."""
    w = jnp.array([1.0, -2.0, 3.0])
    state = optimiser.at(0).init(w)
    for i in range(start, start + steps):
        updates, state = optimiser.at(i).update(2 * w, state, w)
        w = optax.apply_updates(w, updates)  # type: ignore[assignment]
    return np.asarray(w)


def test_adam_by_hand() -> None:
    w, m, v = np.array([1.0, -2.0, 3.0]), np.zeros(3), np.zeros(3)
    for t in range(1, 7):
        g = 2 * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - 0.01 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) - 0.01 * 0.1 * w
    got = run(optim.make(Optim(lr=0.01, weight_decay=0.1), lengths()))
    np.testing.assert_allclose(got, w, rtol=1e-5)


def test_sgd_by_hand() -> None:
    w, m = np.array([1.0, -2.0, 3.0]), np.zeros(3)
    for _ in range(6):
        m = 0.9 * m + 2 * w + 0.1 * w
        w = w - 0.01 * m
    got = run(optim.make(Optim(name="sgd", lr=0.01, weight_decay=0.1), lengths()))
    np.testing.assert_allclose(got, w, rtol=1e-5)


def test_nesterov_by_hand() -> None:
    w, m = np.array([1.0, -2.0, 3.0]), np.zeros(3)
    for _ in range(6):
        g = 2 * w + 0.1 * w
        m = 0.9 * m + g
        w = w - 0.01 * (g + 0.9 * m)
    got = run(optim.make(Optim(name="nesterov", lr=0.01, weight_decay=0.1), lengths()))
    np.testing.assert_allclose(got, w, rtol=1e-5)


def test_lion_by_hand() -> None:
    w, m = np.array([1.0, -2.0, 3.0]), np.zeros(3)
    for _ in range(6):
        g = 2 * w
        w = w - 0.01 * (np.sign(0.9 * m + 0.1 * g) + 0.1 * w)
        m = 0.99 * m + 0.01 * g
    got = run(optim.make(Optim(name="lion", lr=0.01, weight_decay=0.1), lengths()))
    np.testing.assert_allclose(got, w, rtol=1e-5)


def test_muon_by_hand() -> None:
    """One step: a kernel's direction is its gradient's, orthogonalised as a matrix."""
    generator = np.random.default_rng(0)
    params = {"kernel": jnp.ones((2, 2, 3, 4)), "bias": jnp.ones(4)}
    gradient = {"kernel": generator.normal(size=(2, 2, 3, 4)), "bias": generator.normal(size=4)}
    x = gradient["kernel"].reshape(12, 4) / np.linalg.norm(gradient["kernel"])
    for _ in range(5):
        inner = x.T @ x
        x = 3.4445 * x + x @ (-4.775 * inner + 2.0315 * inner @ inner)
    optimiser = optim.make(Optim(name="muon", lr=0.5), lengths()).at(0)
    given = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), gradient)
    updates, _ = jax.jit(optimiser.update)(given, optimiser.init(params), params)
    np.testing.assert_allclose(updates["kernel"].reshape(12, 4), -0.5 * x, atol=2e-3)
    # Nesterov's Adam: 0.9 of the corrected mean of the next step, and the gradient.
    size = 0.5 * (0.9 * 0.1 / (1 - 0.9**2) + 1)
    np.testing.assert_allclose(updates["bias"], -size * np.sign(gradient["bias"]), rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "in_steps", "expected"),
    [
        (Optim(lr=0.1), lengths(), {0: 0.1, 99: 0.1}),
        (Optim(lr=0.1), lengths(warmup=10), {0: 0.0, 5: 0.05, 10: 0.1, 50: 0.1}),
        (
            Optim(lr=0.1, schedule="cosine"),
            lengths(warmup=10),
            {0: 0.0, 10: 0.1, 55: 0.05, 100: 0.0},
        ),
        (
            Optim(lr=0.1, schedule="linear"),
            lengths(warmup=20),
            {10: 0.05, 20: 0.1, 60: 0.05, 100: 0.0},
        ),
        (
            Optim(lr=0.1, schedule="steps", decay=0.5),
            lengths(warmup=4, milestones=(20, 40)),
            {2: 0.05, 19: 0.1, 21: 0.05, 41: 0.025},
        ),
    ],
    ids=["constant", "warmup", "cosine", "linear", "steps"],
)
def test_schedules(config: Optim, in_steps: Lengths, expected: dict[int, float]) -> None:
    schedule = optim.make(config, in_steps).schedule
    for at, rate in expected.items():
        assert float(schedule(at)) == pytest.approx(rate, abs=1e-7)
    assert (float(schedule(99)) < float(schedule(98))) == optim.SCHEDULES[config.schedule].falls


def test_a_start_at_k_has_the_rate_of_k_and_fresh_moments() -> None:
    """Compares steps 20... of a schedule that has already dropped with plain sgd at the lower rate."""
    dropped = optim.make(Optim(name="sgd", lr=0.1, schedule="steps"), lengths(milestones=(10,)))
    plain = optim.make(Optim(name="sgd", lr=0.01), lengths())
    np.testing.assert_allclose(run(dropped, start=20), run(plain), rtol=1e-5)


def test_the_step_may_be_traced() -> None:
    optimiser = optim.make(Optim(schedule="cosine"), lengths(warmup=3))
    w = jnp.ones(2)

    @jax.jit
    def update(i: jax.Array) -> jax.Array:
        return optimiser.at(i).update(w, optimiser.at(0).init(w), w)[0]  # type: ignore[return-value]

    np.testing.assert_array_equal(update(jnp.int32(0)), jnp.zeros(2))
    assert (update(jnp.int32(3)) < 0).all()
