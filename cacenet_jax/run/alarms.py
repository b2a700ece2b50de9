"""Warnings about dead parts of a network, with the step at which they appear."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from cacenet_jax.models.pair_stages import Alarm
from cacenet_jax.train_step import pair_weights

_DEAD_WEIGHTS = "dead_weights"


class Watch:
    """Comparison of training metrics with the alarms of a network. Each kind of warning is given once."""

    def __init__(self, alarms: Iterable[Alarm]):
        """Watch for `alarms` (`CACENet.alarms`) and for dead weights."""
        self._alarms = list(alarms)
        self._is_dead_reported = False

    def check(self, step: int, metrics: Mapping[str, float], params: Callable[[], Any]) -> None:
        """Log a warning for each alarm that the metrics of a step raise for the first time.

        Args:
            step: number of the step.
            metrics: metrics of the step.
            params: function that returns the parameters, called only to name dead weights.
        """
        for alarm in [x for x in self._alarms if metrics.get(x.metric, np.inf) <= x.at_most]:
            self._alarms.remove(alarm)
            value = metrics[alarm.metric]
            logging.warning(
                "step %d: %s is %.3g: %s; if it stays so in metrics.jsonl, %s",
                step, alarm.metric, value, alarm.meaning, alarm.remedy,
            )  # fmt: skip
        if metrics.get(_DEAD_WEIGHTS, 0) and not self._is_dead_reported:
            self._is_dead_reported = True
            names = _all_zero(params()) or ["not zero any more"]
            logging.warning(
                "step %d: %d weight(s) of the pair stage are all zero (%s), so they neither act nor learn; lower "
                "config.optim.learning_rate or config.optim.weight_decay, or start from other weights",
                step, int(metrics[_DEAD_WEIGHTS]), ", ".join(names),
            )  # fmt: skip


def _all_zero(params: Any) -> list[str]:
    """Return the names of the pair stage's weights that are all zero."""
    return [name for name, x in pair_weights(params).items() if not _first_copy(x).any()]


def _first_copy(x: Any) -> np.ndarray:
    return np.asarray(x.addressable_data(0) if isinstance(x, jax.Array) else x)
