"""Networks by name: pairs of a generator and a discriminator.

All can be conditional: with `classes`, a generator takes the label of each sample as further numbers of its latent, 1
for the class and 0 for the others (Mirza and Osindero 2014), and a discriminator ends in a projection (Miyato and
Koyama 2018). The convolutional ones make images (H, W, C) with H and W multiples of 4 and values in (-1, 1).
"""

from minigan.models.conv import (
    dcgan_discriminator,
    dcgan_generator,
    sagan_discriminator,
    sagan_generator,
)
from minigan.models.mlp import mlp_discriminator, mlp_generator
from minigan.models.networks import Discriminator, Generator
from minigan.models.residual import (
    r3gan_discriminator,
    r3gan_generator,
    resnet_discriminator,
    resnet_generator,
)
from minigan.models.transformer import cvtgan_discriminator, cvtgan_generator

__all__ = [
    "Discriminator",
    "Generator",
    "cvtgan_discriminator",
    "cvtgan_generator",
    "dcgan_discriminator",
    "dcgan_generator",
    "mlp_discriminator",
    "mlp_generator",
    "r3gan_discriminator",
    "r3gan_generator",
    "resnet_discriminator",
    "resnet_generator",
    "sagan_discriminator",
    "sagan_generator",
]
