"""Networks: the module tree, initialisers and layers."""

from minigan.nn import init
from minigan.nn.attention import Attention, ConvAttention, ConvEmbedding, SelfAttention2d
from minigan.nn.blocks import ConvTransformerBlock, DiscriminatorBlock, GeneratorBlock, TransformerBlock
from minigan.nn.conv import AvgPool, Conv, ConvTranspose, GlobalPool, MaxPool, PixelShuffle, Upsample
from minigan.nn.labels import ConcatLabels, Embedding, Projection
from minigan.nn.layers import Activation, Dense, Dropout, Flatten, Maxout, Reshape, Sequential
from minigan.nn.module import Conditional, Module, Weighted
from minigan.nn.norm import (
    BatchNorm,
    ConditionalBatchNorm,
    InstanceNorm,
    LayerNorm,
    MinibatchStdDev,
    PixelNorm,
    SpectralNorm,
)

__all__ = [
    "Activation",
    "Attention",
    "AvgPool",
    "BatchNorm",
    "ConcatLabels",
    "Conditional",
    "ConditionalBatchNorm",
    "Conv",
    "ConvAttention",
    "ConvEmbedding",
    "ConvTransformerBlock",
    "ConvTranspose",
    "Dense",
    "DiscriminatorBlock",
    "Dropout",
    "Embedding",
    "Flatten",
    "GeneratorBlock",
    "GlobalPool",
    "InstanceNorm",
    "LayerNorm",
    "MaxPool",
    "Maxout",
    "MinibatchStdDev",
    "Module",
    "PixelNorm",
    "PixelShuffle",
    "Projection",
    "Reshape",
    "SelfAttention2d",
    "Sequential",
    "SpectralNorm",
    "TransformerBlock",
    "Upsample",
    "Weighted",
    "init",
]
