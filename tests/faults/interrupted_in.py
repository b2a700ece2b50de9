"""cacenet_jax.main that sends itself Ctrl-C at step 3 from a place where Python swallows exceptions: the first argument.

destructor: in __del__, called by the garbage collection; gc callback: at the start of a garbage collection; jax callback: in
a function that a compiled program calls.
"""

import gc
import os
import signal
import sys

import jax
import jax.numpy as jnp

from cacenet_jax.main import main
from cacenet_jax.run import metric_writer

STEP = 3


def interrupt() -> None:
    """Let Python handle the signal here, as it does between any two instructions."""
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass


class Interrupting:
    def __init__(self):
        self.cycle = self

    def __del__(self):
        interrupt()


def in_destructor() -> None:
    Interrupting()
    gc.collect()


def in_gc_callback() -> None:
    def callback(phase, info) -> None:
        gc.callbacks.remove(callback)
        interrupt()

    gc.callbacks.append(callback)
    gc.collect()


def in_jax_callback() -> None:
    jax.jit(lambda x: jax.debug.callback(lambda y: interrupt(), x))(jnp.zeros(()))
    jax.effects_barrier()


if __name__ == "__main__":
    send = {"destructor": in_destructor, "gc callback": in_gc_callback, "jax callback": in_jax_callback}[
        sys.argv.pop(1)
    ]
    write = metric_writer.MetricWriter.write

    def write_and_send(self, step, metrics) -> None:
        write(self, step, metrics)
        if step == STEP:
            send()

    metric_writer.MetricWriter.write = write_and_send
    main()
