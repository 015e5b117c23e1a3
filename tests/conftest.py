"""Fixtures of all tests."""

from device import device as device
