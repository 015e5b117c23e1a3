"""A game at the checkpoints of its run: the eigenvalues of its vector field, and the ranks of its samples and features.

Eigenvalues λ of v' say where *simultaneous gradient descent* goes, θ ← θ + h v(θ): in every direction by the factor
|1 + h λ|. Adam and RMSProp scale each direction anew at every step, so of them eigenvalues tell which directions turn,
contract or expand, and not at which learning rate training is stable.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigan import data, presets, state
from minigan.analysis import effective_rank, features, singular_values, stable_step
from minigan.analysis.features import MOST as MOST_FEATURES
from minigan.analysis.game import MOST
from minigan.backend import Array
from minigan.data import Batches
from minigan.errors import CheckpointError, ConfigError, DataError
from minigan.files import replacing
from minigan.game import Game
from minigan.nn import Sequential
from minigan.nn.module import forward
from minigan.ops import Stream
from minigan.packs import pack
from minigan.pictures import spectrum_plot
from minigan.sampling import positive
from minigan.tape import no_grad
from minigan.tensor import Tensor, tensor
from minigan.train import GAN, build, data_digest

DRAWN = 4  # spectra in one picture
ZERO = 1e-6  # of the largest eigenvalue: real parts that are smaller have no sign


class Spectrum(NamedTuple):
    """A game at one point of its training.

    Attributes:
        step: that it has made.
        parameters: of both players together.
        eigenvalues: of the Jacobian of its vector field, those with the largest real part first: all, or some.
        whole: whether they are all. Some are those with the largest real parts and the largest ones.
        stable_step: the step h below which gradient descent attracts, 0 if there is an eigenvalue to the right.
        contracting_step: the step below which all directions contract that ever do. Of some eigenvalues both are
            upper bounds.
        norm: |v|, which is 0 at an equilibrium.
        ranks: the effective ranks of generated and of real ones: of "samples", and of the features of each of the
            discriminator's layers with 2 to 5,000 of them.
        singular_values: of the generator's Jacobian, the largest first, each the median over some latents.
        condition: the median over these of the largest by the smallest, of as many as a sample has numbers.
    """

    step: int
    parameters: int
    eigenvalues: Array
    whole: bool
    stable_step: float
    contracting_step: float
    norm: float
    ranks: dict[str, tuple[float, float]]
    singular_values: Array
    condition: float

    def expanding(self) -> int:
        """How many eigenvalues lie to the right of the imaginary axis, by more than 1e-6 of the largest."""
        return int((self.eigenvalues.real > ZERO * np.abs(self.eigenvalues).max(initial=0.0)).sum())


def spectrum(
    gan: GAN,
    samples: Any,
    labels: Any = None,
    *,
    count: int = 6,
    batch: int = 256,
    latents: int = 8,
    seed: int = 0,
) -> Spectrum:
    """The game of a GAN as it stands, on one batch of the data: its last weights, not their average.

    Networks of minigan's are taken in float64, whatever they are trained in; those of one's own as they are. Float32
    gives the leading eigenvalues to 1e-7 of the largest, but no sign to those that are smaller than that.

    Args:
        samples, labels: data, as for `GAN.fit`.
        count: how many eigenvalues of each kind, of games with more than 5,000 parameters; smaller ones have them all.
        batch: real samples and latents in the batch.
        latents: of them, for the generator's singular values; each takes as many passes as a latent has numbers.
        seed: which of them.

    Raises: `DataError` for other data, `ConfigError` for other numbers, `ExtraError` without SciPy (extra `analysis`)
        for games with more than 5,000 parameters.

    >>> import minigan as mg
    >>> from minigan.spectra import spectrum
    >>> points = mg.data.ring().sample(1000, mg.ops.Stream(0, "docs"))[0]
    >>> networks = mg.models.mlp_generator(2, (8,), (2,), output=None), mg.models.mlp_discriminator((2,), (8,))
    >>> found = spectrum(mg.GAN(*networks), points)
    >>> found.parameters, len(found.eigenvalues), list(found.ranks)
    (75, 75, ['samples', 'layers.0 Flatten', 'layers.1 Dense', 'layers.2 Activation'])
    """
    with contextlib.suppress(ConfigError):  # something of one's own, which settings do not describe
        gan = _doubled(gan.config(), gan.game.state(), gan.game.device)
    return _measured(gan, samples, labels, count, batch, latents, seed)


def along(
    path: str | os.PathLike[str],
    samples: Any = None,
    labels: Any = None,
    *,
    data_dir: str | None = None,
    device: str = "cpu",
    note: Callable[[str], None] = lambda text: None,
    count: int = 6,
    batch: int = 256,
    latents: int = 8,
    seed: int = 0,
) -> Iterator[Spectrum]:
    """The game at each checkpoint of a run folder, from the first to the last, or at that of one file.

    A run keeps its three newest checkpoints and the best one; more are in the hands of whoever copies them elsewhere.

    Args:
        samples, labels: data, as for `GAN.fit`; by default those that the run's settings name, which have to be the
            same.
        data_dir: where to look for data sets with a name.
        device: where it is computed.
        note: is told of each file that is passed over, because it is damaged.
        count, batch, latents, seed: as for `spectrum`.

    Raises: as `spectrum`; `CheckpointError` if there is none, or none that can be read, or something in it is not of
        minigan itself; `DataError` if the data is not there or another.
    """
    found = state.candidates(path, note)
    if not found:
        raise CheckpointError(f"{os.fspath(path)}: has no checkpoint")
    if samples is None:
        samples, labels = _data(found[0][0]["config"], os.fspath(path), data_dir)
    passed = 0
    for about, file in reversed(found):
        try:
            arrays = state.read(file).arrays
            limit = sum(x.size for x in arrays.values())
            gan = _doubled(about["config"], arrays, device, limit)
        except ConfigError as error:
            raise CheckpointError(f"{file}: {error}") from None
        except CheckpointError as error:
            if file == os.fspath(path):
                raise
            passed += 1
            if passed == len(found):
                raise CheckpointError(
                    f"{os.fspath(path)}: all {passed} checkpoints are damaged, the last: {error}"
                ) from None
            note(f"{error}; it is passed over")
            continue
        yield _measured(gan, samples, labels, count, batch, latents, seed)


def _data(config: Mapping[str, Any], path: str, data_dir: str | None) -> tuple[Array, Array | None]:
    """The data that settings name, if it is there and has their digest."""
    table = config.get("data", {})
    where = {key: table[key] for key in presets.SOURCE if table.get(key) is not None}
    source = where.get("source", "no data")
    if source not in data.SETS and not os.path.exists(source):
        raise DataError(f"{path}: was trained on {source}, which is not here: its data has to be given")
    found = data.read(**where | ({"data_dir": data_dir} if data_dir else {}))
    labels = None if config["generator"].get("classes") in (None, "none") else found.labels
    if table.get("sha256") not in (None, data_digest(found.samples, labels)):
        raise DataError(f"{found.name}: is not the data of {path}, which names its SHA-256")
    return found.samples, labels


def _doubled(
    config: Mapping[str, Any], arrays: Mapping[str, Array], device: str, limit: int | None = None
) -> GAN:
    """The GAN of a checkpoint, in float64."""
    networks = {who: {**config[who], "dtype": "float64"} for who in presets.PLAYERS}
    gan = build({**config, **networks}, limit, device)
    gan.game.load_state(
        {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in arrays.items()}
    )
    return gan


def _measured(
    gan: GAN, samples: Any, labels: Any, count: int, batch: int, latents: int, seed: int
) -> Spectrum:
    positive(count=count, batch=batch, latents=latents)
    game, sampler = gan.game, gan.sampler(raw=True)
    batch = max(1, batch // game.pack) * game.pack
    known = {} if sampler.classes is None else {"labels": labels, "classes": sampler.classes}
    batches = Batches(samples, batch, Stream(seed, "spectrum"), sampler.shape, sampler.points, **known)
    drawn = batches.labels_at(0)
    labels = None if drawn is None else tensor(drawn, device=game.device)
    real = tensor(sampler.seen(batches.at(0)), device=game.device)
    z = sampler.draw(Stream(seed, "spectrum latents"), batch).to(game.device)
    field = game.field(real, z, labels=labels)
    whole = field.size <= MOST
    if whole:
        eigenvalues = field.eigenvalues()
    else:
        kinds = [field.eigenvalues(count, which) for which in ("LR", "LM")]
        eigenvalues = _without_twins(np.concatenate(kinds))
    with no_grad():
        fake = forward(game.generator, z, train=False, random=None, labels=labels)
    few = None if labels is None else labels[:latents]
    values = singular_values(
        lambda z: forward(game.generator, z, train=False, random=None, labels=few),
        z[:latents],
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        condition = float(np.median(values[:, 0] / values[:, min(z.shape[1], fake[0].size) - 1]))
    return Spectrum(
        game.steps,
        field.size,
        eigenvalues,
        whole,
        stable_step(eigenvalues),
        stable_step(eigenvalues[eigenvalues.real < 0]),
        float(np.linalg.norm(field.vector())),
        dict(_ranks(game, fake, real, labels)),
        np.median(values, axis=0),
        condition,
    )


def _without_twins(found: Array) -> Array:
    """Each eigenvalue that two searches have found once, those with the largest real part first."""
    found = found[np.lexsort((-found.imag, -found.real))]
    close = 1e-6 * np.abs(found).max(initial=0.0)
    kept: list[complex] = []
    for each in found.tolist():
        if not any(abs(each - other) <= close for other in kept):
            kept.append(each)
    return np.array(kept, np.complex128)


def _ranks(
    game: Game, fake: Tensor, real: Tensor, labels: Tensor | None
) -> Iterator[tuple[str, tuple[float, float]]]:
    both = [{"samples": x.numpy()} for x in (fake, real)]
    if isinstance(game.discriminator, Sequential):
        for found, x in zip(both, (fake, real), strict=True):
            found |= features(game.discriminator, pack(x, game.pack), labels)
    for name, made in both[0].items():
        if 1 < made[0].size <= MOST_FEATURES:
            yield name, (effective_rank(made), effective_rank(both[1][name]))


# What is said of them


def lines(found: Sequence[Spectrum]) -> list[str]:
    """A table with a line for each spectrum, and one of ranks."""
    first = found[0]
    kind = "all" if first.whole else "some"
    said = [
        f"{first.parameters:,} parameters, {kind} eigenvalues of simultaneous gradient descent (not of Adam)"
    ]
    heading = ("step", "|v|", "max Re λ", "max |λ|", "expanding", "stable h", "contracting h", "condition")
    said.append("  ".join(f"{name:>13}" for name in heading))
    for each in found:
        sizes, rights = np.abs(each.eigenvalues), each.eigenvalues.real
        numbers = (each.norm, rights.max(initial=-math.inf), sizes.max(initial=0.0))
        cells = [f"{each.step:,}", *(f"{x:.4g}" for x in numbers), f"{each.expanding():,}"]
        cells += [f"{x:.4g}" for x in (each.stable_step, each.contracting_step, each.condition)]
        said.append("  ".join(f"{cell:>13}" for cell in cells))
    said += [
        "",
        "effective ranks, of generated / real",
        f"{'step':24}" + "".join(f"{x.step:>16,}" for x in found),
    ]
    for name in first.ranks:
        pairs = [f"{each.ranks[name][0]:.2f} / {each.ranks[name][1]:.2f}" for each in found]
        said.append(f"{name:24}" + "".join(f"{pair:>16}" for pair in pairs))
    return said


def draw(path: str | os.PathLike[str], found: Sequence[Spectrum]) -> None:
    """Draw the eigenvalues of up to four, the first and the last among them; needs Matplotlib, extra `plot`."""
    chosen = np.unique(np.linspace(0, len(found) - 1, min(DRAWN, len(found))).round().astype(int))
    spectrum_plot(path, {f"step {found[i].step:,}": found[i].eigenvalues for i in chosen})


def write_json(path: str | os.PathLike[str], found: Sequence[Spectrum]) -> None:
    """Write them as a list of objects, eigenvalues as pairs of real and imaginary part, infinite numbers as null."""
    with replacing(path) as file:
        file.write(json.dumps([_plain(each._asdict()) for each in found], allow_nan=False).encode())


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple, np.ndarray)):
        return [_plain(each) for each in (x.tolist() if isinstance(x, np.ndarray) else x)]
    if isinstance(x, complex):
        return [x.real, x.imag]
    return None if isinstance(x, float) and not math.isfinite(x) else x
