"""--mode=group: the photographs of an index grouped by person."""

from pathlib import Path

from ml_collections import ConfigDict

from cacenet_jax import retriever
from cacenet_jax.find.flags import need
from cacenet_jax.find.manifest import manifest
from cacenet_jax.find.pages import group_page
from cacenet_jax.index.groups import Groups
from cacenet_jax.index.opening import open_index
from cacenet_jax.run.workdir import check_writable, write_file


def group(
    config: ConfigDict | None, workdir: str, place: str | None, where: str | None, cut: float, output: str | None
) -> Groups:
    """Group the photographs of an index by person, and print how many people there are.

    Args:
        config: config of the run in the workdir; None for an export or a published checkpoint.
        workdir: workdir, export folder or published checkpoint.
        place: folder of the index.
        where: filter, an SQL condition on the columns.
        cut: distance at which groups are cut, see `Index.groups`.
        output: folder for groups.html, and groups.csv, a manifest to correct and to train on; None writes nothing.

    Raises:
        UserError: a flag is missing, or see `Index.groups`.
    """
    need("group", index=place)
    if output is not None:
        check_writable(Path(output).expanduser())
    index = open_index(retriever.load(workdir, config=config), str(place))
    groups = index.groups(where, cut)
    print(groups, flush=True)
    if output is None:
        print("--output=DIR writes groups.csv, a manifest to correct and to train on", flush=True)
        return groups
    file = Path(output).expanduser() / "groups.csv"
    write_file(file, manifest(index, dict(zip(groups.ids, map(str, groups.labels.tolist())))))
    write_file(file.with_suffix(".html"), group_page(groups, index))
    print(f"{file.with_suffix('.html')}: to look through", flush=True)
    print(f"{file}: a row for each photograph; correct the column identity", flush=True)
    return groups
