"""Any sequence of appends is the batch posterior, and no append changes a posterior that exists."""

import copy
import multiprocessing
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule
from strategies import make_kernel

from gpsafe.models import GP, _factor
from gpsafe.rkhs import kernels

SOLVE = 1e-8
QUERIES = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(6, 2)


def empty() -> GP:
    chosen = [make_kernel("rbf", 2), make_kernel("matern-3/2", 2)]
    return GP.create(chosen, [0.05, 0.3], nx=2, nu=0, noise_std=0.1)


def data(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        4 * torch.rand(n, 2, dtype=torch.float64, generator=generator) - 2,
        torch.randn(n, 2, dtype=torch.float64, generator=generator),
    )


def batch(model: GP) -> GP:
    """The same data in one piece, on memory of its own."""
    return empty().condition_on(model.inputs, model.targets)


def snapshot(model: GP) -> tuple[torch.Tensor, ...]:
    lower = [factor.lower.clone() for factor in model._factors]
    return (*(part.clone() for part in model.posterior(QUERIES)), model.info_gain().clone(), *lower)


class Appending(RuleBasedStateMachine):
    """A growing family tree of posteriors: children of old and new parents, evaluated or not, copied or
    not.
    """

    models = Bundle("models")

    @initialize(target=models)
    def start(self):
        self.known = []
        return self.remember(empty())

    def remember(self, model: GP) -> GP:
        self.known.append((model, None))
        return model

    @rule(target=models, parent=models, seed=st.integers(0, 10**6), n=st.integers(1, 40))
    def append(self, parent, seed, n):
        return self.remember(parent.condition_on(*data(seed, n)))

    @rule(target=models, parent=models, seed=st.integers(0, 10**6), n=st.integers(1, 5))
    def two_children(self, parent, seed, n):
        first = self.remember(parent.condition_on(*data(seed, n)))
        self.remember(parent.condition_on(*data(seed + 1, n)))
        return first

    @rule(target=models, parent=models)
    def travel(self, parent):
        return self.remember(pickle.loads(pickle.dumps(parent)))

    @rule(parent=models, n=st.integers(1, 4))
    def fail_to_append(self, parent, n):
        z, y = data(0, n)
        with pytest.raises(ValueError, match="expected"):
            parent.condition_on(z, y * float("nan"))

    @rule(model=models)
    def evaluate(self, model):
        for i, (known, seen) in enumerate(self.known):
            if known is model and seen is None:
                self.known[i] = (known, snapshot(known))

    def teardown(self):
        for model, seen in self.known[-12:] + self.known[:4]:
            if seen is not None:  # bit for bit: nothing that happened later touched it
                for before, after in zip(seen, snapshot(model), strict=True):
                    assert torch.equal(before, after)
            if model.num_data:
                fresh = batch(model)
                for a, b in zip(snapshot(model), snapshot(fresh), strict=True):
                    torch.testing.assert_close(a, b, rtol=SOLVE, atol=SOLVE)


