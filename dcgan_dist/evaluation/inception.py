"""Scores with the Inception network of 2015: FID, KID and the Inception score.

The network, including its own resizing of images, is the one of torch-fidelity (the extra `inception`). Nothing is
downloaded: the user gives the file of the weights. Its digest is checked, because numbers from other weights could not
be compared with published ones.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.data.images import Pixels
from dcgan_dist.errors import ConfigError
from dcgan_dist.evaluation.diversity import GROUPS, Floats, Metric, Rows, jackknife
from dcgan_dist.evaluation.feature_files import Array
from dcgan_dist.paths import expanded

INCEPTION_FEATURES = 2048
_LOGITS = 1008
_FILE = "weights-inception-2015-12-05-6726825d.pth"
_DIGEST = "6726825d"  # first digits of the file's SHA-256
_PARTS = 10  # of the Inception score (Salimans et al. 2016)
_T95 = 2.262  # of Student's t with _PARTS - 1 degrees of freedom
_BATCH = 32


@dataclass(frozen=True)
class InceptionFeatures:
    """The extractor of 2,048 pooled features and 1,008 logits (see `feature_files.Extractor`)."""

    weights: str
    image_size: int
    device: str = "cpu"
    channels: int = 3
    dimension: int = INCEPTION_FEATURES + _LOGITS
    dtype: str = "float32"

    @property
    def key(self) -> str:
        """See `Extractor`."""
        return f"inception-{_DIGEST}-{self.image_size}"

    @torch.inference_mode()
    def __call__(self, images: Pixels) -> Array:
        """See `Extractor`."""
        network = _network(self.weights, self.device)
        rows = np.empty((len(images), self.dimension), dtype=np.float32)
        for start in range(0, len(images), _BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + _BATCH])).permute(0, 3, 1, 2)
            rows[start : start + _BATCH] = torch.cat(network(batch.to(self.device)), dim=1).cpu().numpy()
        return rows


def open_inception(weights: str | None, image_size: int, device: str) -> InceptionFeatures:
    """Check that package and weights are available, and return the extractor.

    Args:
        weights: path of the weights.
        image_size: side of the images that it is given, which the network enlarges.
        device: where to compute.

    Raises:
        ConfigError: the package or the weights are missing, or the weights are others.
    """
    if weights is None:
        raise ConfigError(
            f"extractor is 'inception', which needs weights: give --inception-weights PATH of {_FILE}, a release file "
            "of torch-fidelity; or take random-conv-v1, which needs none"
        )
    _network_class()
    return InceptionFeatures(check_weights(weights), image_size, device)


def check_weights(weights: str) -> str:
    """Return the absolute path of the weights after checking their digest.

    Raises:
        ConfigError: there is no such file, or it has another digest.
    """
    path = expanded(weights)
    if not path.is_file():
        raise ConfigError(f"inception_weights is {weights!r}: there is no such file; give the path of {_FILE}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(_DIGEST):
        raise ConfigError(
            f"inception_weights is {weights!r}: its SHA-256 begins with {digest[:8]}, not {_DIGEST}; give {_FILE}"
        )
    return str(path.absolute())


def _network_class() -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was built for another torch
        raise ConfigError(
            f"extractor is 'inception', but torch-fidelity cannot be imported ({' '.join(str(error).split())}): "
            "pip install 'dcgan-dist[inception]', or take random-conv-v1"
        ) from error
    return FeatureExtractorInceptionV3


@lru_cache(maxsize=1)
def _network(weights: str, device: str) -> Any:
    tensors = torch.load(weights, map_location="cpu", weights_only=True)
    # The class unpickles the file that it is given, which could run code: give it a file with only these tensors.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "weights.pth"
        torch.save(tensors, copy)
        network = _network_class()("inception-v3-compat", ["2048", "logits_unbiased"], str(copy))
    return network.to(device)


def measure_inception(reference: Rows, values: Array, device: torch.device) -> dict[str, Metric]:
    """Return KID and the Inception score of samples, from rows of `InceptionFeatures`.

    Args:
        reference: the 2,048 features of real images.
        values: features and logits of the samples, (n, 3056).
        device: where to compute.
    """
    samples = Rows(values[:, :INCEPTION_FEATURES], device, reference.centre)
    n = min(samples.count, reference.count)
    return {
        "kid": jackknife(kernel_distances(reference, samples), n, lowest=-np.inf),
        "inception_score": inception_score(torch.from_numpy(values[:, INCEPTION_FEATURES:])),
    }


def kernel_distances(real: Rows, samples: Rows) -> Floats:
    """Return the unbiased squared MMD with the kernel (x·y / d + 1)³ (Bińkowski et al. 2018), over all pairs.

    Entry g is computed without group g of both sets, the last entry with all rows, (GROUPS + 1,).
    """
    within_real, within_samples, between = _sums(real, real), _sums(samples, samples), _sums(real, samples)
    values = np.empty(GROUPS + 1)
    for left_out in range(GROUPS + 1):
        kept = [group for group in range(GROUPS) if group != left_out]
        n, m = (sum(rows.groups[g].stop - rows.groups[g].start for g in kept) for rows in (real, samples))
        parts = [float(sums[kept][:, kept].sum()) for sums in (within_real, within_samples, between)]
        values[left_out] = parts[0] / (n * (n - 1)) + parts[1] / (m * (m - 1)) - 2 * parts[2] / (n * m)
    return values


def _sums(rows: Rows, others: Rows) -> Tensor:
    """Return the sums of the kernel over the pairs of any two groups, without the pairs of a row with itself."""
    sums = rows.x.new_zeros(GROUPS, GROUPS)
    y = others.x + others.centre
    for number, group in enumerate(rows.groups):
        x = rows.x[group] + rows.centre
        for other, of_other in enumerate(others.groups):
            kernel = (x @ y[of_other].T / x.shape[1] + 1) ** 3
            sums[number, other] = kernel.sum() - (kernel.trace() if rows is others and number == other else 0)
    return sums


def inception_score(logits: Tensor) -> Metric:
    """Return the Inception score (Salimans et al. 2016) of logits (n, classes): the mean over ten parts of the samples.

    The interval is by Student's t over the parts. The score increases with the size of a part, here n / 10.
    """
    scores = []
    for part in logits.double().chunk(_PARTS):
        log_p = part.log_softmax(dim=1)
        p = log_p.exp()
        scores.append(float((p * (log_p - p.mean(dim=0, keepdim=True).log())).sum(dim=1).mean().exp()))
    mean, half = float(np.mean(scores)), _T95 * float(np.std(scores, ddof=1)) / math.sqrt(_PARTS)
    return Metric(mean, (max(1.0, mean - half), mean + half), len(logits))
