"""The likelihood of test samples under a Parzen window about generated ones."""

import math
from typing import Any, NamedTuple

import numpy as np

from minigan.backend import Array
from minigan.errors import ConfigError
from minigan.metrics.samples import as_rows, blocks, centred, squared_distances


class Likelihood(NamedTuple):
    """The mean log-likelihood in nats, its standard error, and the width σ of the window."""

    mean: float
    error: float
    sigma: float


def parzen_log_likelihood(samples: Any, test: Any, sigma: float) -> Likelihood:
    """The mean over `test` of log (1/N) Σ_i N(x; s_i, σ² I), s the N generated samples (Goodfellow et al. 2014, §5).

    A number to compare with published ones, and not much more: samples of a k-means have a higher one than real images
    (Theis et al. 2015, "A note on the evaluation of generative models", §4.2).

    Args:
        samples, test: (N, ...) and (M, ...), of one kind. Memory is bounded by blocks.
        sigma: the width of the window, above 0; `parzen_sigma` finds one.

    Raises: `ShapeError`, `DataError`, `ConfigError` for other arguments.

    >>> found = parzen_log_likelihood([[0.0]], [[0.0], [1.0]], sigma=1.0)
    >>> round(found.mean, 6)  # -log sqrt(2π) - 1/4
    -1.168939
    """
    centres, x = centred(*as_rows("parzen_log_likelihood", samples, test))
    if not 0 < sigma < math.inf:
        raise ConfigError(f"parzen_log_likelihood: sigma={sigma!r}, expected a finite number above 0")
    values, x, centres = np.empty(len(x)), x / sigma, centres / sigma
    for part in blocks(len(x), len(centres)):
        terms = squared_distances(x[part], centres) / -2
        top = terms.max(1, keepdims=True)
        values[part] = top[:, 0] + np.log(np.exp(terms - top).mean(1))
    values -= x.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
    return Likelihood(float(values.mean()), float(values.std() / math.sqrt(len(values))), float(sigma))


def parzen_sigma(samples: Any, validation: Any, sigmas: Array | None = None) -> float:
    """The width, of those given, with the largest mean log-likelihood of validation samples.

    sigmas: by default the 10 of the published protocol, from 0.1 to 1 in equal factors.

    >>> import numpy as np
    >>> line = np.linspace(-1, 1, 101)[:, None]
    >>> parzen_sigma(line, line + 0.005, np.array([1e-4, 0.01, 1.0]))
    0.01
    """
    widths = np.logspace(-1, 0, 10) if sigmas is None else np.asarray(sigmas, np.float64)
    if not widths.size:
        raise ConfigError("parzen_sigma: no widths to choose from")
    found = [parzen_log_likelihood(samples, validation, sigma).mean for sigma in widths.tolist()]
    return float(widths[int(np.argmax(found))])
