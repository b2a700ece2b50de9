"""What a device can do at best, and how many floating-point operations a function has: JAX's side of the benchmarks."""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import Timed, interleaved

# Dense peaks of the vendors' data sheets, in TFLOP/s, by a part of the device's name, more special names first.
# float32 products run as TF32 on these GPUs unless jax_default_matmul_precision says otherwise.
NOMINAL = (
    ("H100 PCIe", {"bfloat16": 756, "float32": 378}),
    ("H100", {"bfloat16": 989, "float32": 495}),
    ("H200", {"bfloat16": 989, "float32": 495}),
    ("A100", {"bfloat16": 312, "float32": 156}),
)


def nominal_peak(kind: str, dtype: str) -> float | None:
    """FLOP/s of a known device by its data sheet; None for others."""
    for name, peaks in NOMINAL:
        if name.replace(" ", "").lower() in kind.replace(" ", "").lower():
            return 1e12 * peaks[dtype] if dtype in peaks else None
    return None


def measured_peak(dtype: str, size: int = 0, repeats: int = 5) -> float:
    """FLOP/s of one large product of random square matrices, the best of several runs."""
    product, flops = large_product(dtype, size)
    return flops / interleaved({"product": product}, jax.block_until_ready, repeats=repeats)["product"].low


def large_product(dtype: str, size: int = 0) -> tuple[Callable[[], jax.Array], float]:
    """A product of random square matrices that fills the device, and its operations."""
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    left, right = jax.random.normal(jax.random.key(0), (2, size, size), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)
    return lambda: product(left, right), 2.0 * size**3


def cost_flops(compiled: Any) -> float | None:
    """What XLA counts in a compiled function; None where the backend does not count."""
    try:
        cost = compiled.cost_analysis()
    except Exception:
        return None
    cost = cost[0] if isinstance(cost, list) else cost
    return (cost or {}).get("flops")


def memory_bytes(compiled: Any) -> int | None:
    """Bytes of arguments, results and temporaries of a compiled function; None where XLA does not say."""
    try:
        found = compiled.memory_analysis()
        total = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
        return total - found.alias_size_in_bytes
    except Exception:
        return None


def matrix_flops(function: Callable[..., Any], *args: Any) -> float:
    """Operations of the matrix products and convolutions of a function, 2 for a multiply-add, by its trace."""
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
    """A function compiled for the shapes of its arguments; it can be called and asked for its cost."""
    return jax.jit(function, donate_argnums=donate).lower(*args).compile()


def time_all(functions: dict[str, Callable[[], Any]], repeats: int, limit_s: float = float("inf")) -> dict[str, Timed]:
    """`interleaved` on JAX's device; calls are queued where the device works in order, which a CPU does not."""
    queue = jax.default_backend() != "cpu"
    return interleaved(functions, jax.block_until_ready, repeats=repeats, queue=queue, limit_s=limit_s)


@functools.cache
def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    first = jax.devices()[0]
    return {"backend": first.platform, "device": first.device_kind, "devices": len(jax.devices()),
            "cpus": os.cpu_count(), "jax": jax.__version__}  # fmt: skip


def machine_line() -> str:
    """`machine` in words."""
    found = machine()
    return (f"{found['devices']} x {found['device']} ({found['backend']}), {found['cpus']} CPU cores, "
            f"jax {found['jax']}")  # fmt: skip
