"""The worked numbers and identities of the papers on images with texts."""

import math

import pytest
import torch
import torch.nn.functional as F

from manyviews import objectives as o
from manyviews.distributed import LOCAL
from manyviews.heads import LogitScale
from manyviews.objectives.fdt import sparsemax
from manyviews.objectives.mcip import with_margin
from manyviews.objectives.swav import sinkhorn
from manyviews.tokens import late_interaction, masked_mean, transport
from tests.manyviews.test_clip import F3, NO_SCALE, at

double = {"dtype": torch.float64}
PATCHES, WORDS = at([0, 90], [180, 270]), at([10, 100, 0], [190, 45, 250])
MASKS = [torch.ones(2, 2, dtype=torch.bool), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()]
FT = {"tokens": [PATCHES, WORDS], "masks": MASKS}
NOTHING = [torch.ones(2, 2, **double)] * 2


def close(found, wanted, tolerance=1e-6):
    torch.testing.assert_close(found, torch.tensor(wanted, **double), atol=tolerance, rtol=0)


def test_filip_of_the_worked_example():
    close(late_interaction(PATCHES, WORDS, *MASKS), [[0.984808, 0.707107], [0, 0.962250]])
    close(late_interaction(WORDS, PATCHES, *MASKS[::-1]).T, [[0.984808, 0.063813], [0, 0.405798]])
    for scale, loss in ((1.0, 0.435384), (1 / 0.07, 6.569768e-3)):
        assert o.FILIP(NO_SCALE(scale)).double()(NOTHING, **FT).item() == pytest.approx(loss, abs=1e-6)


def test_filip_identities():
    one = {"tokens": [view[:, None] for view in F3]}
    views = [torch.ones(3, 2, **double)] * 2
    assert o.FILIP(NO_SCALE(5.0)).double()(views, **one).item() == pytest.approx(
        o.CLIP(NO_SCALE(5.0)).double()(F3).item(), abs=1e-12
    )
    loss = o.FILIP().double()(NOTHING, **FT).item()
    padded = F.pad(WORDS, (0, 0, 0, 2), value=3.0)
    more = {"tokens": [PATCHES, padded], "masks": [MASKS[0], F.pad(MASKS[1], (0, 2))]}
    assert o.FILIP().double()(NOTHING, **more).item() == pytest.approx(loss, abs=1e-12)
    turned = {"tokens": [PATCHES.flip(1), WORDS.flip(1)], "masks": [m.flip(1) for m in MASKS]}
    assert o.FILIP().double()(NOTHING, **turned).item() == pytest.approx(loss, abs=1e-12)
    twice = torch.cat([PATCHES, PATCHES[:, :1]], 1)
    longer = torch.ones(2, 3, dtype=torch.bool)
    same = late_interaction(WORDS, twice, MASKS[1], longer), late_interaction(WORDS, PATCHES, *MASKS[::-1])
    torch.testing.assert_close(*same)


def test_an_empty_caption_gives_no_nan():
    masks = [MASKS[0], torch.tensor([[0, 0, 0], [1, 1, 1]]).bool()]
    tokens = [x.clone().requires_grad_() for x in (PATCHES, WORDS)]
    for objective in (o.FILIP(), o.CGVLM()):
        loss = objective.double()(NOTHING, tokens=tokens, masks=masks)
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, tokens))


def test_chunks_of_late_interaction_change_nothing(monkeypatch):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(7, 5, 4, generator=g, **double).requires_grad_() for _ in range(2))
    mask = torch.rand(7, 5, generator=g) > 0.3
    whole = late_interaction(a, b, mask, mask)
    grads = torch.autograd.grad(whole.square().sum(), [a, b])
    monkeypatch.setattr("manyviews.tokens.LARGEST_CHUNK", 7 * 25 * 2)
    parts = late_interaction(a, b, mask, mask)
    torch.testing.assert_close(parts, whole)
    for x, y in zip(torch.autograd.grad(parts.square().sum(), [a, b]), grads, strict=True):
        torch.testing.assert_close(x, y)


