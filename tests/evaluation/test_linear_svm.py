"""The SVM against scikit-learn's LinearSVC on problems of every shape, and its two representations."""

import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from dcgan_dist.errors import ConfigError, DataError
from dcgan_dist.evaluation import linear_svm
from dcgan_dist.evaluation.linear_svm import fit_draws, fit_path

TEST = 2000


def blobs(count, width, classes, seed=0, spread=3.0, shares=None):
    """Return samples of classes around random centres."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, width)) * spread / np.sqrt(width)
    y = random.choice(classes, size=count, p=shares)
    y[:classes] = range(classes)
    return (centres[y] + random.normal(size=(len(y), width))).astype(np.float32), y


def activations(count, width, classes):
    """Return features like a network's: many zeros, a large common mean, few strong directions, values over 100."""
    x, y = blobs(count, 40, classes, seed=3)
    mixing = np.random.default_rng(4).normal(size=(40, width)) * np.linspace(3, 0.1, 40)[:, None]
    return (50 * np.maximum(x @ mixing + 1, 0)).astype(np.float32), y


UNEVEN = np.array([0.4, 0.2, 0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.02, 0.02])
PROBLEMS = {
    "tall": (*blobs(1500 + TEST, 40, 5), 5, [1e-2, 1.0]),
    "wide": (*blobs(200 + TEST, 3000, 4), 4, [1e-4, 1e-2]),
    "square": (*blobs(400 + TEST, 400, 3), 3, [1e-3, 1e-1]),
    "two classes": (*blobs(600 + TEST, 100, 2, spread=2.0), 2, [1e-3, 1.0]),
    "uneven": (*blobs(1200 + TEST, 300, 10, shares=UNEVEN), 10, [1e-3, 1e-1]),
    "activations, few": (*activations(400 + TEST, 1000, 10), 10, [1e-8, 1e-6]),
    "activations, many": (*activations(1500 + TEST, 200, 10), 10, [1e-8, 1e-5]),
}


def objectives(weights, intercepts, x, y, c, classes):
    """Return P of each class by its definition, in float64."""
    scores = x.astype(np.float64) @ weights.T + intercepts
    signs = 2.0 * (y[:, None] == np.arange(classes)) - 1
    norms = (weights**2).sum(axis=1) + intercepts**2
    return norms / 2 + c * (np.maximum(0, 1 - signs * scores) ** 2).sum(axis=0)


@pytest.mark.parametrize("name", PROBLEMS)
def test_objective_and_accuracy_are_those_of_linear_svc(name):
    x, y, classes, cs = PROBLEMS[name]
    count = len(x) - TEST
    train_x, train_y, test_x, test_y = x[:count], y[:count], x[count:], y[count:]
    for c, ours in zip(cs, fit_path(train_x, train_y, cs, classes=classes), strict=True):
        # LinearSVC's default tolerance is too loose for a reference; the benchmark measures that.
        theirs = LinearSVC(C=c, dual="auto", tol=1e-6, max_iter=100_000).fit(train_x, train_y)
        weights, intercepts = theirs.coef_, theirs.intercept_
        if classes == 2:
            weights, intercepts = np.concatenate([-weights, weights]), np.concatenate([-intercepts, intercepts])
        reference = objectives(weights, intercepts, train_x, train_y, c, classes)
        exact = objectives(
            ours.weights.double().numpy(), ours.intercepts.double().numpy(), train_x, train_y, c, classes
        )
        np.testing.assert_allclose(exact, reference, rtol=1e-3)
        np.testing.assert_allclose(ours.objective, exact, rtol=1e-4)
        assert ours.gap <= 1e-4
        assert abs(np.mean(ours.predict(test_x).numpy() == test_y) - np.mean(theirs.predict(test_x) == test_y)) <= 0.002


def test_a_fit_from_the_gram_matrix_is_the_fit_by_rows(monkeypatch):
    x, y = blobs(150, 200, 3)
    few = fit_path(x, y, [1e-3, 1e-1], classes=3, tolerance=1e-8)
    monkeypatch.setattr(linear_svm, "LARGEST_GRAM", 0)
    rows = fit_path(x, y, [1e-3, 1e-1], classes=3, tolerance=1e-8)
    for one, other in zip(few, rows, strict=True):
        torch.testing.assert_close(one.weights, other.weights, rtol=1e-3, atol=1e-4 * float(one.weights.abs().max()))
        torch.testing.assert_close(one.intercepts, other.intercepts, rtol=1e-3, atol=1e-5)


