"""Peak performance of a device, and floating-point operations and memory of JAX functions."""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import Timed, interleaved

# Dense peaks of the vendors' data sheets, in TFLOP/s, by a part of the device's name, more specific names first.
# float32 products run as TF32 on these GPUs unless jax_default_matmul_precision says otherwise.
NOMINAL = (
    ("H100 PCIe", {"bfloat16": 756, "float32": 378}),
    ("H100", {"bfloat16": 989, "float32": 495}),
    ("H200", {"bfloat16": 989, "float32": 495}),
    ("A100", {"bfloat16": 312, "float32": 156}),
)


def nominal_peak(kind: str, dtype: str) -> float | None:
    """Return the FLOP/s of a device by its data sheet, or None if unknown."""
    for name, peaks in NOMINAL:
        if name.replace(" ", "").lower() in kind.replace(" ", "").lower():
            return 1e12 * peaks[dtype] if dtype in peaks else None
    return None


def measured_peak(dtype: str, size: int = 0, repeats: int = 5) -> float:
    """Measure the FLOP/s of a large product of random square matrices, the best of several runs."""
    product, flops = large_product(dtype, size)
    return flops / interleaved({"product": product}, jax.block_until_ready, repeats=repeats)["product"].low


def large_product(dtype: str, size: int = 0) -> tuple[Callable[[], jax.Array], float]:
    """Return a product of random square matrices that saturates the device, and its number of operations."""
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    left, right = jax.random.normal(jax.random.key(0), (2, size, size), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)
    return lambda: product(left, right), 2.0 * size**3


def cost_flops(compiled: Any) -> float | None:
    """Return XLA's operation count of a compiled function, or None if the backend has none."""
    try:
        cost = compiled.cost_analysis()
    except Exception:
        return None
    cost = cost[0] if isinstance(cost, list) else cost
    return (cost or {}).get("flops")


def memory_bytes(compiled: Any) -> int | None:
    """Return the bytes of arguments, results and temporaries of a compiled function, or None if unknown."""
    try:
        stats = compiled.memory_analysis()
        total = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
        return total - stats.alias_size_in_bytes
    except Exception:
        return None


def matrix_flops(function: Callable[..., Any], *args: Any) -> float:
    """Count the operations of matrix products and convolutions in a function's trace, 2 per multiply-add."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, equation.outvars[0].aval
        if name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            total += 2 * math.prod(out.shape) * math.prod(equation.invars[0].aval.shape[i] for i in contract)
        elif name == "conv_general_dilated":
            kernel, spec = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
            total += 2 * math.prod(out.shape) * math.prod(kernel) / kernel[spec[0]]
        repeats = equation.params.get("length", 1) if name == "scan" else 1
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                if hasattr(inner, "jaxpr"):
                    inner = inner.jaxpr
                if hasattr(inner, "eqns"):
                    total += repeats * _count(inner)
    return total


def compiled(function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()) -> Any:
    """Compile a function for the shapes of its arguments; the result can be called and analysed."""
    return jax.jit(function, donate_argnums=donate).lower(*args).compile()


def time_all(functions: dict[str, Callable[[], Any]], repeats: int, limit_s: float = float("inf")) -> dict[str, Timed]:
    """Run `interleaved` on JAX's device; calls are queued except on CPUs, which do not execute in order."""
    queue = jax.default_backend() != "cpu"
    return interleaved(functions, jax.block_until_ready, repeats=repeats, queue=queue, limit_s=limit_s)


@functools.cache
def machine() -> dict[str, Any]:
    """Describe the machine, for reports."""
    first = jax.devices()[0]
    return {"backend": first.platform, "device": first.device_kind, "devices": len(jax.devices()),
            "cpus": os.cpu_count(), "jax": jax.__version__}  # fmt: skip


def machine_line() -> str:
    """Format `machine` as text."""
    info = machine()
    return (f"{info['devices']} x {info['device']} ({info['backend']}), {info['cpus']} CPU cores, "
            f"jax {info['jax']}")  # fmt: skip
