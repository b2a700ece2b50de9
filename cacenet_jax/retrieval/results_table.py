"""Text table of the metrics of all rankings."""

from typing import Any

from cacenet_jax.retrieval.rankings import METRICS, RANKINGS


def table(result: dict[str, Any]) -> str:
    """Format the metrics of every ranking as a text table in per cent."""
    names = [name for name in result if name.partition(",")[0] in RANKINGS]
    width = max(map(len, names)) + 1
    lines = [f"{'ranking':<{width}}" + "".join(f"{metric:>9}" for metric in METRICS)]
    for name in names:
        lines.append(f"{name:<{width}}" + "".join(f"{100 * result[name][metric]:>9.2f}" for metric in METRICS))
    lines.append(
        f"{result['num_query']} queries ({result['num_valid']} with a match), {result['num_gallery']} gallery images"
        + (f", top {result['top_k']} re-scored" if "conditional" in result else "")
        + (
            f", re-ranked in {result['rerank_seconds']:.1f} s (peak {result['peak_gib']:.1f} GiB)"
            if "rerank_seconds" in result
            else ""
        )
    )
    return "\n".join(lines)