def test_a_path_gives_what_single_fits_give_in_fewer_products():
    x, y = activations(400, 1000, 10)
    cs = [1e-8, 2e-8, 5e-8, 1e-7]
    path = fit_path(x, y, cs, classes=10)
    single = [fit_path(x, y, [c], classes=10)[0] for c in cs]
    for one, other in zip(path, single, strict=True):
        np.testing.assert_allclose(one.objective, other.objective, rtol=1e-4)
    assert sum(fit.iterations for fit in path) < 0.8 * sum(fit.iterations for fit in single)


def correlated(count, width, classes):
    """Return samples with directions whose strength falls as 1 / rank, as in the features of a network."""
    x, y = blobs(count, width, classes, seed=5, spread=8.0)
    turned, _ = np.linalg.qr(np.random.default_rng(6).normal(size=(width, width)))
    return ((x * (100 / np.arange(1, width + 1))) @ turned).astype(np.float32), y


@pytest.mark.parametrize(("make", "cs", "share"), [(correlated, [1e-3], 0.5), (blobs, [1e-4, 1e-2], 1.2)])
def test_a_subsample_as_preconditioner_saves_products_and_keeps_the_minimum(monkeypatch, make, cs, share):
    x, y = make(6000, 600, 5)
    with_them = fit_path(x, y, cs, classes=5)
    monkeypatch.setattr(linear_svm._Rows, "preconditioner", linear_svm._Space.preconditioner)
    without = fit_path(x, y, cs, classes=5)
    for one, other in zip(with_them, without, strict=True):
        np.testing.assert_allclose(one.objective, other.objective, rtol=2e-4)
    assert sum(fit.iterations for fit in with_them) < share * sum(fit.iterations for fit in without)