Appending.TestCase.settings = settings(stateful_step_count=14, max_examples=settings().max_examples // 3)
TestAppending = Appending.TestCase


def test_eight_hundred_single_appends_keep_the_factor():
    z, y = data(0, 800)
    kernel = kernels.rbf(1.0)
    model = GP.create(kernel, 1e-4, nx=2, nu=0, noise_std=0.1, outputs=[0])
    for i in range(800):
        model = model.condition_on(z[i : i + 1], y[i : i + 1, :1])
        if i == 400:
            model.posterior(QUERIES)
    whole = GP.create(kernel, 1e-4, nx=2, nu=0, noise_std=0.1, outputs=[0]).condition_on(z, y[:, :1])
    ours, theirs = model._factors[0], whole._factors[0]
    gram = kernels.cross(kernel, z, z) + 1e-4 * torch.eye(800, dtype=torch.float64)
    assert float((ours.lower @ ours.lower.mT - gram).abs().max()) < 1e-12
    torch.testing.assert_close(ours.lower, theirs.lower, rtol=0, atol=1e-9)
    assert float((ours.inverse @ ours.lower - torch.eye(800, dtype=torch.float64)).abs().max()) < 1e-9
    for a, b in zip(model.posterior(QUERIES), whole.posterior(QUERIES), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=SOLVE)


def test_a_graph_recorded_before_an_append_is_still_valid_after_it():
    parent = empty().condition_on(*data(0, 10))
    z = QUERIES.clone().requires_grad_(True)
    total = parent.posterior(z)[1].sum()
    child = parent.condition_on(*data(1, 5))
    child.posterior(QUERIES)
    total.backward()
    again = QUERIES.clone().requires_grad_(True)
    parent.posterior(again)[1].sum().backward()
    assert torch.equal(z.grad, again.grad)


def test_the_parent_can_be_used_before_and_after_the_inverse_is_extended():
    parent = empty().condition_on(*data(0, 10))
    child = parent.condition_on(*data(1, 7))
    late = child.posterior(QUERIES)  # first request of L⁻¹ comes from the child
    early = parent.posterior(QUERIES)
    for a, b in zip(
        (*late, *early), (*batch(child).posterior(QUERIES), *batch(parent).posterior(QUERIES)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=SOLVE)


def test_appending_in_place_shares_memory_and_diverging_does_not():
    parent = empty().condition_on(*data(0, 10))
    first, second = parent.condition_on(*data(1, 3)), parent.condition_on(*data(2, 3))
    assert first._factors[0].store is parent._factors[0].store
    assert second._factors[0].store is not parent._factors[0].store


def test_a_failed_append_leaves_the_model_usable():
    kernel = kernels.rbf(1.0)
    model = GP.create(kernel, 1e-16, nx=1, nu=0, noise_std=0.1).condition_on(torch.zeros(1, 1), torch.zeros(1, 1))
    same = torch.zeros(3, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="positive definite"):
        model.condition_on(same, same)
    fine = model.condition_on(torch.ones(1, 1), torch.ones(1, 1))
    assert float(fine.posterior(torch.ones(1, 1))[0]) == pytest.approx(1.0)


def test_pickles_carry_the_posterior_and_not_the_spare_capacity():
    model = empty().condition_on(*data(0, 150)).condition_on(*data(1, 2))
    model.posterior(QUERIES)
    text = pickle.dumps(model)
    assert len(text) < 2 * 2 * 152 * 152 * 8 + 60_000
    family = pickle.loads(pickle.dumps((model, model.condition_on(*data(2, 3)))))
    assert family[0]._factors[0].store is family[1]._factors[0].store


def _child(text: bytes) -> tuple[list, list]:
    torch.set_num_threads(1)
    model = pickle.loads(text).condition_on(*data(5, 4))
    mean, std = model.posterior(QUERIES)
    return mean.tolist(), std.tolist()


@pytest.mark.slow
def test_another_process_continues_from_a_pickle():
    parent = empty().condition_on(*data(0, 20))
    parent.posterior(QUERIES)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        mean, std = pool.apply(_child, (pickle.dumps(parent),))
    expected = parent.condition_on(*data(5, 4)).posterior(QUERIES)
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), expected[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.tensor(std, dtype=torch.float64), expected[1], rtol=0, atol=1e-12)


def test_deep_copies_and_moves_are_independent():
    parent = empty().condition_on(*data(0, 10))
    for other in (copy.deepcopy(parent), parent.to("cpu")):
        child = other.condition_on(*data(1, 3))
        assert child._factors[0].store is not parent._factors[0].store
        for a, b in zip(child.posterior(QUERIES), parent.condition_on(*data(1, 3)).posterior(QUERIES), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["rbf", "matern-1/2", "product"])
def test_an_empty_model_moves_to_the_device_of_its_data(name):
    z, y = data(0, 10)
    model = GP.create(make_kernel(name, 2), 0.1, nx=2, nu=0, noise_std=0.1)
    there = model.condition_on(z.cuda(), y.cuda())
    here = model.condition_on(z, y)
    for a, b in zip(there.posterior(QUERIES.cuda()), here.posterior(QUERIES), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=SOLVE)


# ------------------------------------------------------------------------------------------- threads
def together(*jobs):
    """The results of calls that all run at once."""
    ready = threading.Barrier(len(jobs))

    def run(job):
        ready.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


@pytest.fixture
def slow_writes(monkeypatch):
    """Leaves other threads time between the decision to append and the append."""
    write = _factor._write

    def later(*arguments):
        time.sleep(0.003)
        write(*arguments)

    monkeypatch.setattr(_factor, "_write", later)


@pytest.mark.usefixtures("slow_writes")
def test_threads_that_condition_one_model_do_not_see_each_other():
    parent = empty().condition_on(*data(0, 10))
    parent.posterior(QUERIES)
    jobs = [lambda i=i: parent.condition_on(*data(i, 1 + i % 3)) for i in range(1, 7)]
    for i, child in enumerate(together(*jobs), start=1):
        alone = batch(empty().condition_on(*data(0, 10)).condition_on(*data(i, 1 + i % 3)))
        for found, expected in zip(snapshot(child), snapshot(alone), strict=True):
            torch.testing.assert_close(found, expected, rtol=SOLVE, atol=SOLVE)
    assert len({id(factor.store) for child in together(*jobs) for factor in child._factors}) == 2 * len(jobs)


@pytest.mark.usefixtures("slow_writes")
def test_threads_that_evaluate_one_family_agree_with_evaluation_alone():
    model, family = empty(), []
    for i in range(5):
        model = model.condition_on(*data(i, 4))
        family.append(model)
    jobs = [lambda m=m: snapshot(m) for m in (*family, *family)]
    for found, member in zip(together(*jobs), (*family, *family), strict=True):
        for value, expected in zip(found, snapshot(batch(member)), strict=True):
            torch.testing.assert_close(value, expected, rtol=SOLVE, atol=SOLVE)
