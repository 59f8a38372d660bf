"""Semantic IDs: every item as a short tuple of codes, and similar items with the same first codes.

TIGER (Rajput et al. 2023, arXiv 2305.05065) quantises a text embedding of an item by residual quantisation. Two
things differ here, as there is no pre-trained text model. An item's vector is made of the catalogue's content
features (the author, categories, numbers and words that PinRec is given too) and of the company it keeps in the
training histories. And the quantiser is residual k-means in place of an RQ-VAE, as in OneRec (arXiv 2502.18965): it is
fitted in seconds and has no codes that die.

Shapes: N items, G places of a bag, D width of an item's vector, F features, V levels of codes, S codes of a level,
P nodes of the trie, C children.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pinrec.config import Frozen
from pinrec.items import Catalogue
from pinrec.protocols import Indices

SMOOTHING: Final = 0.75  # of context counts in the PPMI (Levy, Goldberg and Dagan 2015), against rare pairs
OVERSAMPLING, POWERS = 16, 4  # of the randomised SVD (Halko, Martinsson and Tropp 2011)


class SemanticIdConfig(Frozen):
    """How items get their codes. The paper's: 3 levels of 256 codes, and one more that tells namesakes apart."""

    levels: int = Field(3, ge=1, description="levels of the quantiser; the IDs have one code more")
    codes: int = Field(256, ge=2, description="codes of a level")
    width: int = Field(64, ge=1, description="width of the content half and of the co-occurrence half of an item")
    cooccurrence: float = Field(
        2.0, ge=0, description="length of the co-occurrence half where the content half is 1; 0 = content alone"
    )
    window: int = Field(5, ge=1, description="items of a history that are at most so far apart count as company")
    iterations: int = Field(25, ge=1, description="rounds of k-means on each level")


@dataclass(frozen=True, eq=False)
class Level:
    """A level of the trie, seen from the P nodes above it, whose children are numbered in one run after the other.

    Attributes:
        node_N: int64[N], the node of this level under which an item lies.
        first_P: int64[P], the first child of each node above.
        code_PC: int64[P, C], the codes of a node's children, of which none has more than C; -1 where there are less.
    """

    node_N: Indices
    first_P: Indices
    code_PC: Indices


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """The codes of N items, all tuples distinct, and the prefix trie of them.

    Attributes:
        code_NV: int64[N, V].
    """

    code_NV: Indices

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level, one more than the highest in use."""
        return tuple(int(highest) + 1 for highest in self.code_NV.max(0))

    @cached_property
    def trie(self) -> list[Level]:
        """The levels below the root; a node of the last one is a leaf."""
        levels, above_N, nodes_above = [], np.zeros(len(self.code_NV), np.int64), 1
        for code_N, size in zip(self.code_NV.T, self.sizes, strict=True):
            name, node_N = np.unique(above_N * size + code_N, return_inverse=True)
            parent, code = np.divmod(name, size)
            first_P = np.searchsorted(parent, np.arange(nodes_above))
            code_PC = np.full((nodes_above, int(np.bincount(parent).max())), -1)
            code_PC[parent, np.arange(len(name)) - first_P[parent]] = code
            levels.append(Level(node_N, first_P, code_PC))
            above_N, nodes_above = node_N, len(name)
        return levels

    @cached_property
    def row(self) -> Indices:
        """int64[N], the item of each leaf."""
        return np.argsort(self.trie[-1].node_N)


def semantic_ids(
    catalogue: Catalogue, histories: Sequence[Indices], config: SemanticIdConfig, seed: int = 0
) -> SemanticIds:
    """The catalogue's semantic IDs; the same arguments give the same IDs.

    Args:
        histories: catalogue rows of each training user, in the order of time.

    Raises:
        ValueError: neither the catalogue nor the histories tell items apart.
    """
    return SemanticIds(_told_apart(residual_codes(item_vectors(catalogue, histories, config, seed), config, seed)))


def item_vectors(catalogue: Catalogue, histories: Sequence[Indices], config: SemanticIdConfig, seed: int = 0) -> Tensor:
    """What the quantiser sees of each item, float32[N, D].

    Two halves, each a truncated SVD with rows of length 1 (0 for items without any): TF-IDF of content
    features, and positive pointwise mutual information of items in the same history. Where no two items share a
    feature it is the second half alone.

    Raises:
        ValueError: nothing tells items apart.
    """
    generator = torch.Generator().manual_seed(seed)
    content, company = _tf_idf(catalogue.bags), _ppmi(histories, len(catalogue), config.window)
    halves = []
    if content._nnz():
        halves.append(_factors(content, config.width, generator))
    if company._nnz() and (config.cooccurrence or not halves):
        halves.append(_factors(company, config.width, generator) * (config.cooccurrence if halves else 1))
    if not halves:
        raise ValueError("semantic IDs: no two items share a feature or a history; bring items.csv.gz or a longer log")
    return torch.cat(halves, 1)


def residual_codes(x_ND: Tensor, config: SemanticIdConfig, seed: int = 0) -> Indices:
    """Codes of each level, int64[N, levels]: a level's k-means works on what the levels before left over."""
    codes, rng = [], np.random.default_rng(seed)
    for _ in range(config.levels):
        centre_SD, code_N = _k_means(x_ND, config.codes, config.iterations, rng)
        x_ND = x_ND - centre_SD[code_N]
        codes.append(code_N.cpu().numpy())
    return np.stack(codes, 1)