def test_cgvlm_of_the_worked_example():
    for scale, loss in ((1.0, 0.421259), (1 / 0.07, 1.920221e-3)):
        assert o.CGVLM(NO_SCALE(scale)).double()(NOTHING, **FT).item() == pytest.approx(loss, rel=1e-5)
    close(
        masked_mean(PATCHES, MASKS[0]) @ masked_mean(WORDS, MASKS[1]).T, [[0.492404, -0.170993], [-0.492404, 0.170993]]
    )
    pooled = {"tokens": [PATCHES.mean(1, keepdim=True), WORDS], "masks": [MASKS[0][:, :1], MASKS[1]]}
    for scale, loss in ((1.0, 0.340669), (1 / 0.07, 2.502853e-4)):
        assert o.CGVLM(NO_SCALE(scale)).double()(NOTHING, **pooled).item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    "a, w",
    [
        ([1, 0.8, 0.1], [0.6, 0.4, 0]),
        ([0.5, 0.4, 0.3], [0.433333, 0.333333, 0.233333]),
        ([3, 1, 0], [1, 0, 0]),
        ([0, 0, 0, 0], [0.25] * 4),
    ],
)
def test_sparsemax_of_the_worked_examples(a, w):
    found = sparsemax(torch.tensor(a, **double))
    close(found, w)
    torch.testing.assert_close(sparsemax(torch.tensor(a, **double) + 7), found)
    torch.testing.assert_close(sparsemax(found), found)


def test_sparsemax_keeps_its_digits_far_from_zero():
    found = sparsemax(torch.tensor([1000.3, 1000.0]))
    torch.testing.assert_close(found, sparsemax(torch.tensor([1000.3, 1000.0]).double()).float(), atol=1e-7, rtol=0)
    assert found.tolist() == pytest.approx([0.64999, 0.35001], abs=1e-5)


def test_sparsemax_sends_its_gradient_to_the_support():
    a = torch.tensor([1, 0.8, 0.1], requires_grad=True, **double)
    (grad,) = torch.autograd.grad(sparsemax(a), a, torch.tensor([1.0, 2, 3], **double))
    close(grad, [-0.5, 0.5, 0])


def fdt(temperature=1.0, padding="out"):
    made = o.FDT((2, 2), 3, 2, temperature, padding=padding).double()
    made.codes.data = torch.tensor([[1.0, 0], [0, 1], [-1, 0]], **double)
    made.queries = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    return made


def test_fdt_of_the_worked_example():
    image, text = (
        torch.tensor([[[2.0, 0], [0, 1]]], **double),
        torch.tensor([[[-1, -0.5], [-0.5, -1], [5, 5]]], **double),
    )
    mask = torch.tensor([[1, 1, 0]]).bool()
    close(fdt().weights(image, None, 0), [[0.853553, 0.146447, 0]])
    close(fdt().embed(image, None, 0), [[0.985599, 0.169102]])
    close(fdt(0.25).weights(image, None, 0), [[1, 0, 0]])
    close(fdt().embed(text, mask, 1), [[-1, 0]])
    close(fdt(padding="zero").weights(text, mask, 1), [[0.097631, 0.097631, 0.804738]])
    close(fdt(padding="zero").embed(text, mask, 1), [[-0.990602, 0.136774]])
    longer = F.pad(text, (0, 0, 0, 4), value=9.0), F.pad(mask, (0, 4))
    torch.testing.assert_close(fdt().embed(*longer, 1), fdt().embed(text, mask, 1))


def test_one_code_makes_all_the_same():
    made = o.FDT((4, 4), 1, 3, 1.0).double()
    tokens = [torch.randn(6, 5, 4, **double) for _ in range(2)]
    assert made([torch.ones(6, 2, **double)] * 2, tokens=tokens).item() == pytest.approx(math.log(6))


def test_the_scale_of_fdt_starts_at_its_lower_bound():
    made = o.FDT((4, 4), 8, 3)
    made.scale.log_scale.data.fill_(2.659)
    made.scale.clamp()
    assert made.scale().item() == pytest.approx(math.exp(3), rel=1e-5)


