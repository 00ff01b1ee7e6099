"""Tables in markdown."""


def table(head, rows):
    """Lines of a table; cells are put as they print."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]
