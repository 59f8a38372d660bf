"""One user's figures in plain Python, word by word as `pinrec.measures.measure` and docs/quality.md define them."""

import math


def figures_of(listed, found, met, actions, k):
    """Name -> figure.

    Args:
        listed: one list, best first; -1 is nothing, here and in `found`.
        found: what each embedding retrieves.
        met: item to be found -> the names of the actions it met with.
        actions: names that unordered recall is given for.
    """
    top, retrieved = [row for row in listed[:k] if row >= 0], [row for part in found for row in part if row >= 0]
    gain = sum(1 / math.log2(1 + rank) for rank, row in enumerate(top, 1) if row in met)
    best = sum(1 / math.log2(1 + rank) for rank in range(1, min(k, len(met)) + 1))
    figures = {
        f"hr@{k}": float(any(row in met for row in top)),
        f"ndcg@{k}": gain / best,
        f"recall@{k}": sum(item in top for item in met) / len(met),
        f"unordered@{k}": sum(item in retrieved for item in met) / len(met),
        f"equal@{len(found) * k}": sum(item in listed for item in met) / len(met),
        "diversity": len(set(retrieved)) / len(retrieved) if retrieved else 0.0,
    }
    for action in actions:
        those = [item for item, with_it in met.items() if action in with_it]
        figures[f"unordered@{k}:{action}"] = (
            sum(item in retrieved for item in those) / len(those) if those else math.nan
        )
    return figures
