"""An index of photographs on disk: built from a folder or a manifest, kept up to date, and searched.

Read table.py (rows of photographs in LanceDB), index.py (`Index`), update.py (rows made equal to the photographs that
`data.photographs` lists), search.py (one query), groups.py (who is who by distances), marks.py (who is who by
what someone marked). Needs the extra [index].
"""

from cacenet_jax.index.groups import Groups
from cacenet_jax.index.index import Index
from cacenet_jax.index.opening import open_index
from cacenet_jax.index.search import SearchMatch, SearchResult

__all__ = ["Groups", "Index", "SearchMatch", "SearchResult", "open_index"]
