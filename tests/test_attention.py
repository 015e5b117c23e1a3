"""Attention and embedding: masks, the kernel's blocks and memory, errors, and PyTorch's results."""

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest

import minigan as mg
from minigan import nn, ops
from minigan.ops import attention
from minigan.tape import apply

RANDOM = np.random.default_rng(0)
Q, K, V = (RANDOM.normal(size=s) for s in ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)))
MASKS = {
    "all": np.ones((2, 3, 5, 7), bool),
    "causal": np.tri(5, 7, dtype=bool),
    "of keys": RANDOM.random((2, 1, 1, 7)) < 0.5,
    "of queries": np.array([True, False, True, True, False])[:, None],
    "of anything": RANDOM.random((2, 3, 5, 7)) < 0.3,
}


def tensors(*arrays: Any) -> list[mg.Tensor]:
    return [mg.tensor(a) for a in arrays]


def by_numpy(mask: np.ndarray) -> np.ndarray:
    """Query by query, over the keys that it may attend to."""
    mask = np.broadcast_to(mask, (2, 3, 5, 7))
    out = np.zeros((2, 3, 5, 6))
    for at in itertools.product(*map(range, mask.shape[:-1])):
        seen = mask[at]
        weights = np.exp(K[at[:-1]][seen] @ Q[at] / 2.0)
        out[at] = weights @ V[at[:-1]][seen] / weights.sum() if seen.any() else 0
    return out


@pytest.mark.parametrize("name", MASKS)
def test_masks(name: str) -> None:
    expected = by_numpy(MASKS[name])
    for recording in (True, False):
        with mg.no_grad() if not recording else mg.tape.recording(True):
            found = ops.scaled_dot_product_attention(Q, K, V, MASKS[name]).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
        np.testing.assert_array_equal(found == 0, expected == 0)


def test_a_fully_masked_query_gives_zeros_at_every_order() -> None:
    mask = np.ones((5, 7), bool)
    mask[[1, 4]] = False
    for scale in (0.5, 1e3):
        q, k, v = tensors(Q, K, V)
        y = ops.scaled_dot_product_attention(q, k, v, mask, scale)
        assert not y.numpy()[..., [1, 4], :].any()
        first = mg.grad((y * y).sum(), [q, k, v], create_graph=True)
        second = mg.grad(sum((g * g).sum() for g in first), [q, k, v], create_graph=True)
        third = mg.grad(sum(g.sum() for g in second), [q, k, v])
        for order in (first, second, third):
            assert all(np.isfinite(g.numpy()).all() for g in order)
            assert not order[0].numpy()[..., [1, 4], :].any(), "the query's own derivative"
    nothing = ops.scaled_dot_product_attention(*tensors(Q, K, V), np.zeros((5, 7), bool))
    assert not nothing.numpy().any()


def test_derivatives_with_a_mask() -> None:
    mask = MASKS["of anything"][0, 0, :3, :4]
    mask[1] = False
    mg.check_grad(ops.scaled_dot_product_attention, Q[0, 0, :3], K[0, 0, :4], V[0, 0, :4, :2], mask, order=3)


@pytest.mark.parametrize("block", [1, 10, 40, 100, 1 << 17])
@pytest.mark.parametrize("name", [None, *MASKS])
def test_blocks_of_every_size_give_the_reference(
    block: int, name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    masks = [] if name is None else [MASKS[name]]
    arrays = tensors(Q, K, V, *masks)
    found = apply(attention.ATTENTION, *arrays, scale=0.5)
    expected = attention.ATTENTION.reference(*arrays, scale=0.5)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-14)


def test_the_scores_of_all_are_never_in_memory() -> None:
    tokens = mg.tensor(RANDOM.normal(size=(4, 1024, 8)).astype(np.float32))
    with mg.no_grad():
        ops.scaled_dot_product_attention(tokens, tokens, tokens)
        tracemalloc.start()
        ops.scaled_dot_product_attention(tokens, tokens, tokens)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 * 1024 * 1024 * 4 / 4  # bytes: a quarter of the scores


def test_not_a_number_stays_where_it_is_seen() -> None:
    q, k, v = Q.copy(), K.copy(), V.copy()
    q[0, 0, 0], k[1, 1, 2] = np.nan, np.nan
    mask = np.ones((2, 3, 5, 7), bool)
    mask[1, 1, :, 2] = False  # nobody looks at the key that is NaN
    for recording in (True, False):
        with mg.tape.recording(recording):
            y = ops.scaled_dot_product_attention(q, k, v, mask).numpy()
        assert np.isnan(y[0, 0, 0]).all() and np.isnan(y).sum() == 6


def test_large_scores_do_not_overflow() -> None:
    for dtype in (np.float32, np.float64):
        with mg.no_grad():
            y = ops.scaled_dot_product_attention(*(a.astype(dtype) * 100 for a in (Q, K)), V.astype(dtype))
        assert y.dtype == dtype and np.isfinite(y.numpy()).all()


