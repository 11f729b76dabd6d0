"""Protocols: splits by seed, choices on validation images alone, intervals with the stated coverage."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.svm import LinearSVC

from dcgan_dist.data import progress
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.rooms import room_attributes
from dcgan_dist.errors import DataError
from dcgan_dist.evaluation import linear_svm
from dcgan_dist.evaluation.labelled import ROOM_ATTRIBUTES, class_labels, open_labelled, room_labels
from dcgan_dist.evaluation.tasks import (
    L2SVM,
    choose,
    divide,
    draw_labels,
    permutation,
    score_draws,
    score_full,
    wilson,
)

CPU = torch.device("cpu")
SVM = L2SVM((1e-4, 1e-3, 1e-2, 1e-1), CPU)


def noisy_classes(count=900, width=30, classes=3, noise=2.0, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    centres = random.normal(size=(classes, width))
    return (centres[labels] + noise * random.normal(size=(count, width))).astype(np.float32), labels


def test_splits_depend_on_the_seed_and_do_not_overlap():
    labels = noisy_classes()[1]
    first, again, other = (divide(labels, seed=seed) for seed in (0, 0, 1))
    for name, size in (("test", 180), ("validation", 90), ("train", 630)):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert len(getattr(first, name)) == size
        assert not np.array_equal(getattr(first, name), getattr(other, name))
    assert sorted(np.concatenate((first.train, first.validation, first.test)).tolist()) == list(range(900))
    np.testing.assert_array_equal(divide(labels, seed=0, validation=300).test, first.test)


def test_images_without_a_label_are_left_out():
    labels = np.where(np.arange(100) % 3 == 0, -1, np.arange(100) % 2)
    parts = divide(labels, seed=0)
    assert (labels[np.concatenate((parts.train, parts.validation, parts.test))] >= 0).all()


def test_a_separate_test_set_is_used_whole():
    labels, test_labels = np.arange(100) % 2, np.arange(30) % 2
    parts = divide(labels, seed=0, test_labels=test_labels)
    assert len(parts.train) + len(parts.validation) == 100
    assert parts.test.tolist() == list(range(30))
    with pytest.raises(DataError, match="other classes"):
        divide(labels, seed=0, test_labels=test_labels + 1)


def test_sizes_that_leave_nothing_are_refused():
    with pytest.raises(DataError, match="leave 0 to train on; set --test and --validation"):
        divide(np.arange(100) % 2, seed=0, test=90, validation=50)


def test_an_order_is_the_same_in_every_version():
    assert permutation(8, 3, "labels/score", 5).tolist() == [5, 6, 7, 2, 4, 0, 1, 3]


def test_draws_have_as_many_of_each_class_and_differ():
    labels = noisy_classes()[1]
    parts = divide(labels, seed=0)
    draws = [draw_labels(parts, 20, 0, "score", number) for number in range(3)]
    for rows in draws:
        assert np.bincount(labels[rows]).tolist() == [20, 20, 20]
        assert set(rows.tolist()) <= set(parts.train.tolist())
    assert len({tuple(sorted(rows.tolist())) for rows in draws}) == 3
    choosing = {tuple(sorted(draw_labels(parts, 20, 0, "choice", number).tolist())) for number in range(3)}
    assert not choosing & {tuple(sorted(rows.tolist())) for rows in draws}
    with pytest.raises(DataError, match=r"class 'dog' has \d+ training images, fewer than labels_per_class \(250\)"):
        draw_labels(parts, 250, 0, "score", 0, ["dog", "dog", "dog"])


def test_test_labels_cannot_influence_the_choice():
    values, labels = noisy_classes(noise=3.0)
    parts = divide(labels, seed=0)
    changed = labels.copy()
    changed[parts.test] = (changed[parts.test] + 1) % 3
    lied = dataclasses.replace(parts, test_labels=changed)
    for protocol in (
        lambda p: score_full(SVM, values, values, p, CPU),
        lambda p: score_draws(SVM, values, values, p, CPU, per_class=20, draws=3, choosing_draws=2, seed=0),
    ):
        honest, fooled = protocol(parts), protocol(lied)
        assert honest.chosen == fooled.chosen
        assert honest.validation == fooled.validation
        assert abs(honest.value - fooled.value) > 5


def test_the_choice_reads_no_test_image_and_the_score_reads_each_once():
    values, labels = noisy_classes()
    parts = divide(labels, seed=0)
    seen = []

    class Watched:
        shape = values.shape

        def __getitem__(self, rows):
            seen.extend(np.asarray(rows).tolist())
            return values[rows]

    choose(SVM, Watched(), parts, [parts.train], CPU)
    assert set(seen) == set(parts.train.tolist()) | set(parts.validation.tolist())
    seen.clear()
    score_full(SVM, values, Watched(), parts, CPU)
    assert sorted(seen) == sorted(parts.test.tolist())


def test_a_full_score_is_that_of_scikit_learn_by_the_same_steps():
    values, labels = noisy_classes(noise=3.0)
    parts = divide(labels, seed=0)
    score = score_full(SVM, values, values, parts, CPU)

    def accuracy(c, fit_rows, rows):
        svm = LinearSVC(C=c, tol=1e-6, max_iter=100_000).fit(values[fit_rows], labels[fit_rows])
        return 100 * svm.score(values[rows], labels[rows])

    by_c = {c: accuracy(c, parts.train, parts.validation) for c in SVM.grid}
    best = max(SVM.grid, key=by_c.get)
    assert score.validation == pytest.approx(by_c, abs=1.2)
    assert score.chosen == best
    both = np.concatenate((parts.train, parts.validation))
    assert score.value == pytest.approx(accuracy(best, both, parts.test), abs=0.6)


def test_a_score_over_draws_is_their_mean_with_196_sigma():
    values, labels = noisy_classes(noise=3.0)
    parts = divide(labels, seed=0)
    score = score_draws(SVM, values, values, parts, CPU, per_class=20, draws=6, choosing_draws=2, seed=0)
    shares = []
    for number in range(6):
        rows = draw_labels(parts, 20, 0, "score", number)
        svm = LinearSVC(C=score.chosen, tol=1e-6, max_iter=100_000).fit(values[rows], labels[rows])
        shares.append(100 * svm.score(values[parts.test], labels[parts.test]))
    assert score.value == pytest.approx(np.mean(shares), abs=0.3)
    assert score.ci95[1] - score.value == pytest.approx(1.96 * np.std(shares, ddof=1), abs=0.5)
    assert (score.draws, score.n) == (6, 180)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (7, 10), (579, 1000), (1000, 1000)])
def test_wilsons_interval_is_scipys(right, count):
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == pytest.approx((100 * expected.low, 100 * expected.high), abs=0.01)


def test_two_classes_are_predicted_as_well():
    values, labels = noisy_classes(classes=2, noise=0.5)
    assert score_full(SVM, values, values, divide(labels, seed=0), CPU).value > 99


def test_rooms_have_the_labels_of_their_attributes(tmp_path):
    dataset = open_dataset("rooms:60", image_size=16)
    labels = room_labels(dataset)
    views = [dataset.classes[label] for label in dataset.labels()]
    assert [ROOM_ATTRIBUTES["view"][value] for value in labels["view"]] == views
    known = [room_attributes(0, index) for index in range(60)]
    for name in ("bed_colour", "wall_hue", "lamp_on", "night", "rug", "picture"):
        got = sorted(str(ROOM_ATTRIBUTES[name][value]) for value in labels[name])
        assert got == sorted(str(attributes[name]) for attributes in known), name
    assert labels["window"].sum() <= sum(attributes["window"] for attributes in known)


def test_missing_labels_and_a_single_class_are_refused(tmp_path):
    from dcgan_dist.data.images import encode

    def pictures(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(encode(np.full((16, 16, 3), len(name), np.uint8), "png"))
        return open_labelled(str(tmp_path / name.split("/")[0]), "folder", image_size=16, channels=3, cache=tmp_path)

    with pytest.raises(DataError, match="has no labels: give a folder with one sub-folder a class"):
        class_labels(pictures("none/1.png", "none/2.png"))
    with pytest.raises(DataError, match=r"has one class \(cat\)"):
        class_labels(pictures("one/cat/1.png", "one/cat/2.png", "one/3.png"))
    with pytest.raises(DataError, match=r"trained on grey images .* has colour images"):
        open_labelled("rooms:60", "folder", image_size=16, channels=1, cache=tmp_path)


def test_targets_of_the_same_images_share_the_gram_matrix(monkeypatch):
    values, labels = noisy_classes(width=1000)
    counted = []
    plain = linear_svm._Samples.gram

    def counting(samples, *arguments):
        counted.append(samples.count)
        return plain(samples, *arguments)

    monkeypatch.setattr(linear_svm._Samples, "gram", counting)
    svm = L2SVM((1e-3, 1e-2), CPU)
    targets = [labels, (labels == 0).astype(np.int64), (labels == 1).astype(np.int64)]
    together = [score_full(svm, values, values, divide(labels_of, seed=0), CPU) for labels_of in targets]
    assert counted == [630, 720]
    alone = [
        score_full(L2SVM((1e-3, 1e-2), CPU), values, values, divide(labels_of, seed=0), CPU) for labels_of in targets
    ]
    assert [score.value for score in together] == [score.value for score in alone]


def test_a_long_fit_reports_its_progress(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_PERIOD_S", 0.0)
    values, labels = noisy_classes()
    score_full(L2SVM((1e-3, 1e-1), CPU), values, values, divide(labels, seed=0), CPU)
    lines = capsys.readouterr().err.splitlines()
    pattern = r"SVM of (630|720) images: C = (\S+), duality gap (\S+), sought 1e-04, 0:00"
    reports = [re.fullmatch(pattern, line).groups() for line in lines]
    assert {count for count, _, _ in reports} == {"630", "720"}
    ends = {(count, c): float(gap) for count, c, gap in reports}  # fits between the values of the grid end sooner
    assert max(gap for (_, c), gap in ends.items() if c in ("0.001", "0.1")) <= 1e-4
