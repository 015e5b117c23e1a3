"""What the presets make when they are left to train, by measures of their own. All of it takes minutes."""

from pathlib import Path

import numpy as np
import pytest
from classifier import probabilities

import minigan as mg
from minigan import presets, train

SHARED = Path(__file__).parents[2] / "shared" / "data"


def trained(name: str, seed: int = 0) -> mg.GAN:
    """The preset's GAN after its training."""
    config = presets.config(name, seed=seed)
    gan = train.build(config)
    samples = mg.data.read(name, data_dir=SHARED).samples
    gan.fit(samples, steps=config["training"]["steps"], batch=config["training"]["batch"])
    return gan


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="the MNIST files are not there")
def test_mnist_has_digits_of_all_classes() -> None:
    weights = SHARED / "features" / "mnist_cnn_ccexam.npz"
    found = probabilities(trained("mnist").sample(10_000, seed=1), weights)
    shares = np.bincount(found.argmax(1), minlength=10) / len(found)
    assert shares.min() >= 0.03, shares
    assert found.max(1).mean() >= 0.95, "they are digits to the classifier"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "good"), [("ring", 0.85), ("grid", 0.8)])
def test_all_modes_are_found(name: str, good: float) -> None:
    """2,500 samples show all modes, and most lie within 3 standard deviations of one (Srivastava et al. 2017, §4.1)."""
    mixture = getattr(mg.data, name)()
    samples = trained(name).sample(2_500, seed=1)
    distances = np.linalg.norm(samples[:, None] - mixture.means, axis=-1)
    near = distances.min(1) <= 3 * np.max(mixture.std)
    assert near.mean() >= good, near.mean()
    assert len(set(distances.argmin(1)[near])) == len(mixture.means)