def _told_apart(code_NV: Indices) -> Indices:
    """One more code, which counts the items that have all others in common."""
    name = np.unique(code_NV, axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(name, kind="stable")
    first = np.searchsorted(name[order], name[order])
    last = np.empty(len(name), np.int64)
    last[order] = np.arange(len(name)) - first
    return np.column_stack((code_NV, last))


def _tf_idf(bag_NG: NDArray[np.int32]) -> Tensor:
    """Sparse [N, F], rows of length 1; what only one item has, or all, is left out."""
    items = len(bag_NG)
    feature_M, row_M = np.divmod(np.unique(bag_NG * np.int64(items) + np.arange(items)[:, None]), items)
    count_M = np.bincount(feature_M)[feature_M]
    informs = (feature_M > 0) & (count_M > 1) & (count_M < items)
    feature_M, row_M = np.unique(feature_M[informs], return_inverse=True)[1], row_M[informs]
    weight_M = np.log(items / count_M[informs]).astype(np.float32)
    length_N = np.sqrt(np.bincount(row_M, weight_M**2, minlength=items)).astype(np.float32)
    return _sparse(row_M, feature_M, weight_M / length_N[row_M], (items, int(feature_M.max(initial=0)) + 1))


def _ppmi(histories: Sequence[Indices], items: int, window: int) -> Tensor:
    """Positive pointwise mutual information, sparse [N, N]; a pair d items apart counts 1 / d."""
    user = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    item = np.concatenate([np.zeros(0, np.int64), *histories])
    pairs, weights = [np.zeros(0, np.int64)], [np.zeros(0)]
    for apart in range(1, window + 1):
        a, b = item[:-apart], item[apart:]
        company = (user[:-apart] == user[apart:]) & (a != b)
        pairs += [a[company] * items + b[company], b[company] * items + a[company]]
        weights += [np.full(2 * int(company.sum()), 1 / apart)]
    pair, which = np.unique(np.concatenate(pairs), return_inverse=True)
    count = np.bincount(which, np.concatenate(weights), minlength=len(pair))
    a, b = np.divmod(pair, items)
    total = np.bincount(a, count, minlength=items)
    context = total**SMOOTHING
    with np.errstate(divide="ignore"):
        information = np.log(count / total[a] / context[b] * context.sum())
    positive = information > 0
    return _sparse(a[positive], b[positive], information[positive].astype(np.float32), (items, items))


def _sparse(row: Indices, column: Indices, value: NDArray[np.float32], shape: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(
        torch.as_tensor(np.stack((row, column))), torch.as_tensor(value), shape, check_invariants=False
    ).coalesce()


def _factors(matrix_NF: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Left singular vectors times the roots of the singular values, rows brought to length 1: float32[N, width].

    A randomised SVD by power iteration. The root flattens the spectrum, so that the first few directions do
    not drown the rest (Levy, Goldberg and Dagan 2015).
    """
    transposed_FN = matrix_NF.t().coalesce()
    sketch = min(width + OVERSAMPLING, *matrix_NF.shape)
    basis = torch.linalg.qr(torch.sparse.mm(matrix_NF, torch.randn(matrix_NF.shape[1], sketch, generator=generator)))[0]
    for _ in range(POWERS):
        basis = torch.linalg.qr(torch.sparse.mm(transposed_FN, basis))[0]
        basis = torch.linalg.qr(torch.sparse.mm(matrix_NF, basis))[0]
    u, s, _ = torch.linalg.svd(torch.sparse.mm(transposed_FN, basis).T, full_matrices=False)
    return F.normalize((basis @ u * s.sqrt())[:, :width], dim=1)


def _k_means(x_ND: Tensor, centres: int, iterations: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Centres [S, D] and the centre of each row, int64[N]. Starts from k-means++ (Arthur and Vassilvitskii 2007)."""
    chosen = [int(rng.integers(len(x_ND)))]
    gap_N = (x_ND - x_ND[chosen[0]]).square().sum(1)
    while len(chosen) < min(centres, len(x_ND)) and float(gap_N.max()) > 1e-9:
        ends_N = gap_N.double().cumsum(0).cpu().numpy()
        at = int(np.searchsorted(ends_N, rng.random() * ends_N[-1], side="right"))
        chosen.append(min(at, len(x_ND) - 1))
        gap_N = torch.minimum(gap_N, (x_ND - x_ND[chosen[-1]]).square().sum(1))
    centre_SD = x_ND[chosen]
    code_N = _nearest(x_ND, centre_SD)
    for _ in range(iterations):
        count_S = torch.bincount(code_N, minlength=len(centre_SD))
        sum_SD = torch.zeros_like(centre_SD).index_add_(0, code_N, x_ND)
        centre_SD = torch.where(count_S[:, None] > 0, sum_SD / count_S.clamp(min=1)[:, None], centre_SD)
        code_N = _nearest(x_ND, centre_SD)
    return centre_SD, code_N


def _nearest(x_ND: Tensor, centre_SD: Tensor) -> Tensor:
    return torch.addmm(centre_SD.square().sum(1), x_ND, centre_SD.T, alpha=-2).argmin(1)
