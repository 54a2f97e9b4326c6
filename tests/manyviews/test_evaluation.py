"""The protocols: worked numbers, dense references, and that nothing leaks or changes."""

import json
import math

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import nn

from manyviews.backbones import Encoding
from manyviews.distributed import simulate
from manyviews.evaluation import KNN, Features, FewShot, LinearProbe, LogisticRegression, Outliers, Retrieval, extract
from manyviews.evaluation.fewshot import transport_plan, transported
from manyviews.evaluation.knn import knn_votes
from manyviews.evaluation.linear import split
from manyviews.evaluation.outliers import auroc, fpr95
from manyviews.evaluation.protocol import save
from manyviews.evaluation.retrieval import retrieval_ranks
from tests.manyviews.references import T3


def features(views, label=None, group=None):
    n = views.shape[1]
    unknown = torch.full((n,), -1)
    return Features(views, unknown if label is None else label, torch.arange(n), unknown if group is None else group)


def clusters(n, d=16, classes=5, noise=1.0, views=1, seed=0):
    """A learnable problem: class centres plus noise."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(9)) * 2
    label = torch.randint(0, classes, (n,), generator=generator)
    return features(centres[label] + noise * torch.randn(views, n, d, generator=generator), label)


def test_knn_gives_the_cards_numbers():
    bank = torch.cat([T3[0], T3[1]])
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    queries = torch.tensor([[0.9, 0.1], [-0.5, 0.5]], dtype=torch.float64)
    votes = knn_votes(queries, bank, label, 3, (3, 3), (0.07, 0.1))
    shares = [v / v.sum(1, keepdim=True) for v in votes]
    expected = [
        [[0.989621, 0.010379, 0], [0, 0.142164, 0.857836]],
        [[0.965369, 0.034631, 0], [0, 0.196082, 0.803918]],
    ]
    torch.testing.assert_close(torch.stack(shares), torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)


def test_knn_limits():
    data = clusters(60)
    assert KNN((1,), (0.07,)).evaluate(data, data).scores["knn1"] == 1.0  # its own nearest neighbour
    x, y = data.flat()
    majority = knn_votes(x[:10], x, y, 5, (7,), (1e6,))[0]
    nearest = torch.topk(nn.functional.normalize(x[:10]) @ nn.functional.normalize(x).T, 7).indices
    counts = torch.stack([torch.bincount(y[row], minlength=5) for row in nearest])
    torch.testing.assert_close(majority, counts.float(), atol=1e-3, rtol=0)
    assert torch.isfinite(knn_votes(x, x, y, 5, (20,), (1e-4,))[0]).all()  # exp(1 / T) alone would overflow
    few = KNN((200,), (0.1,)).evaluate(clusters(30), clusters(11, seed=1))  # k larger than the bank
    assert 0 <= few.scores["knn200"] <= 1
    with pytest.raises(ValueError, match="one temperature > 0 for each k"):
        KNN((20, 200), (0.07,))


def test_unknown_labels_are_left_out_and_none_at_all_is_an_error():
    data = clusters(50)
    data.label[:10] = -1
    assert KNN((5,), (0.1,)).evaluate(data, data).details["bank"] == 40
    with pytest.raises(ValueError, match="needs labels in both splits: 0 train"):
        KNN().evaluate(features(torch.randn(1, 5, 3)), data)


@pytest.mark.parametrize(
    "protocol", [LinearProbe(lr=(0.03, 0.3), weight_decay=(0.0, 1e-3), epochs=20), LogisticRegression()]
)
def test_linear_protocols_learn_and_report_their_choice(protocol):
    train, val = clusters(600, views=2), clusters(300, views=2, seed=1)
    result = protocol.evaluate(train, val)
    score = result.scores[protocol.name]
    assert score > 0.9
    assert len(result.details["per_seed"]) == len(result.details["chosen"]) == 3
    assert result.confusion.sum() == 3 * 600
    accuracy = result.confusion.diagonal().sum() / result.confusion.sum()
    assert accuracy.item() == pytest.approx(score, abs=1e-6)
    assert protocol.evaluate(train, val).scores == result.scores  # a protocol is a function


@pytest.mark.parametrize("protocol", [LinearProbe(epochs=3), LogisticRegression()])
def test_accuracy_by_class_counts_rare_classes_like_common_ones(protocol):
    """Against scikit-learn's balanced accuracy; one class is not in val at all."""
    train, val = clusters(400, noise=5.0), clusters(300, seed=1, noise=5.0)
    val = val.subset(torch.nonzero((val.label != 4) & ((val.label != 3) | (torch.arange(300) % 7 == 0)))[:, 0])
    result = protocol.evaluate(train, val)
    cells = torch.nonzero(result.confusion)
    true, predicted, count = cells[:, 0], cells[:, 1], result.confusion[cells[:, 0], cells[:, 1]]
    expected = balanced_accuracy_score(true, predicted, sample_weight=count)
    assert result.scores[f"{protocol.name}_per_class"] == pytest.approx(expected, abs=1e-6)
    assert abs(expected - result.scores[protocol.name]) > 0.001


