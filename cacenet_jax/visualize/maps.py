"""Figure 4: conditional maps of a query given different gallery images.

Legend: H x W pixels, h x w positions of a map, G gallery images.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cacenet_jax.visualize.style import COLOURS, FONT, MARKS, WIDTH, Sheet

NORMS, DIFFERENCES = "viridis", "PuOr"  # both colour-blind safe
_OPACITY = 0.7


def overlay(
    picture_HW3: UInt8[np.ndarray, "H W 3"], value_hw: Float[np.ndarray, "h w"], scale: Normalize, colours: str
) -> UInt8[np.ndarray, "H W 3"]:
    """Overlay a colour-coded map on the image, which is converted to grey and contrast-stretched.

    Map values are interpolated bilinearly.
    """
    height, width = picture_HW3.shape[:2]
    large_HW = cv2.resize(value_hw.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    colour_HW3 = colormaps[colours](scale(large_HW))[..., :3] * 255
    grey_HW = cv2.cvtColor(picture_HW3, cv2.COLOR_RGB2GRAY).astype(float)
    dark, light = np.percentile(grey_HW, (1, 99))
    stretched_HW1 = 255 * ((grey_HW - dark) / max(light - dark, 1)).clip(0, 1)[..., None]
    return np.rint(_OPACITY * colour_HW3 + (1 - _OPACITY) * stretched_HW1).astype(np.uint8)


def figure(
    query_HW3: UInt8[np.ndarray, "H W 3"],
    own_hw: Float[np.ndarray, "h w"],
    gallery_GHW3: UInt8[np.ndarray, "G H W 3"],
    given_Ghw: Float[np.ndarray, "G h w"],
    right_G: Bool[np.ndarray, "G"],
    captions: Sequence[str],
) -> Figure:
    """Draw a query's own map, its conditional maps given each gallery image, and their deviations from the mean map.

    The mean is over the conditional maps. All norms share one colour scale, and all deviations share another.

    Args:
        query_HW3: the query.
        own_hw: L2 norm of each position of the query's own map.
        gallery_GHW3: gallery images.
        given_Ghw: L2 norm of each position of the query's conditional map given each gallery image.
        right_G: True for gallery images of the query's identity.
        captions: text for each gallery image, for example its ranks.

    Source: paper, figure 4 and section 4.3.1.
    """
    count = len(gallery_GHW3)
    label, gap, bar = 0.42, 0.12, 0.75
    wide = min((WIDTH - label - bar) / (count + 1) - gap, 1.0)
    tall = wide * query_HW3.shape[0] / query_HW3.shape[1]
    top, step = 0.48, tall + gap
    sheet = Sheet(label + (count + 1) * (wide + gap) + bar, top + 3 * step)
    place = lambda column, row: (label + column * (wide + gap), top + row * step, wide, tall)
    mean_hw = given_Ghw.mean(axis=0)
    away_Ghw = given_Ghw - mean_hw
    # Do not magnify rounding errors if the conditional map is the same for every gallery image.
    most = max(float(np.abs(away_Ghw).max()), 1e-4 * float(given_Ghw.max()), 1e-12)
    norms = Normalize(float(min(own_hw.min(), given_Ghw.min())), float(max(own_hw.max(), given_Ghw.max())))
    differences = Normalize(-most, most)

    for row, words in enumerate(("images", "norm of the map", "difference to\nthe mean")):
        sheet.text(
            label / 2, top + row * step + tall / 2, words, rotation="vertical", va="center", multialignment="center"
        )
    sheet.text(label + wide / 2, 0.19, "query", size=FONT + 1, weight="bold")
    sheet.text(label + wide / 2, 0.37, "its own map")
    sheet.image(query_HW3, *place(0, 0))
    sheet.image(overlay(query_HW3, own_hw, norms, NORMS), *place(0, 1))
    for g, (picture_HW3, right) in enumerate(zip(gallery_GHW3, right_G.tolist())):
        middle = place(g + 1, 0)[0] + wide / 2
        sheet.text(
            middle, 0.19, f"{MARKS[right]} {'same' if right else 'other'}", COLOURS[right], FONT + 1, weight="bold"
        )
        sheet.text(middle, 0.37, captions[g])
        sheet.image(picture_HW3, *place(g + 1, 0), right)
        sheet.image(overlay(query_HW3, given_Ghw[g], norms, NORMS), *place(g + 1, 1))
        sheet.image(overlay(query_HW3, away_Ghw[g], differences, DIFFERENCES), *place(g + 1, 2))
    for row, (scale, colours) in enumerate(((norms, NORMS), (differences, DIFFERENCES)), start=1):
        left, above, _, _ = place(count + 1, row)
        axes = sheet.axes(left, above, 0.1, tall)
        drawn = sheet.figure.colorbar(ScalarMappable(scale, colours), cax=axes, ticks=MaxNLocator(6), format="%.3g")
        drawn.ax.tick_params(labelsize=FONT)
    return sheet.figure
