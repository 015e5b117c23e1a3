"""The one family of errors. Each is also the built-in error a caller would expect, so both can be caught."""


class MiniganError(Exception):
    """Base of every error that minigan raises on purpose."""


class ShapeError(MiniganError, ValueError):
    """Shapes, axes or indices do not fit; the message has the numbers."""


class DTypeError(MiniganError, TypeError):
    """A dtype an operation does not take; the message names the operation and the cast."""


class GraphError(MiniganError, RuntimeError):
    """A derivative was asked for that the recorded graph cannot give, such as of a tensor changed since."""


class NonFiniteError(MiniganError, FloatingPointError):
    """A loss or gradient is NaN or infinite."""


class CollapseError(MiniganError, RuntimeError):
    """A generator makes only a few kinds of samples, in a run that was to stop then; the message has the numbers."""


class CheckpointError(MiniganError, OSError):
    """A file of weights cannot be written, read or trusted; the message has the path and the reason."""


class DataError(MiniganError, ValueError):
    """Data that is damaged or does not fit the network."""


class ConfigError(MiniganError, ValueError):
    """A setting that does not exist or lies outside its range."""


class DeviceError(MiniganError, RuntimeError):
    """A device that is not there, or arrays on two devices in one operation."""


class ExtraError(MiniganError, ImportError):
    """An optional dependency is missing; the message names the extra that installs it."""