def test_siamlip_of_the_worked_example():
    p, v = list(at([0], [90])), list(at([30], [60]))
    assert o.SiamLIP().double()(p, targets=v[::-1]).item() == pytest.approx(0.267949, abs=1e-6)
    v = [x.clone().requires_grad_() for x in v]
    p = [x.clone().requires_grad_() for x in p]
    grads = torch.autograd.grad(o.SiamLIP().double()(p, targets=v), [*p, *v], allow_unused=True)
    assert grads[2] is None and grads[3] is None


def test_barlip_of_the_worked_example():
    a = torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]], **double)
    b = torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1]], **double)
    assert o.BarLIP().double()([a, b]).item() == pytest.approx(0.025)
    assert o.BarLIP().double()([a, a]).item() == pytest.approx(0)


def test_sinkhorn_and_swalip_of_the_worked_example():
    s = F3[0] @ F3[1].T
    q = sinkhorn(s, 0.5, 3)
    close(q, [[0.816699, 0.168271, 0.015031], [0.143387, 0.757854, 0.098759], [0.020197, 0.055577, 0.924227]])
    close(sinkhorn(s, 0.05, 3), torch.eye(3).tolist())
    for logits, code, loss in ((s, sinkhorn(s.T, 0.5, 3), 1.719395), (s.T, sinkhorn(s, 0.5, 3), 1.735053)):
        assert -(code * (10 * logits).log_softmax(1)).sum(1).mean().item() == pytest.approx(loss, abs=1e-6)


def test_without_strong_views_the_improved_recipe_is_clip():
    improved = o.ImprovedCLIP(NO_SCALE(4.0)).double()
    assert improved(F3).item() == pytest.approx(o.CLIP(NO_SCALE(4.0)).double()(F3).item(), abs=1e-12)


def test_mgca_of_the_worked_examples():
    mgca = o.MGCA(2, 2, temperature=1.0, epsilon=0.5).double()
    images, reports = at(10, 70), at(30, 80)
    mgca.prototypes.data = at(0, 90)
    scores = [x @ mgca.prototypes.T for x in (images, reports)]
    close(sinkhorn(scores[0], 0.5, 3), [[0.805180, 0.194820], [0.198027, 0.801973]])
    close(sinkhorn(scores[1], 0.5, 3), [[0.762897, 0.237103], [0.234021, 0.765979]])
    assert mgca._swapped(images, reports, LOCAL(2), None).item() == pytest.approx(0.763233, abs=1e-6)
    mgca.epsilon = 0.05
    assert mgca._swapped(images, reports, LOCAL(2), None).item() == pytest.approx(0.058128, abs=1e-6)
    words, patches = at(0, 90, 45)[None], at(10, 60)[None]
    there, all_ = torch.tensor([[1, 1, 0]]).bool(), torch.ones(1, 2, dtype=torch.bool)
    local = mgca.local(words, patches, there, all_, torch.tensor([[0.6, 0.4, 0]], **double))
    assert local.item() == pytest.approx(0.007822, abs=1e-6)
    one = mgca.local(words[:, :1], patches[:, :1], there[:, :1], all_[:, :1], torch.ones(1, 1, **double))
    assert one.item() == pytest.approx(0, abs=1e-12)
    for t, loss in ((1.0, 0.927275), (0.07, 1.312136e-5)):
        whole = o.MGCA(2, 2, (1.0, 0.0, 0.0), temperature=t).double()
        token = {"tokens": [view[:, None] for view in F3]}
        assert whole(F3, **token).item() == pytest.approx(loss, rel=2e-6)


def test_scales_of_old_checkpoints_and_of_open_clip_are_scalars():
    scale = LogitScale(3.0, bias=0.0)
    scale.load_state_dict({"log_scale": torch.tensor(1.0), "bias": torch.tensor(-2.0)})
    assert scale().item() == pytest.approx(math.e) and scale.bias.tolist() == [-2.0]