@pytest.mark.parametrize("protocol", [LinearProbe(lr=(0.03, 3.0), weight_decay=(0.0,), epochs=5), LogisticRegression()])
def test_no_choice_sees_val(protocol):
    """Replacing val by noise changes the score, never what was chosen."""
    train, val, noise = clusters(400), clusters(100, seed=1), clusters(100, seed=2)
    noise.label = noise.label[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    chosen = [protocol.evaluate(train, v).details["chosen"] for v in (val, noise)]
    assert chosen[0] == chosen[1]


def test_linear_probe_equals_plain_sgd():
    """One setting of the grid, against torch's own SGD and cross-entropy with the same batches."""
    probe = LinearProbe(lr=(0.1, 0.5), weight_decay=(0.0, 0.01), epochs=3, batch_size=64)
    train, val = clusters(300, noise=4.0), clusters(200, seed=1, noise=4.0)
    settings = [(0.1, 0.0), (0.5, 0.01)]
    predicted = probe._predict(train, val, 5, settings, seed=4)
    x, y = train.flat()
    mean, std = x.mean(0), x.std(0)
    for g, (lr, decay) in enumerate(settings):
        layer = nn.Linear(16, 5)
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
        groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias]}]
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
        generator, step = torch.Generator().manual_seed(4), 0
        for _ in range(3):
            for rows in torch.randperm(300, generator=generator).split(64)[:4]:
                for group in optimizer.param_groups:
                    group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / 12))
                optimizer.zero_grad()
                nn.functional.cross_entropy(layer((x[rows] - mean) / std), y[rows]).backward()
                optimizer.step()
                step += 1
        expected = layer((val.flat()[0] - mean) / std).argmax(1)
        assert (predicted[:, g] == expected).float().mean() > 0.995


def test_held_out_keeps_views_and_duplicates_together():
    group = torch.full((100,), -1)
    group[[3, 50, 99]] = 7
    data = features(torch.randn(2, 100, 4), torch.zeros(100, dtype=torch.int64), group)
    for seed in range(20):
        fit, held = split(data, 0.1, seed)
        assert not set(fit.index.tolist()) & set(held.index.tolist())
        assert len(fit.index) + len(held.index) == 100
        assert len({(3 in part, 50 in part, 99 in part) for part in [held.index.tolist()]}) == 1
        assert (held.group == 7).sum() in (0, 3)


def test_retrieval_against_a_dense_reference_with_ties_and_duplicates():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-2, 3, (40, 3), generator=generator).float() + 0.5  # coarse: many ties
    b = torch.randint(-2, 3, (40, 3), generator=generator).float() + 0.5
    group = torch.full((40,), -1)
    group[[1, 5, 30]] = 4
    ranks = retrieval_ranks(a, b, group)
    ua, ub = nn.functional.normalize(a, dim=1), nn.functional.normalize(b, dim=1)
    s = ua @ ub.T
    for i in range(40):
        right = [j for j in range(40) if j == i or (group[i] >= 0 and group[i] == group[j])]
        order = sorted(range(40), key=lambda j: (-s[i, j].item(), j))
        wrong_before = 0
        for j in order:
            if j in right:
                break
            wrong_before += 1
        assert ranks[i] == wrong_before
    assert (retrieval_ranks(a, a, group)[group >= 0] == 0).all()


def test_retrieval_reports_both_directions_and_needs_two_views():
    result = Retrieval((1, 5)).evaluate(features(T3.float()), features(T3.float()))
    assert len([k for k in result.scores if "to" in k]) == 3 * 2 * 2 and "retrieval_r5" in result.scores
    with pytest.raises(ValueError, match="2 or more natural views, these have 1"):
        Retrieval().evaluate(features(T3[:1]), features(T3[:1]))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.body[2].eval()  # a part that was in eval mode before must be so afterwards

    def embed(self, batch):
        return [Encoding(self.body(view)) for view in batch["image"]]


