"""Places set aside for items nobody knows yet: what is never shown is never learnt about."""

from collections.abc import Sequence

import numpy as np

from pinrec.config import GenerationConfig
from pinrec.delta import View
from pinrec.hashing import hash_id
from pinrec.requests import Candidate, GenerationRequest
from pinrec.retrieval import Filter


def explored(
    view: View,
    requests: Sequence[GenerationRequest],
    lists: Sequence[list[Candidate]],
    config: GenerationConfig,
) -> list[list[Candidate]]:
    """The lists, with `config.explore_share` of their places given to new items (`View.new_rows`).

    Where the share leaves a fraction of a place, that many of the lists get one more. Items, all as likely, and their
    places are a function of the request alone. What a list had at its end makes room. The filters are those of the
    list, and no item stands in it twice.
    """
    if not config.explore_share:
        return list(lists)
    return [
        _explored(view, request, listed, config.explore_share) for request, listed in zip(requests, lists, strict=True)
    ]


def _explored(view: View, request: GenerationRequest, listed: list[Candidate], share: float) -> list[Candidate]:
    rng = np.random.default_rng(hash_id(f"{request.user_id} {request.now} {request.k} {len(request.history or ())}"))
    wanted = int(len(listed) * share + rng.random())
    if not wanted:
        return listed
    only = Filter.of(view, request)
    pool = only.among(view, view.new_rows)
    pool = pool[~np.isin(pool, [one.row for one in listed])]
    rows = rng.permutation(pool)[:wanted].tolist()
    kept = iter(listed)
    tried = iter(zip(rows, view.item_ids(rows), strict=True))
    places = set(rng.permutation(len(listed))[: len(rows)].tolist())
    return [Candidate(*next(tried), 0.0, explored=True) if at in places else next(kept) for at in range(len(listed))]
