"""Numbers over seeds, and tables in Markdown: what the studies' reports are made of."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

ERRORS = "mean ± standard error over the seeds"


def interval(values: Iterable[float], form: str = ".1f") -> str:
    """The mean and its standard error, s / √n with n - 1 in s; of one value that value, of none a dash.

    >>> interval([1.0, 2.0, 3.0], ".2f")
    '2.00 ± 0.58'
    """
    known = list(values)
    if not known:
        return "–"
    mean = fmean(known)
    if len(known) == 1 or not math.isfinite(mean):
        return format(mean, form)
    return f"{mean:{form}} ± {stdev(known) / math.sqrt(len(known)):{form}}"


def markdown(rows: Sequence[Sequence[object]]) -> str:
    """A table, whose first row is its heading; the first column is to the left, the others to the right.

    >>> print(markdown([["method", "modes"], ["ours", 8]]))
    | method | modes |
    |---|---:|
    | ours | 8 |
    """
    heading, *others = rows
    lines = ["|---|" + "---:|" * (len(heading) - 1)]
    texts = ["| " + " | ".join(map(str, row)) + " |" for row in (heading, *others)]
    return "\n".join([texts[0], *lines, *texts[1:]])
