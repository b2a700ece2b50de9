"""--mode=index: an index of photographs, made or brought up to date."""

from ml_collections import ConfigDict

from cacenet_jax import retriever
from cacenet_jax.distributed import processes
from cacenet_jax.errors import printable
from cacenet_jax.find.flags import need
from cacenet_jax.index.opening import make_index
from cacenet_jax.index.update import Changes

_SHOWN = 10  # images that are left out


def update(
    config: ConfigDict | None, workdir: str, images: str | None, place: str | None, approximate: bool
) -> Changes:
    """Make an index of photographs or bring it up to date, and print what changed.

    Args:
        config: config of the run in the workdir; None for an export or a published checkpoint.
        workdir: workdir, export folder or published checkpoint.
        images: folder or manifest.
        place: folder of the index.
        approximate: also build an approximate index of the embeddings, and print its recall.

    Raises:
        UserError: a flag is missing, or see `Index.update`.
    """
    need("index", several=True, images=images, index=place)
    index, changes = make_index(retriever.load(workdir, config=config), str(images), str(place))
    if not processes.is_writer():
        return changes
    for name, reason in changes.broken[:_SHOWN]:
        print(f"left out {printable(name)}: {reason}", flush=True)
    if len(changes.broken) > _SHOWN:
        print(f"and {len(changes.broken) - _SHOWN} more", flush=True)
    for note in changes.notes:
        print(note, flush=True)
    counts = ", ".join(f"{getattr(changes, name):,} {name}" for name in ("added", "changed", "removed", "unchanged"))
    left_out = f", {len(changes.broken):,} left out" if changes.broken else ""
    done = changes.added + changes.changed
    rate = f" ({done / changes.seconds:.0f} images/s)" if done else ""
    print(f"{place}: {len(index):,} images; {counts}{left_out}; {changes.seconds:.1f} s{rate}", flush=True)
    if approximate:
        print(f"approximate index: finds {100 * index.build_vector_index():.1f} % of the 100 nearest", flush=True)
    return changes
