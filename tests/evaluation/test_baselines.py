"""Controls: nearest neighbours, k-means features, a supervised network."""

import pickle

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.neighbors import KNeighborsClassifier

from dcgan_dist.config import ModelConfig
from dcgan_dist.evaluation.baselines import NearestNeighbours, Pixels
from dcgan_dist.evaluation.kmeans import cluster, fit_kmeans, standardise, whiten
from dcgan_dist.evaluation.supervised import SupervisedCNN, draw_trial
from dcgan_dist.evaluation.tasks import divide, score_full

CPU = torch.device("cpu")


def striped(count, side=16):
    """Noisy grey images with vertical or horizontal stripes, as rows of uint8 RGB, and their classes."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, count)
    images = random.integers(0, 60, (count, side, side, 3))
    wave = (np.arange(side) // 2 % 2) * 120
    images[labels == 0] += wave[None, :, None, None]
    images[labels == 1] += wave[None, None, :, None]
    return images.astype(np.uint8).reshape(count, -1), labels


def test_neighbours_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    x, labels = random.normal(size=(300, 6)).astype(np.float32), random.integers(0, 3, 300)
    learner = NearestNeighbours(CPU)
    rows = np.arange(200)
    (models,) = learner.fit(x, labels, [rows], (1.0, 5.0), 3)
    probe = torch.from_numpy(x[200:])
    one = KNeighborsClassifier(1).fit(x[:200], labels[:200]).predict(x[200:])
    np.testing.assert_array_equal(models[0].predict(probe), one)
    votes = KNeighborsClassifier(5).fit(x[:200], labels[:200]).predict_proba(x[200:])
    clear = np.sort(votes)[:, -1] > np.sort(votes)[:, -2] + 0.1
    np.testing.assert_array_equal(models[1].predict(probe).numpy()[clear], votes.argmax(1)[clear])


def test_with_equal_votes_the_nearest_wins():
    x = np.array([[0.0], [1.0], [3.0], [4.0]], dtype=np.float32)
    (models,) = NearestNeighbours(CPU).fit(x, np.array([1, 0, 0, 1]), [np.arange(4)], (4.0,), 2)
    assert models[0].predict(torch.tensor([[-1.0]])).item() == 1


def test_whitened_patches_ignore_contrast_and_have_equal_variance_where_there_is_any():
    random = np.random.default_rng(0)
    mixed = random.normal(size=(4000, 12)) @ random.normal(size=(12, 12)) * 20 + 100
    patches = torch.from_numpy(mixed).float()
    made = cluster(patches, 4, random, iterations=1)
    white = whiten(patches, made["mean"], made["whitening"])
    again = whiten(patches * 3 + 40, made["mean"], made["whitening"])
    torch.testing.assert_close(white, again, rtol=0.1, atol=0.1)
    even = (mixed - mixed.mean(1, keepdims=True)) / np.sqrt(mixed.var(1, ddof=1, keepdims=True) + 10)
    before = np.linalg.eigvalsh(np.cov(even.T))
    after = np.linalg.eigvalsh(np.cov(white.numpy().T))
    np.testing.assert_allclose(after, before / (before + 0.1), atol=1e-3)


def test_clusters_are_as_tight_as_those_of_scikit_learn():
    random = np.random.default_rng(0)
    patches = torch.from_numpy(random.normal(size=(2000, 8)).astype(np.float32) * 50)
    made = cluster(patches, 10, random)
    white = whiten(patches, made["mean"], made["whitening"])

    def spread(centroids):
        return torch.cdist(white, centroids).min(1).values.square().sum().item()

    best = KMeans(10, n_init=5, random_state=0).fit(white.numpy())
    assert spread(made["centroids"]) < 1.1 * best.inertia_


def test_kmeans_features_are_summed_triangle_activations_of_quadrants(tmp_path):
    pixels, _ = striped(40)
    settings = {"image_size": 16, "channels": 3, "centroids": 7, "patches": 500, "seed": 0, "device": CPU}
    extractor = fit_kmeans(pixels, np.arange(30), "digest", tmp_path, **settings)
    assert extractor == fit_kmeans(pixels, np.arange(30), "digest", tmp_path, **settings)
    assert extractor.key != fit_kmeans(pixels, np.arange(31), "digest", tmp_path, **settings).key
    image = pixels[3].reshape(16, 16, 3)
    got = extractor(image[None])[0]
    import safetensors.torch

    made = {name: tensor.numpy() for name, tensor in safetensors.torch.load_file(extractor.weights).items()}
    expected = np.zeros((2, 2, 7))
    for top in range(11):
        for left in range(11):
            patch = image[top : top + 6, left : left + 6].transpose(2, 0, 1).reshape(-1).astype(np.float64)
            even = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 10) - made["mean"]
            distance = np.linalg.norm(even @ made["whitening"] - made["centroids"], axis=1)
            expected[int(top >= 6), int(left >= 6)] += np.maximum(distance.mean() - distance, 0)
    np.testing.assert_allclose(got, expected.reshape(-1), rtol=5e-3, atol=0.05)


def test_features_are_standardised_by_the_training_images_alone():
    random = np.random.default_rng(0)
    values, test_values = random.normal(3, 5, (1200, 4)), random.normal(9, 2, (10, 4))
    rows = np.arange(0, 1000)
    ours, tests = standardise(values, test_values, rows)
    everything = np.arange(1200)
    expected = (values - values[:1000].mean(0)) / np.sqrt(values[:1000].var(0) + 0.01)
    np.testing.assert_allclose(ours[everything], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tests[np.arange(10)], (test_values - values[:1000].mean(0)) / ours.spread, rtol=1e-4)


def test_memory_mapped_pixels_are_pickled_as_the_name_of_their_file(tmp_path):
    rows, _ = striped(200)
    rows.tofile(tmp_path / "values")
    mapped = np.memmap(tmp_path / "values", np.uint8, "r", shape=rows.shape)
    some = np.array([3, 150])
    for values, is_small in ((mapped, True), (mapped[50:], False), (rows, False)):
        packed = pickle.dumps(Pixels(values))
        assert (len(packed) < 1000) == is_small
        np.testing.assert_array_equal(pickle.loads(packed)[some - 3], Pixels(values)[some - 3])


def test_the_supervised_network_learns_and_its_search_uses_validation_images():
    rows, labels = striped(400)
    model = ModelConfig(image_size=16, channels=3, classes=0, ndf=4)
    learner = SupervisedCNN(model, epochs=8, seed=0, device=CPU, grid=(0.0, 1.0, 2.0))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    score = score_full(learner, Pixels(rows), Pixels(rows), divide(labels, seed=0), CPU)
    assert torch.equal(before, torch.random.get_rng_state())
    assert score.value > 90
    assert score.validation[score.chosen] == max(score.validation.values())
    again = score_full(learner, Pixels(rows), Pixels(rows), divide(labels, seed=0), CPU)
    assert again.validation == score.validation
    assert len({draw_trial(0, number) for number in range(20)}) == 20
