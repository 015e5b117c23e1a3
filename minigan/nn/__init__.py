"""Networks: the module tree, initialisers and layers."""

from minigan.nn import init
from minigan.nn.layers import Activation, Dense, Dropout, Flatten, Reshape, Sequential
from minigan.nn.module import Module

__all__ = ["Activation", "Dense", "Dropout", "Flatten", "Module", "Reshape", "Sequential", "init"]
