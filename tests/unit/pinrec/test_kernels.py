"""What the kernels take care of that no model of ordinary weights shows."""

import numpy as np
import torch

from pinrec import kernels


def test_what_attention_leaves_out_does_not_drown_what_it_sees():
    """A key that is out of reach, but in a page with others, would make the weights of all others 0."""
    rng = np.random.default_rng(0)
    key_CK, value_CK = (rng.normal(size=(10, 4)).astype(np.float32) for _ in range(2))
    q_K = np.ones(4, np.float32)
    key_CK[:3] = 100.0
    paged, first = 8, 3  # one whole page
    key_NKP, value_NPK = (
        torch.from_numpy(x).bfloat16().view(torch.uint16).numpy()[None]
        for x in (np.ascontiguousarray(key_CK[:paged].T), value_CK[:paged])
    )
    near = torch.from_numpy(key_CK), torch.from_numpy(value_CK)
    own = key_CK[paged:].copy(), value_CK[paged:].copy(), 2
    attended_K = np.empty(4, np.float32)
    scales = np.zeros((0, 8), np.uint16)
    pages = key_NKP, value_NPK, scales, scales, np.zeros(1, np.int64), paged
    kernels._attend(q_K, pages, own, first, np.empty(16, np.float32), np.empty(8, np.float32), attended_K)
    key, value = (torch.cat((x[first:paged].bfloat16().float(), x[paged:])) for x in near)
    expected = torch.softmax(key.sum(1), 0) @ value
    torch.testing.assert_close(torch.from_numpy(attended_K), expected, atol=1e-5, rtol=1e-5)
