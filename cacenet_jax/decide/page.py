"""HTML page of a comparison: two images, their distances, the probability, and why."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from cacenet_jax.retrieval.calibration import per_cent
from cacenet_jax.visualize.document import escape, image_uri
from cacenet_jax.visualize.style import webp
from cacenet_jax.visualize.why import STYLE as WHY_STYLE
from cacenet_jax.visualize.why import Why, render

TITLE = "Do these two images show one person?"
STYLE = (
    WHY_STYLE
    + """
.pair li { width: 9rem; font-weight: 400; overflow-wrap: anywhere; } .answer { font-size: 1.15rem; }
@media (max-width: 40rem) { .pair li { width: 8rem; } }
"""
)


class Row(NamedTuple):
    """One distance of two images.

    Attributes:
        kind: name of the distance.
        distance: its value.
        probability: probability that both show one person; None if not calibrated.
        threshold: distance below which two images match at the default rate; None if not known.
    """

    kind: str
    distance: float
    probability: float | None
    threshold: float | None


def body(
    names: Sequence[str],
    pixels_2HW3: UInt8[np.ndarray, "2 H W 3"],
    rows: Sequence[Row],
    verdict: Sequence[str],
    why: Why,
) -> str:
    """Render the page below its heading `TITLE`; it needs the CSS `STYLE`.

    Args:
        names: names of the images.
        pixels_2HW3: the images at the network's input size.
        rows: distances.
        verdict: sentences that answer the question; the last one says what they hold for.
        why: drawn reasons.

    Returns:
        HTML without scripts and external references.
    """
    images = "".join(
        f'<li><img src="{_picture(pixels_HW3)}" alt="Image {letter}"><span>{letter}: {escape(name)}</span></li>'
        for letter, name, pixels_HW3 in zip("AB", names, pixels_2HW3)
    )
    answer = "".join(f'<p class="answer">{escape(sentence)}</p>\n' for sentence in verdict[:-1])
    return f"""<ol class="pair">{images}</ol>
{answer}<p>{escape(verdict[-1])}</p>
{_table(rows)}
<h2>Why</h2>
{render(why)}"""


def _table(rows: Sequence[Row]) -> str:
    cells = "\n".join(
        f"<tr><th>{row.kind}</th><td>{row.distance:z.4f}</td>"
        f"<td>{'–' if row.probability is None else escape(per_cent(row.probability))}</td>"
        f"<td>{'–' if row.threshold is None else f'{row.threshold:.4f}'}</td></tr>"
        for row in rows
    )
    return (
        '<div class="wide"><table><thead><tr><th>distance</th><th>value</th><th>probability</th><th>match below</th></tr>'
        f"</thead><tbody>\n{cells}\n</tbody></table></div>\n"
        '<p class="note">Smaller is more alike. The individual distance compares the embeddings, the pair distance looks '
        "at both images together, the mixed distance is their weighted mean. The last column is the threshold for one "
        "false match in 100 pairs of different people.</p>"
    )


def _picture(pixels_HW3: UInt8[np.ndarray, "H W 3"]) -> str:
    return image_uri(webp(pixels_HW3))