def test_compiled() -> None:
    def step(q: mg.Tensor, k: mg.Tensor, v: mg.Tensor, mask: mg.Tensor) -> list[mg.Tensor]:
        with mg.no_grad():
            seen = ops.scaled_dot_product_attention(q, k, v, mask)
        y = ops.scaled_dot_product_attention(q, k, v, mask)
        return [seen, y, *mg.grad((y * seen).sum(), [q, k, v])]

    arrays = tensors(Q, K, V, MASKS["of anything"])
    expected = [y.numpy() for y in step(*arrays)]
    for fuse in (False, True):
        for y, wanted in zip(mg.compile(step, fuse=fuse)(*arrays), expected, strict=True):
            np.testing.assert_allclose(y.numpy(), wanted, rtol=1e-13, atol=1e-15)


def test_errors_have_the_numbers() -> None:
    attend = ops.scaled_dot_product_attention
    for recording in (True, False):
        with mg.tape.recording(recording):
            with pytest.raises(mg.ShapeError, match="4 and 3 features of queries and keys"):
                attend(Q, K[..., :3], V)
            with pytest.raises(mg.ShapeError, match="6 keys and 7 values"):
                attend(Q, K[..., :6, :], V)
            with pytest.raises(mg.ShapeError, match=r"a mask of shape \(2, 2, 3, 5, 7\) does not broadcast"):
                attend(Q, K, V, np.ones((2, 2, 3, 5, 7), bool))
            with pytest.raises(mg.ShapeError, match=r"axis -1 has sizes \[6, 7\]"):
                attend(Q, K, V, np.ones((5, 6), bool))
            with pytest.raises(mg.DTypeError, match="the mask has dtype float64, expected bool"):
                attend(Q, K, V, np.ones((5, 7)))
            with pytest.raises(mg.ShapeError, match=r"q of shape \(4,\) has fewer than two axes"):
                attend(Q[0, 0, 0], K, V)
    with pytest.raises(mg.ConfigError, match="Attention: 6 features do not divide into 4 heads"):
        nn.Attention(6, 4, stream=ops.Stream(0, "test"))


# Embedding


def test_an_embeddings_derivative_adds_up_where_a_row_was_used() -> None:
    table, ids = mg.tensor(RANDOM.normal(size=(4, 2))), np.array([[3, 1], [3, 3]])
    y = ops.embedding(table, ids)
    np.testing.assert_array_equal(y.numpy(), table.numpy()[ids])
    (g,) = mg.grad(y.sum(), table)
    np.testing.assert_array_equal(g.numpy(), [[0, 0], [1, 1], [0, 0], [3, 3]])


@pytest.mark.parametrize("compiled", [False, True])
def test_an_id_out_of_range_is_named(compiled: bool) -> None:
    table = mg.tensor(np.ones((4, 2)))
    look = (
        mg.compile(lambda ids: ops.embedding(table, ids))
        if compiled
        else (lambda ids: ops.embedding(table, ids))
    )
    look(np.array([0, 3]))
    for wrong in (4, -1):
        with pytest.raises(mg.ShapeError, match=f"index {wrong} is not in 0 to 3, for an axis of size 4"):
            look(np.array([0, wrong]))
    with pytest.raises(mg.DTypeError, match="ids have dtype float64"):
        ops.embedding(table, np.array([1.0]))
    with pytest.raises(mg.ShapeError, match=r"a table of shape \(4,\)"):
        ops.embedding(np.ones(4), np.array([1]))


# PyTorch


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [None, *(name for name, mask in MASKS.items() if by_numpy(mask).any(-1).all())]
)
def test_attention_is_pytorchs(name: Any) -> None:
    torch = pytest.importorskip("torch")
    mask = None if name is None else MASKS[name]
    mine, theirs = tensors(Q, K, V), [torch.tensor(a, requires_grad=True) for a in (Q, K, V)]
    y = ops.scaled_dot_product_attention(*mine, mask)
    ty = torch.nn.functional.scaled_dot_product_attention(
        *theirs, attn_mask=None if mask is None else torch.tensor(mask)
    )
    np.testing.assert_allclose(y.numpy(), ty.detach().numpy(), rtol=0, atol=1e-13)
    for g, tg in zip(mg.grad((y * y).sum(), mine), torch.autograd.grad((ty * ty).sum(), theirs), strict=True):
        np.testing.assert_allclose(g.numpy(), tg.numpy(), rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("context", [None, 5])
def test_multi_head_attention_is_pytorchs(context: Any) -> None:
    torch = pytest.importorskip("torch")
    layer = nn.Attention(8, 2, context=context, stream=ops.Stream(0, "test"), dtype=np.float64)
    parts = (layer.query, layer.key, layer.value)
    theirs = torch.nn.MultiheadAttention(
        8, 2, kdim=context, vdim=context, batch_first=True, dtype=torch.float64
    )
    weights = [torch.tensor(part.weight.numpy().T.copy()) for part in parts]
    with torch.no_grad():
        if context is None:
            theirs.in_proj_weight.copy_(torch.cat(weights))
        else:
            for p, w in zip(
                (theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight), weights, strict=True
            ):
                p.copy_(w)
        theirs.out_proj.weight.copy_(torch.tensor(layer.out.weight.numpy().T.copy()))
    x, seen = RANDOM.normal(size=(3, 6, 8)), RANDOM.normal(size=(3, 4, context or 8))
    mask = np.tri(6, 4, dtype=bool)
    found = layer(mg.tensor(x), context=mg.tensor(seen), mask=mg.tensor(mask)).numpy()
    args = map(torch.tensor, (x, seen, seen))
    expected, _ = theirs(*args, attn_mask=torch.tensor(~mask), need_weights=False)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=0, atol=1e-13)