def test_the_preconditioner_is_the_inverse_of_the_hessian_of_the_subsample():
    x, _ = blobs(800, 80, 2)
    space = linear_svm._Rows(linear_svm._Samples(torch.from_numpy(x), torch.device("cpu")))
    active = torch.rand(3, 800, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    active[active < 0.5] = 0
    rows = space._subsample[0]
    assert len(rows) == 10
    few = torch.cat((torch.from_numpy(x).double()[rows], torch.ones(10, 1, dtype=torch.float64)), dim=1)
    weights = active[:, rows] * 80
    middle = torch.linalg.svdvals(few)[4] ** 2
    floor = 1 + weights.mean(dim=1) * middle
    dense = floor[:, None, None] * torch.eye(81).double() + torch.einsum("cm,mi,mj->cij", weights, few, few)
    v = torch.randn(3, 81, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours = space.preconditioner(active)(v)
    torch.testing.assert_close(ours, torch.linalg.solve(dense, v), rtol=1e-9, atol=1e-15)


def test_c_may_be_a_whole_number():
    x, y = correlated(300, 40, 3)
    (whole,), (real,) = (fit_path(x, y, [c], classes=3) for c in (1, 1.0))
    assert torch.equal(whole.weights, real.weights)


def test_few_different_samples_at_a_huge_c_do_not_break_the_preconditioner():
    x, y = activations(30, 100, 3)
    many = np.tile(x, (20, 1)), np.tile(y, 20)
    assert fit_path(*many, [1e2], classes=3)[0].gap <= 1e-4


def test_draws_from_one_pool_equal_the_fits_to_each_subset(monkeypatch):
    x, y = blobs(450, 500, 4)
    random = torch.Generator().manual_seed(0)
    draws = [torch.randperm(len(x), generator=random)[:200] for _ in range(8)]
    made = []
    gram = linear_svm._Samples.gram
    monkeypatch.setattr(linear_svm._Samples, "gram", lambda *given: made.append(1) or gram(*given))
    shared = list(fit_draws(x, y, draws, [1e-2], classes=4))
    assert len(made) == 1  # 8 * 200^2 > 450^2
    for rows, (fit,) in zip(draws, shared, strict=True):
        alone = fit_path(x[rows], y[rows], [1e-2], classes=4)[0]
        torch.testing.assert_close(fit.weights, alone.weights, rtol=1e-3, atol=1e-5)
    made.clear()
    list(fit_draws(x, y, draws[:3], [1e-2], classes=4))
    assert len(made) == 3


@pytest.mark.parametrize("storage", ["float16", "float32"])
@pytest.mark.parametrize(("count", "width"), [(3000, 400), (200, 400)])
def test_a_memory_map_gives_the_same_fit_without_being_read_into_memory(tmp_path, monkeypatch, storage, count, width):
    x, y = blobs(count, width, 3)
    x, y = x[:count].astype(storage), y[:count]
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(linear_svm, "CPU_BLOCK_BYTES", 64 << 10)
    monkeypatch.setattr(linear_svm, "GRAM_ROWS", 40)
    in_memory = fit_path(x.astype(np.float32), y, [1e-2], classes=3)[0]
    tracemalloc.start()
    mapped = fit_path(np.load(tmp_path / "x.npy", mmap_mode="r"), y, [1e-2], classes=3)[0]
    assert tracemalloc.get_traced_memory()[1] < x.nbytes / 2
    tracemalloc.stop()
    torch.testing.assert_close(mapped.weights, in_memory.weights, rtol=1e-4, atol=1e-6)


def test_a_separable_problem_at_a_huge_c_still_ends_within_its_tolerance():
    x, y = activations(150, 800, 3)
    fit = fit_path(x, y, [1.0], classes=3)[0]
    assert fit.gap <= 1e-4
    assert bool((fit.predict(x[:150]) == torch.from_numpy(y[:150])).all())


def test_repeated_samples_and_constant_features_are_fitted():
    x, y = blobs(100, 300, 3)
    x[:, 5] = 7.0
    x[50:100], y[50:100] = x[:50], y[:50]
    assert fit_path(x, y, [1e-2, 1e1], classes=3)[1].gap <= 1e-4


def test_rounding_that_hides_the_minimum_is_warned_about(monkeypatch):
    monkeypatch.setattr(linear_svm, "NEWTON_STEPS", 2)
    x, y = activations(150, 800, 3)
    with pytest.warns(UserWarning, match="C = 1 did not converge"):
        fit_path(x, y, [1.0], classes=3)


def test_a_class_without_samples_is_never_predicted():
    x, y = blobs(200, 50, 3)
    assert not bool((fit_path(x, y, [1e-2], classes=4)[0].predict(x) == 3).any())


def with_value(value):
    x, y = blobs(40, 6, 2)
    x[33, 4] = value
    return x, y


@pytest.mark.parametrize(
    ("x", "y", "cs", "classes", "words"),
    [
        (*with_value(np.nan), [1.0], 2, "feature 4 of sample 33 is nan"),
        (*with_value(-np.inf), [1.0], 2, "feature 4 of sample 33 is -inf"),
        (np.ones((5, 3), np.float32), np.full(5, 2), [1.0], 3, "all are of class 2"),
        (np.ones((5, 3), np.float32), np.array([0, 1, 2, 1, 0]), [1.0], 2, "the label of sample 2 is 2"),
        (np.ones((5, 3), np.float32), np.array([0, 1, -1, 1, 0]), [1.0], 2, "the label of sample 2 is -1"),
        (np.ones((5, 3), np.float32), np.array([0, 1]), [1.0], 2, "give 5 whole numbers"),
        (np.ones((0, 3), np.float32), np.zeros(0, np.int64), [1.0], 2, "there are none"),
        (np.ones((5, 3), np.int64), np.arange(5), [1.0], 5, "give floats"),
        (np.ones((5, 3), np.float32), np.arange(5), [0.0], 5, r"C is \[0.0\]"),
        (np.ones((5, 3), np.float32), np.arange(5), [], 5, r"C is \[\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_one_line(x, y, cs, classes, words):
    with pytest.raises((DataError, ConfigError), match=words) as error:
        fit_path(x, y, cs, classes=classes)
    assert len(str(error.value).splitlines()) == 1
    assert error.value.exit_status == 2


def test_features_of_another_width_are_refused():
    x, y = blobs(40, 6, 2)
    fit = fit_path(x, y, [1.0], classes=2)[0]
    assert fit.decide(x[:0]).shape == (0, 2)
    with pytest.raises(DataError, match="5 features for each sample, but the SVM was fitted to 6"):
        fit.decide(x[:, :5])