def loader(start=0, stop=10, size=4):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 10, 3, 2, 2, generator=generator)
    for low in range(start, stop, size):
        rows = torch.arange(low, min(low + size, stop))
        pad = size - len(rows)
        yield {
            "image": [torch.cat([v[rows], torch.full((pad, 3, 2, 2), 1e6)]) for v in images],
            "label": torch.cat([rows % 3, torch.full((pad,), -1)]),
            "index": torch.cat([9 - rows, torch.full((pad,), -1)]),
            "group": torch.full((size,), -1),
            "weight": torch.cat([torch.ones(len(rows)), torch.zeros(pad)]),
            "key": [f"k{9 - i}" for i in rows.tolist()] + [""] * pad,
        }


def test_extraction_leaves_the_model_and_the_random_state_as_they_were():
    net = Net()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    before = torch.get_rng_state()
    found = extract(net, net.embed, loader())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    assert not found.views.requires_grad
    assert found.views.shape == (2, 10, 6) and found.index.tolist() == list(range(10))  # sorted, padding gone
    assert found.key == [f"k{i}" for i in range(10)] and found.views.abs().max() < 100
    again = extract(net, net.embed, loader(size=5))
    torch.testing.assert_close(found.views, again.views)


def test_ranks_share_the_work_and_all_get_everything():
    net = Net().eval()
    whole = extract(net, net.embed, loader())

    def rank(gather):
        mine = loader(0, 6) if gather.rank == 0 else loader(6, 10)
        return extract(net, net.embed, mine, gather)

    for found in simulate(2, rank):
        torch.testing.assert_close(found.views, whole.views)
        assert torch.equal(found.label, whole.label) and torch.equal(found.index, whole.index)


def test_a_number_is_written_with_its_protocol(tmp_path):
    protocol = KNN((5,), (0.1,))
    result = protocol.evaluate(clusters(50), clusters(20, seed=1))
    save(tmp_path / "a/knn.json", protocol, result, {"step": 3})
    content = json.loads((tmp_path / "a/knn.json").read_text())
    assert content["protocol"] == {"protocol": "KNN", "k": [5], "temperature": [0.1]}
    assert content["scores"] == result.scores and content["step"] == 3


# Few shots, outliers.


def clouds(classes=6, each=40, spread=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(classes).repeat_interleave(each)
    z = torch.eye(8)[label] + spread * torch.randn(len(label), 8, generator=generator)
    return Features(z[None], label, torch.arange(len(label)), torch.full((len(label),), -1))


def test_fewshot_rises_with_shots_and_with_transport():
    data = clouds(spread=0.55)
    score = lambda **o: next(iter(FewShot(**o, episodes=80).evaluate(data, data).scores.values()))  # noqa: E731
    one, five = score(), score(shots=5)
    assert 0.4 < one < five < 1
    assert score(transport=3) > one + 0.02
    assert score() == one  # the episodes are fixed
    with pytest.raises(ValueError, match="needs 7 classes of 16 samples or more in val, there are 6"):
        FewShot(ways=7).evaluate(data, data)


def test_transport_plan_has_even_marginals_and_keeps_what_is_at_its_place():
    cost = torch.rand(3, 12, generator=torch.Generator().manual_seed(0))
    plan = transport_plan(cost, 0.1)
    torch.testing.assert_close(plan.sum(1), torch.full((3,), 1 / 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(plan.sum(0), torch.full((12,), 1 / 12), atol=1e-5, rtol=0)
    means = torch.eye(3)
    torch.testing.assert_close(transported(means, means, 0.01), means)


def test_outliers():
    data = clouds(spread=0.1)
    same, far = clouds(spread=0.1, seed=1), clouds(spread=0.1, seed=2)
    far = Features(-far.views, far.label, far.index, far.group)
    found = Outliers().against(data, same, far).scores
    assert found["outliers_auroc"] > 0.99 and found["outliers_fpr95"] < 0.05
    chance = Outliers().against(data, same, clouds(spread=0.1, seed=3)).scores
    assert chance["outliers_auroc"] == pytest.approx(0.5, abs=0.06)
    assert auroc(torch.tensor([3.0, 4]), torch.tensor([1.0, 2])) == 1
    assert fpr95(torch.arange(100.0), torch.tensor([-1.0, 4, 5, 50])) == 0.5
    with pytest.raises(ValueError, match="needs a second data set"):
        Outliers().evaluate(data, data)
