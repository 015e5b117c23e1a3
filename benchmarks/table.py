"""All scenarios by name."""

from benchmarks.convolutional import SHAPES, ConvGan, ConvLayer
from benchmarks.scenarios import Chain, Gan

Scenario = Gan | Chain | ConvGan | ConvLayer

SCENARIOS: tuple[Scenario, ...] = (
    Gan("article-16", "the article's step at batch 16", batch=16),
    Gan("article-64", "the article's step at batch 64"),
    Gan("article-256", "the article's step at batch 256", batch=256),
    Gan("article-1024", "the article's step at batch 1024", batch=1024),
    Gan("wgan-gp", "WGAN-GP, λ = 10, batch 64", loss="wasserstein", penalty="wgan_gp"),
    Gan("r1", "the article's step with R1, γ = 10, batch 64", penalty="r1"),
    Gan("ring", "points in the plane, 2 x 128, batch 256", batch=256, latent=2, features=2, output=""),
    Gan("width-32", "hidden layers of 32, batch 64", hidden=(32, 32)),
    Gan("width-512", "hidden layers of 512, batch 64", hidden=(512, 512)),
    Gan("width-1024", "hidden layers of 1024, batch 64", hidden=(1024, 1024)),
    ConvGan("dcgan-64", "DCGAN on 28 x 28 pixels, batch 64"),
    ConvGan("dcgan-128", "DCGAN on 28 x 28 pixels, batch 128", batch=128),
    ConvGan("dcgan-r1", "DCGAN with R1, γ = 10, batch 64", penalty="r1"),
    ConvGan("sagan", "DCGAN with self-attention at 14 x 14, batch 64", model="sagan"),
    ConvGan("cvt", "convolutional transformers at 7 x 7, batch 64", model="cvt"),
    *(ConvLayer(shape, wanted) for shape in SHAPES for wanted in ("y", "dx", "dw")),
    Chain("ops", "1,000 small operations and their gradient, not compiled", links=333),
    Chain("deep", "100,000 small operations and their gradient, not compiled", links=33_333),
    Gan("busy", "article-64, with and without another process on one core", measure="busy"),
    Gan("start", "article-64, from the start of a process to the first step", measure="start"),
)
# At sizes that a CPU is not asked for unless they are named.
LARGE: tuple[Scenario, ...] = (
    Gan("article-4096", "the article's step at batch 4096", batch=4096),
    ConvGan("dcgan-256", "DCGAN on 28 x 28 pixels, batch 256", batch=256),
    ConvGan("dcgan-1024", "DCGAN on 28 x 28 pixels, batch 1024", batch=1024),
)
TABLE = {scenario.name: scenario for scenario in (*SCENARIOS, *LARGE)}
DEFAULTS = {  # what is measured on a device if nothing is named
    "cpu": [scenario.name for scenario in SCENARIOS],
    "cuda": [
        *("article-64", "article-256", "article-4096"),
        *("dcgan-64", "dcgan-256", "dcgan-1024"),
        "wgan-gp",
    ],
}
GROUPS = {
    "article": ["article-16", "article-64", "article-256", "article-1024"],
    "penalties": ["wgan-gp", "r1"],
    "batch": ["article-16", "article-64", "article-256", "article-1024"],
    "width": ["width-32", "article-64", "width-512", "width-1024"],
    "tape": ["ops", "deep"],
    "images": [scenario.name for scenario in SCENARIOS if isinstance(scenario, ConvGan)],
    "conv-layers": [name for name, scenario in TABLE.items() if isinstance(scenario, ConvLayer)],
}


def find(name: str, tiny: bool) -> Scenario:
    """The scenario of that name, at its own size or a tiny one."""
    return TABLE[name].tiny() if tiny else TABLE[name]
