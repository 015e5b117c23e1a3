"""Fixtures of all tests."""

from device import card as card, device as device
