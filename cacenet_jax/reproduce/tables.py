"""Tables of the paper: rows, corresponding configs, and published numbers. Does not import jax."""

from collections.abc import Iterable
from typing import NamedTuple

from cacenet_jax.errors import UserError
from cacenet_jax.reproduce.variants import FULL, RECIPES, ROWS, registered_rows

SWEEP = "topk"  # section 3.5: number of re-scored images, not tabulated in the paper
SWEEP_TITLE = "Section 3.5: how many images of a query are re-scored, and what it costs"
SWEEP_TOP_K = (0, 10, 20, 50, 100, 200)
SWEEP_WHOLE = 1000  # largest gallery that is also re-scored completely
RANKINGS = ("individual", "conditional", "mixed")


class Score(NamedTuple):
    """Scores in per cent, as printed in the paper.

    Attributes:
        mAP: mean average precision.
        rank1: rank-1 rate.
    """

    mAP: float
    rank1: float


class Row(NamedTuple):
    """Row of a table.

    Attributes:
        label: the paper's row label, abbreviated.
        paper: the paper's numbers, or None if the row is not in the paper.
        row: name of the variant to apply to the command line's config (`cacenet_jax.reproduce.variants.rows`).
        config: name of the config file to use instead, from the same folder, for rows on different data sets.
        note: remark printed below the table.
    """

    label: str
    paper: Score | None
    row: str = "full"
    config: str | None = None
    note: str = ""


class Table(NamedTuple):
    """Table of the paper.

    Attributes:
        number: value of --table that selects it.
        title: title of the table.
        data: data set used in the paper.
        rows: rows of the table. If all use the same data set, the first row is the baseline for the others.
    """

    number: str
    title: str
    data: str
    rows: tuple[Row, ...]

    @property
    def one_data_set(self) -> bool:
        """True if all rows use the same data set and can be compared."""
        return self.rows[0].config is None

    @property
    def name(self) -> str:
        """Stem of the table's file names."""
        return f"table_{self.number}"


_TOP_K = "the paper calls the row Top-K Similarity and describes K = 1; its number stands beside both"
_NONE = "the individual baseline, as in the paper: both rows have its numbers of table 1"

TABLES: dict[str, Table] = {
    "1": Table("1", "The stages of CACE-Net", "DukeMTMC-reID", (
        Row("Individual feature embedding", Score(77.03, 87.84), "individual"),
        Row("+ visual clue alignment", Score(78.29, 89.68), "clues"),
        Row("+ individual GCN", Score(79.19, 89.77), "individual_gcn"),
        Row("+ pairwise GCN (normal)", Score(78.58, 89.77), "normal"),
        Row("+ pairwise GCN (discrepancy-based)", Score(81.29, 90.89), "discrepancy"),
    )),
    "2": Table("2", "Alignment strategies", "DukeMTMC-reID", (
        Row("No alignment (baseline)", Score(77.03, 87.84), "individual", note=_NONE),
        Row("Part alignment", Score(78.39, 89.45), "part"),
        Row("Top-1 similarity", Score(79.30, 89.72), "top1", note=_TOP_K),
        Row("Top-5 similarity", Score(79.30, 89.72), "topk"),
        Row("Fully connected", Score(80.19, 89.90), "full_connect"),
        Row("Semantic alignment", Score(80.64, 90.08), "semantic"),
        Row("Correspondence attention", Score(81.29, 90.89), "attention"),
    )),
    "3": Table("3", "Alpha of the mix-up identity loss", "Market-1501", (
        Row("Cross entropy (baseline)", Score(88.57, 94.74), "alpha_1.0"),
        Row("Mix-up, alpha 0.95", Score(89.44, 95.75), "alpha_0.95"),
        Row("Mix-up, alpha 0.9", Score(90.30, 95.96), "alpha_0.9"),
        Row("Mix-up, alpha 0.8", Score(89.56, 95.84), "alpha_0.8"),
        Row("Mix-up, alpha 0.7", Score(88.72, 95.43), "alpha_0.7"),
        Row("Mix-up, alpha 0.6", Score(85.67, 94.83), "alpha_0.6"),
    )),
    "4": Table("4", "CACE-Net on three data sets", "each its own", (
        Row("Market-1501", Score(90.3, 95.96), config="market1501"),
        Row("DukeMTMC-reID", Score(81.29, 90.89), config="dukemtmc"),
        Row("MSMT17", Score(62.0, 83.54), config="msmt17"),
    )),
    "5": Table("5", "CACE-Net on occluded people", "Occluded-Duke", (
        Row("Occluded-Duke", Score(50.8, 58.8), config="occluded_duke"),
    )),
}  # fmt: skip


def table_of(number: str) -> Table:
    """Return a table. Table 2 also has rows for registered alignment strategies, without published numbers."""
    table = TABLES[number]
    if number != "2":
        return table
    return table._replace(rows=(*table.rows, *(Row(label, None, name) for name, label in registered_rows().items())))


def parse_tables(text: str | None) -> tuple[str, ...]:
    """Parse the value of --table (numbers, topk or all) and return the table names in the paper's order.

    Raises:
        UserError: the value is empty, or a table does not exist.
    """
    known = (*TABLES, SWEEP)
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    unknown = [word for word in words if word not in (*known, "all")]
    if unknown or not words:
        given = repr(unknown[0]) if unknown else "none"
        raise UserError(
            f"--table: found {given}, expected {', '.join(known)} or all; for example --table=1 or --table=1,2"
        )
    return known if "all" in words else tuple(name for name in known if name in words)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse the value of --seeds: a count ("3" means seeds 0, 1 and 2) or a list ("4,5", or "7," for a single seed).

    Raises:
        UserError: an entry is not a non-negative integer or occurs twice, or the count is 0.
    """
    words = [word.strip() for word in text.split(",")]
    if len(words) > 1 and not words[-1]:
        words.pop()
    good = all(word.isascii() and word.isdigit() for word in words) and len(set(map(int, words))) == len(words)
    if good and "," not in text:
        good, words = int(words[0]) > 0, [str(seed) for seed in range(int(words[0]))]
    if not good:
        raise UserError(
            f"--seeds: found {text!r}, expected how many, for example 3 for the seeds 0, 1 and 2, or different seeds as a "
            "list, for example 0,4,7; correct it"
        )
    return tuple(int(word) for word in words)


def check_rows_are_free(file: str, argument: str, fields: Iterable[str]) -> None:
    """Raise UserError if the command line sets the variant or the seed, which the table rows and --seeds determine.

    Args:
        file: config file given by --config.
        argument: argument of the config file.
        fields: dotted fields set on the command line.
    """
    rows = {row.row for table in TABLES.values() for row in table.rows}
    if argument != FULL and argument in {*RECIPES, *ROWS, *rows}:
        raise UserError(
            f"--config: found variant {argument!r} with --mode=reproduce, expected the full model, of which every row is "
            f"made; give --config={file}, or --mode=train for one row"
        )
    if "seed" in fields:
        raise UserError("--config.seed: given with --mode=reproduce, expected --seeds; for example --seeds=4,5")