def test_mgca_keeps_its_prototypes_at_length_one_and_frozen_at_first():
    mgca = o.MGCA(2, 4, frozen_epochs=1).double()
    mgca.prototypes.data *= 3
    mgca.constrain()
    torch.testing.assert_close(mgca.prototypes.norm(dim=1), torch.ones(4, **double))
    loss = mgca(F3, tokens=[view[:, None] for view in F3], epoch=0)
    assert not torch.autograd.grad(loss, mgca.prototypes)[0].any()


def test_arc_margin_of_the_worked_example():
    cosines = torch.tensor([[20, 70], [100, 40]], **double).deg2rad().cos()
    for margin, loss in ((0.3, 0.005666), (0.0, 0.001308)):
        own = with_margin(cosines.diagonal(), margin)
        logits = 10 * cosines.clone().diagonal_scatter(own)
        assert F.cross_entropy(logits, torch.arange(2)).item() == pytest.approx(loss, abs=1e-6)


def test_captions_with_margin_of_the_worked_example():
    images, captions = at(20, 110), at([0, 40], [90, 120])
    label = torch.tensor([-1, -1])
    made = o.MCIP(2, 2, scale=10.0, caption_margin=0.3).double()
    assert made([images], label=label, captions=captions).item() == pytest.approx(0.008993, abs=1e-6)
    plain = o.MCIP(2, 2, scale=10.0, caption_margin=0.0).double()([images], label=label, captions=captions[:, :1])
    one_way = o.CLIP(NO_SCALE(10.0), directions="first").double()([images, captions[:, 0]])
    assert plain.item() == pytest.approx(one_way.item(), abs=1e-6)


def test_the_margin_is_finite_and_falls_everywhere():
    cosine = torch.linspace(-1, 1, 201, **double).requires_grad_()
    turned = with_margin(cosine, 0.3)
    assert bool((turned.diff() > -1e-9).all()) and bool((turned <= cosine + 1e-12).all())
    (grad,) = torch.autograd.grad(turned.sum(), cosine)
    assert bool(torch.isfinite(grad).all())


def test_mocoop_of_the_worked_example():
    made = o.MoCoOp(2, 3, scale=1.0).double()
    made.router.weight.data.zero_()
    made.router.bias.data = torch.tensor([2.0, 1, 0], **double)
    prompts = torch.stack([at(10, 90), at(-20, 100), at(0, 0)])
    close(made.scores(at(0), prompts)[0], [0.972674, -0.046701])
    wanted = (torch.tensor([0.9, 0.8, 0.1], **double) + torch.tensor([10, 10, 0])).softmax(0)
    close(wanted, [0.524974, 0.475016, 1.1e-5], 1e-6)
    gate = torch.tensor([2.0, 1, 0], **double)
    assert -(wanted * gate.log_softmax(0)).sum().item() == pytest.approx(0.882643, abs=1e-6)
    assert -(wanted * wanted.log()).sum().item() == pytest.approx(0.692025, abs=1e-6)
    same = made.scores(at(0), prompts[:1].expand(3, -1, -1))
    made.router.bias.data = torch.tensor([0.0, 9, 1], **double)
    torch.testing.assert_close(made.scores(at(0), prompts[:1].expand(3, -1, -1)), same)


THREE = [at(0, 90), at(10, 80), at(-20, 120)]


@pytest.mark.parametrize(
    "make, wanted",
    [
        (lambda t: o.MVInfoNCE(t, same_view_negatives=False), {1.0: 0.303276, 0.5: 0.125588}),
        (lambda t: o.MVInfoNCE(t), {1.0: 0.437114, 0.5: 0.199570}),
        (lambda t: o.MVDHEL(t), {1.0: -2.426470, 0.5: -3.759514}),
    ],
)
def test_three_modalities_of_the_worked_example(make, wanted):
    everything = torch.ones(2, 3, dtype=torch.bool)
    for t, loss in wanted.items():
        assert make(t)(THREE).item() == pytest.approx(loss, abs=1e-6)
        assert make(t)(THREE, present=everything).item() == pytest.approx(loss, abs=1e-6)


