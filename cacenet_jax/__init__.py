"""CACE-Net person re-identification in JAX.

    import cacenet_jax as cace

    reid = cace.load("workdirs/synthetic")
    embeddings = reid.embed(["a.jpg", "b.jpg"])
    print(reid.rank("query.jpg", ["a.jpg", "b.jpg"])[0])

Public names are imported lazily to keep `import cacenet_jax` fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cacenet_jax.retrieval.metrics import evaluate_ranking
    from cacenet_jax.retriever import Retriever, load

__version__ = "0.1.0"
__all__ = ["Retriever", "__version__", "evaluate_ranking", "load"]

_MODULES = {
    "Retriever": "cacenet_jax.retriever",
    "load": "cacenet_jax.retriever",
    "evaluate_ranking": "cacenet_jax.retrieval.metrics",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
