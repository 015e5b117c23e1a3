"""What a run writes down: means of its metrics, and the files of its folder."""

import math
import os
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, TextIO

from minigan import pictures
from minigan.backend import Array
from minigan.errors import ConfigError, ExtraError, NonFiniteError
from minigan.extras import needs
from minigan.report import Record, say

LOGGED = ("d_loss", "g_loss", "penalty", "d_real", "d_fake")
LOG_EVERY = 10  # steps that one record is the mean of
WEIGHTS = os.path.join("checkpoints", "final.safetensors")


class Log:
    """Means over the steps between two records."""

    def __init__(self, start: int) -> None:
        self.begun = time.perf_counter()
        self.rows: list[dict[str, float]] = []
        # When the last records were made: the speed is measured over these, so that compiling is soon forgotten.
        self.times = deque([(self.begun, start)], maxlen=20)

    def add(self, step: int, metrics: dict[str, float], last: bool) -> Record | None:
        """Take in a step; gives a record after every `LOG_EVERY` steps and after the last one."""
        self.rows.append(metrics)
        if len(self.rows) < LOG_EVERY and not last:
            return None
        means = {name: sum(row[name] for row in self.rows) / len(self.rows) for name in LOGGED}
        bad = [f"{name} is {value}" for name, value in means.items() if not math.isfinite(value)]
        if bad:
            raise NonFiniteError(
                f"training diverged between steps {step - len(self.rows)} and {step}: {', '.join(bad)}; try a lower"
                " learning rate, a penalty such as r1, or clip_norm"
            )
        self.rows.clear()
        now = time.perf_counter()
        since, first = self.times[0]
        self.times.append((now, step))
        speed = (step - first) / max(now - since, 1e-9)
        return {
            "step": step,
            **means,
            "seconds": round(now - self.begun, 3),
            "steps_per_second": round(speed, 3),
        }


def needed() -> Any:
    """The module that writes settings; `ExtraError` if that, or the one that writes pictures, is missing."""
    needs("PIL.Image", "cli")
    return needs("tomli_w", "cli")


class RunFolder:
    """A run folder that is being written."""

    def __init__(self, path: str, config: Mapping[str, Any]) -> None:
        import json

        self.as_json = json.dumps
        text = needed().dumps(config)
        self.curves = True
        try:
            needs("matplotlib.figure", "plot")
        except ExtraError as error:
            self.curves = False
            say(f"minigan: no loss curves: {error}", error=True)
        self.path = path
        try:
            os.makedirs(path, exist_ok=True)
            if os.listdir(path):
                raise ConfigError(f"{path} is not empty: runs are not overwritten, choose another folder")
            for file in ("samples/", WEIGHTS):
                os.makedirs(os.path.join(path, os.path.dirname(file)))
            with open(os.path.join(path, "config.toml"), "w", encoding="utf-8") as settings:
                settings.write(text)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be made a run folder: {error.strerror}") from None

    def __enter__(self) -> "RunFolder":
        self.metrics: TextIO = open(os.path.join(self.path, "metrics.jsonl"), "w", buffering=1)
        return self

    def __exit__(self, *error: object) -> None:
        self.metrics.close()

    def write(self, record: Record | None) -> None:
        """Append a record; line buffering hands it to the system at once."""
        if record:
            self.metrics.write(self.as_json(record) + "\n")

    def picture(self, step: int, samples: Array) -> None:
        """Write a grid of samples, (N, H, W, C) in [0, 1], as the picture of a step."""
        pictures.save_png(
            os.path.join(self.path, "samples", f"step_{step:06}.png"), pictures.image_grid(samples)
        )

    def draw_curves(self, records: list[Record]) -> None:
        """Draw the losses of the run, if Matplotlib is there."""
        if self.curves:
            pictures.loss_curves(os.path.join(self.path, "curves.png"), records)