def test_two_modalities_of_the_worked_example():
    two = THREE[:2]
    assert o.MVInfoNCE(0.5, same_view_negatives=False)(two).item() == pytest.approx(0.180186, abs=1e-6)
    assert o.MVInfoNCE(0.5)(two).item() == pytest.approx(0.340351, abs=1e-6)
    assert o.MVDHEL(0.5)(two).item() == pytest.approx(-1.285575, abs=1e-6)
    assert o.PairwiseCLIP(NO_SCALE(2.0)).double()(THREE).item() == pytest.approx(0.120588, abs=1e-6)


def test_an_absent_modality_takes_no_gradient_and_gives_none():
    g = torch.Generator().manual_seed(0)
    views = [torch.randn(6, 4, generator=g, **double).requires_grad_() for _ in range(3)]
    present = torch.ones(6, 3, dtype=torch.bool)
    present[2, 1] = present[4, 0] = present[4, 2] = False  # sample 4 has one modality only
    for objective in (o.MVDHEL(0.5), o.MVInfoNCE(0.5)):
        loss = objective(views, present=present)
        grads = torch.autograd.grad(loss, views)
        assert not grads[1][2].any() and not grads[0][4].any() and not grads[2][4].any()
        assert all(torch.isfinite(grad).all() for grad in grads)
        changed = [view.detach().clone() for view in views]
        changed[1][2] += 5
        changed[0][4] -= 3
        assert objective(changed, present=present).item() == pytest.approx(loss.item(), abs=1e-12)


def test_transport_of_the_worked_examples():
    cost = 1 - at(0, 90) @ at(20, 80).T
    two = torch.ones(2, dtype=torch.bool)
    plan = transport(cost, two, two, 0.5, tolerance=1e-14)
    assert plan[0, 0].item() == pytest.approx(0.401790831, abs=1e-9)
    assert (plan * cost).sum().item() == pytest.approx(0.176110038, abs=1e-9)
    plan = transport(cost, two, two, 0.1, tolerance=1e-13, most=100_000)
    assert plan[0, 0].item() == pytest.approx(0.499564136, abs=1e-8)
    assert (plan * cost).sum().item() == pytest.approx(0.038363873, abs=1e-8)
    cost = 1 - at(0, 90) @ at(20, 80, 45).T
    plan = transport(cost, two, torch.ones(3, dtype=torch.bool), 0.1, tolerance=1e-13, most=100_000)
    close(plan, [[0.332497158, 0.000100869, 0.167401973], [0.000836175, 0.333232464, 0.165931361]], 1e-8)
    padded = F.pad(cost, (0, 2, 0, 1))
    there = torch.tensor([1, 1, 1, 0, 0]).bool()
    longer = transport(padded, F.pad(two, (0, 1)), there, 0.1, tolerance=1e-13, most=100_000)
    torch.testing.assert_close(longer[:2, :3], plan)
    assert longer[2].sum() == 0 and longer[:, 3:].sum() == 0
    even = transport(cost, two, torch.ones(3, dtype=torch.bool), 1e6)
    torch.testing.assert_close(even, torch.full((2, 3), 1 / 6, **double), atol=1e-6, rtol=0)


def test_tokens_are_asked_for():
    for objective in (o.FILIP(), o.CGVLM(), o.FDT((2, 2), 3, 2)):
        with pytest.raises(ValueError, match=r"needs tokens=\[images"):
            objective(F3)
    with pytest.raises(ValueError, match="masks"):
        o.FILIP().double()(NOTHING, tokens=[PATCHES, WORDS], masks=MASKS[::-1])
    with pytest.raises(ValueError, match="two strong views"):
        o.SwALIP()(F3)
    with pytest.raises(ValueError, match="as many image as text views"):
        o.ImprovedCLIP().double()([*F3, F3[0]])


def test_the_scale_of_cosmo():
    assert LogitScale(math.exp(0.2), None)().item() == pytest.approx(1.2214, abs=1e-4)
