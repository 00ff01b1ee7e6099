"""Every table by name: the paper's nine, its appendix's two, and this project's own."""

import difflib
from collections.abc import Mapping

from experiments.ablations import APPENDIX1, APPENDIX2, TABLE6, TABLE7, TABLE8, TABLE9
from experiments.cells import Table
from experiments.cifar_tables import TABLE1, TABLE2
from experiments.large_tables import TABLE3, TABLE4, TABLE5
from experiments.own_tables import FASHION, FASHION_CROSS, FASHION_WEIGHTS

ALL = "all"
OF_PAPER = (TABLE1, TABLE2, TABLE3, TABLE4, TABLE5, TABLE6, TABLE7, TABLE8, TABLE9, APPENDIX1, APPENDIX2)
TABLES: Mapping[str, Table] = {table.name: table for table in (*OF_PAPER, FASHION, FASHION_CROSS, FASHION_WEIGHTS)}


def choose(name: str, tables: Mapping[str, Table] = TABLES) -> list[Table]:
    """The table of that name, or "all" of them; ``ValueError`` names those that there are."""
    if name == ALL:
        return list(tables.values())
    if name not in tables:
        known = (*tables, ALL)
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"no table is called {name!r}; the closest is {close!r}, known are {', '.join(known)}")
    return [tables[name]]
