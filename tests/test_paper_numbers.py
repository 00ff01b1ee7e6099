"""The typed numbers of the paper's tables, against another transcription and against what they are quoted from."""

import pytest

from experiments import tables

# The sum of each row's numbers, added up from another transcription of the paper, in the order of the rows.
SUMS = {
    "table1": "309.98 270.06 273.74 278.32 287.6 286.56 0 285 286.38 289.96 289.45 292.9 287.68 290.92",
    "table2": "467.77 412.38 417.82 418.06 432.06 427.05 439.33 442.83 442.24 447.97 "
    "440.63 431.88 442.85 445.62 450.03 439.65 444.59",
    "table3": "164.74 158.82 160.54 161.49 162.11 163.23 163.06 163.64",
    "table4": "169.02 157.63 160.84 162.95 163.1 164.17 163.38 164.23",
    "table5": "332.73 201.34 264.69 299.73 312.64 189.88 124.01 293.14 313.65 309.31 322.74 308.48 321.61",
    "table6": "147.4 151.02 149.89 152.93",
    "table7": "147.4 151.73 151.97 152.04",
    "table8": "75.62 76.3 75.99 76.15 75.78",
    "table9": "41 26 11 11",
    "appendix1": "219.6 224.5 226.37 226.22 228.65",
    "appendix2": "147.39 150.02 154.68",
}
# RepDistiller's README (commit 0eb3a95), pairs of different type: where the older methods of Table 2 are quoted from.
COLUMNS = """RN32x4 -> ShuffleNetV1, WRN40-2 -> ShuffleNetV1, RN50 -> MobileNetV2, VGG13 -> MobileNetV2,
RN32x4 -> ShuffleNetV2, RN50 -> VGG8""".replace("\n", " ").split(", ")
REPDISTILLER = {
    "KD": (74.07, 74.83, 67.35, 67.37, 74.45, 73.81),
    "FitNet": (73.59, 73.73, 63.16, 64.14, 73.54, 70.69),
    "RKD": (72.28, 72.21, 64.43, 64.52, 73.21, 71.50),
    "SP": (73.48, 74.52, 68.08, 66.30, 74.56, 73.34),
    "PKT": (74.10, 73.89, 66.52, 67.13, 74.69, 73.01),
    "CRD": (75.11, 76.05, 69.11, 69.73, 75.65, 74.30),
}


@pytest.mark.parametrize("name", SUMS)
def test_each_row_adds_up_to_that_of_another_transcription(name):
    found = {}
    for one in tables.TABLES[name].cells:
        if not one.ours:
            found[one.row] = found.get(one.row, 0) + sum(one.paper.values())
    assert list(found.values()) == pytest.approx([float(word) for word in SUMS[name].split()], abs=1e-6)


def test_every_table_of_the_paper_is_added_up():
    assert [table.name for table in tables.OF_PAPER] == list(SUMS)


def test_quoted_numbers_that_are_not_those_of_their_source_are_marked():
    marked = {}
    for row, numbers in REPDISTILLER.items():
        for column, number in zip(COLUMNS, numbers, strict=True):
            one = tables.TABLES["table2"].find(row, column)
            assert (f"RepDistiller's README has {number:.2f}" in one.note) == (one.paper["top1"] != number), one
            if one.note:
                marked[row, column] = one
    assert len(marked) == 7
    for (row, column), one in marked.items():
        other = one.note.partition("the number of ")[2].partition(",")[0]
        source = (row, other) if "->" in other else (other, column)
        assert tables.TABLES["table2"].find(*source).paper == one.paper, one


def test_what_the_appendix_quotes_is_that_of_table_2_or_marked():
    for name in ("appendix1", "appendix2"):
        for one in tables.TABLES[name].cells:
            same = tables.TABLES["table2"].find(one.row.replace("SDD", "SD"), one.column)
            if same is not None and same.paper != one.paper:
                assert f"{same.paper['top1']:.2f} in Table 2" in one.note and name == "appendix2", one
