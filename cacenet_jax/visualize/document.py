"""Skeleton of the HTML pages: one file that refers to nothing outside itself, with the style that all pages share."""

import base64
import html

from cacenet_jax.visualize.style import RIGHT, WRONG, webp

STYLE = f"""
:root {{ color-scheme: light; }}
body {{ margin: 0 auto; max-width: 62rem; padding: 0 1rem 3rem; background: #fff; color: #222;
  font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; }} h2 {{ font-size: 1.2rem; margin: 0 0 .25rem; }}
h3 {{ font-size: 1rem; margin: 1.25rem 0 .25rem; }} p {{ max-width: 46rem; margin: .5rem 0; }}
section {{ border-top: 1px solid #bbb; padding-top: 1.25rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; }} th, td {{ padding: .2rem .7rem; text-align: right; }}
th:first-child {{ text-align: left; }} thead {{ border-bottom: 1px solid #888; }}
.wide {{ overflow-x: auto; }} .wide img {{ display: block; width: 100%; height: auto; min-width: 42rem; }}
.fitted img {{ display: block; max-width: 100%; height: auto; }}
figure {{ margin: 1rem 0; max-width: 58rem; }} figcaption, .note {{ color: #444; font-size: .9rem; max-width: 46rem; }}
ol {{ display: flex; flex-wrap: wrap; gap: .5rem; list-style: none; margin: .25rem 0; padding: 0; }}
li {{ width: 4.4rem; text-align: center; font-weight: 600; font-size: .9rem; }}
li small {{ display: block; color: #444; font-weight: 400; line-height: 1.25; overflow-wrap: anywhere; }}
.names td, .names th {{ vertical-align: top; }} .names th {{ font-weight: 400; overflow-wrap: anywhere; min-width: 5rem; }}
.note, figcaption, h2 {{ overflow-wrap: anywhere; }} ol.two li {{ width: 9rem; }}
li img, .query img {{ display: block; width: 100%; height: auto; box-sizing: border-box; }}
.lists {{ display: flex; gap: 1.5rem; }} @media (max-width: 40rem) {{ .lists {{ display: block; }} }}
.query {{ width: 4.4rem; flex: none; text-align: center; font-size: .9rem; }}
@media (max-width: 30rem) {{ th, td {{ padding: .2rem; font-size: .8rem; }}
  .names th, .names td {{ padding: .2rem .15rem; font-size: .7rem; }} .names th {{ min-width: 3.5rem; }}
  .names thead th {{ min-width: 0; overflow-wrap: normal; }} }}
.right {{ color: #00664a; }} .right img {{ border: 3px solid {RIGHT}; }}
.wrong {{ color: #a34700; }} .wrong img {{ border: 3px dashed {WRONG}; }}
"""


def document(title: str, body: str, style: str = "", sources: str = "data:") -> str:
    """Render a page.

    Args:
        title: title and heading, as plain text.
        body: HTML below the heading.
        style: CSS of this page alone.
        sources: where images may come from, for the Content-Security-Policy.

    Returns:
        HTML without scripts and external references.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src {sources}; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""


def image_figure(data: bytes, alt: str, caption: str, narrow: bytes | None = None) -> str:
    """Render a figure with a caption.

    Args:
        data: the figure as PNG.
        alt: alternative text, as plain text.
        caption: caption, as plain text.
        narrow: the figure as PNG for a narrow screen, where a figure without one scrolls.
    """
    image, source, kind = f'<img src="{image_uri(webp(data))}" alt="{escape(alt)}">', "", "wide"
    if narrow is not None:
        source, kind = f'<source media="(max-width: 40rem)" srcset="{image_uri(webp(narrow))}">', "fitted"
    picture = f'<div class="{kind}"><picture>{source}{image}</picture></div>'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def escape(text: str) -> str:
    """Escape text for HTML. Bytes of a file name that are not UTF-8, which could not be written, become '?'."""
    return html.escape(text.encode("utf-8", "replace").decode())


def image_uri(data: bytes) -> str:
    """Return the data URI of a WebP image."""
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"
