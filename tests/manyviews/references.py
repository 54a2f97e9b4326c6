"""Slow, dense, independent forms of the objectives: loops and full matrices, straight from the papers."""

import math

import torch

T3 = torch.tensor(
    [
        [[1.00, 0.00], [0.60, 0.80], [-0.80, 0.60]],
        [[0.80, 0.60], [-0.28, 0.96], [-0.96, 0.28]],
        [[0.96, -0.28], [0.28, 0.96], [-0.60, 0.80]],
    ],
    dtype=torch.float64,
)


def cosine(views):
    u = [view / view.norm(dim=1, keepdim=True) for view in views]
    return lambda l, i, m, j: torch.dot(u[l][i], u[m][j])  # noqa: E741


def same(group, i, j):
    return i == j or (group is not None and group[i] >= 0 and group[i] == group[j])


def ntxent(views, t, group=None):
    s, n, total = cosine(views), len(views[0]), 0.0
    for a, b in ((0, 1), (1, 0)):
        for i in range(n):
            row = [s(a, i, b, i) / t]
            row += [s(a, i, v, j) / t for v in (0, 1) for j in range(n) if not same(group, i, j)]
            total = total + torch.logsumexp(torch.stack(row), 0) - row[0]
    return total / (2 * n)


def dcl(views, t, sigma=None, group=None):
    s, n, total = cosine(views), len(views[0]), 0.0
    positives = torch.stack([s(0, i, 1, i) for i in range(n)])
    w = torch.ones(n) if sigma is None else 2 - n * torch.softmax(positives / sigma, 0).detach()
    for a in (0, 1):
        for i in range(n):
            row = [s(a, i, v, j) / t for v in (0, 1) for j in range(n) if not same(group, i, j)]
            total = total + torch.logsumexp(torch.stack(row), 0) - w[i] * positives[i] / t
    return total / (2 * n)


def alignment(s, i, v, t):
    return torch.logsumexp(torch.stack([s(a, i, b, i) / t for a in range(v) for b in range(v) if a != b]), 0)


def mv_infonce(views, t, same_view=True, group=None):
    s, n, v, total = cosine(views), len(views[0]), len(views), 0.0
    for i in range(n):
        inner = [
            s(a, i, m, j) / t
            for a in range(v)
            for m in range(v)
            for j in range(n)
            if (m != a if i == j else (same_view or m != a) and not same(group, i, j))
        ]
        total = total + torch.logsumexp(torch.stack(inner), 0) - alignment(s, i, v, t)
    return total / n


def mv_dhel(views, t, ordered=False, group=None):
    s, n, v, total = cosine(views), len(views[0]), len(views), 0.0
    for i in range(n):
        for a in range(v):
            row = [s(a, i, a, j) / t for j in range(n) if not same(group, i, j)]
            total = total + torch.logsumexp(torch.stack(row), 0)
        total = total - alignment(s, i, v, t) + (0 if ordered else math.log(2))
    return total / n


def pwe(views, t, group=None):
    pairs = [(a, b) for a in range(len(views)) for b in range(a)]
    return sum(ntxent([views[a], views[b]], t, group) for a, b in pairs) / len(pairs)


def avg(views, t, group=None):
    """NT-Xent with un-normalised means, written out since `ntxent` above normalises."""
    u = [view / view.norm(dim=1, keepdim=True) for view in views]
    n, total = len(u[0]), 0.0
    for a in range(len(u)):
        mean = torch.stack([u[b] for b in range(len(u)) if b != a]).mean(0)
        z = torch.cat([u[a], mean])
        for r in range(2 * n):
            own, other = r % n, (r + n) % (2 * n)
            row = [z[r] @ z[other] / t] + [z[r] @ z[k] / t for k in range(2 * n) if not same(group, own, k % n)]
            total = total + torch.logsumexp(torch.stack(row), 0) - row[0]
    return total / (len(u) * 2 * n)


def pvc(views, t, kind="geometric", group=None):
    s, n, v, total = cosine(views), len(views[0]), len(views), 0.0
    for i in range(n):
        for a in range(v):
            negatives = [s(a, i, m, j) / t for m in range(v) for j in range(n) if not same(group, i, j)]
            losses = []
            for b in range(v):
                if b != a:
                    pos = s(a, i, b, i) / t
                    losses.append(torch.logsumexp(torch.stack([pos, *negatives]), 0) - pos)
            losses = torch.stack(losses)
            total = total + (losses.mean() if kind == "geometric" else -torch.log(torch.exp(-losses).mean()))
    return total / (n * v)


# Objectives with a second side (`targets`), labels, state, or statistics of the batch.


def rows_of(views):
    return [view / view.norm(dim=1, keepdim=True) for view in views]


def infonce(views, targets, t, bank=None, scale="mean", group=None):
    total = 0.0
    for q, k in zip(rows_of(views), rows_of(targets), strict=True):
        each = 0.0
        for i in range(len(q)):
            row = [q[i] @ k[i] / t]
            if bank is None:
                row += [q[i] @ k[j] / t for j in range(len(q)) if not same(group, i, j)]
            else:
                row += [q[i] @ b / t for b in bank]
            each = each + torch.logsumexp(torch.stack(row), 0) - row[0]
        total = total + each / len(q)
    return 2 * t * total if scale == "official" else total / len(views)


def byol(views, targets):
    pairs = list(zip(rows_of(views), rows_of(targets), strict=True))
    return sum(((p - z) ** 2).sum(1).mean() for p, z in pairs)


def hallucinated(q, k, r, layers):
    """Row by row: away from the key, then three linear layers with ReLUs between."""
    made = []
    for one, key in zip(q, k, strict=True):
        x = torch.cat([one, (1 + r) * one - r * key])
        for place, layer in enumerate(layers):
            x = layer.weight @ (x if place == 0 else x.clamp(min=0)) + layer.bias
        made.append(x)
    return torch.stack(made)


def hallucinated_ntxent(q, h, k, t, group=None, as_released=False):
    """Anchors and candidates are q, h and two copies of k; h's positive is the second copy."""
    n, total = len(q), 0.0
    z = rows_of([q, h, k, k])
    for own, other in ((0, 2), (1, 3), (2, 0), (3, 1)):
        for i in range(n):
            row = [z[own][i] @ z[other][i] / t]
            for kind in range(4):
                for j in range(n):
                    if (kind, j) in ((own, i), (other, i)):
                        continue
                    twin = i == j and (group is None or group[i] < 0)
                    if not same(group, i, j) or (twin and as_released):
                        row.append(z[own][i] @ z[kind][j] / t)
            total = total + torch.logsumexp(torch.stack(row), 0) - row[0]
    return total / (4 * n)


def correlation(a, b, eps):
    n = len(a)
    a, b = (x - x.mean(0) for x in (a, b))
    a, b = (x / ((x**2).mean(0) + eps).sqrt() for x in (a, b))
    return torch.stack([torch.stack([(x * y).sum() / n for y in b.T]) for x in a.T])


def barlow(views, redundancy, eps):
    c, total = correlation(*views, eps), 0.0
    for l in range(len(c)):  # noqa: E741
        for m in range(len(c)):
            total = total + ((c[l, m] - 1) ** 2 if l == m else redundancy * c[l, m] ** 2)
    return total


def vicreg(views):
    a, b = views
    total = 25 * ((a - b) ** 2).mean()
    for z in views:
        c = torch.cov(z.T)
        total = total + 25 * (1 - (z.var(0) + 1e-4).sqrt()).clamp(min=0).mean() / 2
        total = total + ((c**2).sum() - (c.diagonal() ** 2).sum()) / z.shape[1]
    return total


def balanced(scores, epsilon, iterations=3):
    """Sinkhorn as in the paper: on exponentials, prototypes first."""
    q = torch.exp((scores - scores.max()) / epsilon).T
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def swav(views, prototypes, t, epsilon, large=2):
    z, w, total, count = rows_of(views), prototypes, 0.0, 0  # of length 1, and learnt as they are
    for a in range(large):
        q = balanced((z[a] @ w.T).detach(), epsilon)
        for v in range(len(z)):
            if v != a:
                total = total - (q * torch.log_softmax(z[v] @ w.T / t, 1)).sum(1).mean()
                count += 1
    return total / count


def nnclr(views, targets, support, t, decoupled=False, group=None):
    total = 0.0
    for p, z in zip(rows_of(views), rows_of(targets), strict=True):
        each = 0.0
        for i in range(len(p)):
            nearest = support[max(range(len(support)), key=lambda m: (z[i] @ support[m]).item())]
            positive = nearest @ p[i] / t
            row = [nearest @ p[j] / t for j in range(len(p)) if not same(group, i, j)]
            row += [] if decoupled else [positive]
            each = each + torch.logsumexp(torch.stack(row), 0) - positive
        total = total + each / len(p)
    return total / len(views)


def mochi(views, targets, bank, t, hard, draws):
    (q,), (k,), total = rows_of(views), rows_of(targets), 0.0
    for i in range(len(q)):
        near = sorted(range(len(bank)), key=lambda m: -(q[i] @ bank[m]).item())[:hard]
        mixed = [
            a * bank[near[f]] + (1 - a) * bank[near[s]] for f, s, a in zip(*(x[i] for x in draws[:3]), strict=True)
        ]
        mixed += [b * q[i].detach() + (1 - b) * bank[near[f]] for f, b in zip(*(x[i] for x in draws[3:]), strict=True)]
        row = [q[i] @ k[i], *(q[i] @ b for b in bank), *(q[i] @ (h / h.norm()) for h in mixed)]
        row = torch.stack(row) / t
        total = total + row.logsumexp(0) - row[0]
    return total / len(q)


def sogclr(views, t, log_u=None, gamma=1.0, group=None):
    """t: a number an image. Value and gradient of the surrogate; no state: u as given, or the batch's own g."""
    (a, b), n, total = rows_of(views), len(views[0]), 0.0
    for anchors, others in ((a, b), (b, a)):
        for i in range(n):
            s = torch.stack([anchors[i] @ z[j] for z in (a, b) for j in range(n) if not same(group, i, j)])
            g = torch.exp(s / t[i]).mean().detach()
            u = g if log_u is None else (1 - gamma) * log_u[i].exp() + gamma * g
            total = total - anchors[i] @ others[i] + (torch.exp(s / t[i]).detach() / u * s).mean()
    return total / n


def cmim(views, mean, log_scale, t, log_likelihood=None, group=None):
    (z,), total = views, 0.0
    (u,) = rows_of(views)
    q, prior = torch.distributions.Normal(mean, log_scale.exp()), torch.distributions.Normal(0.0, 1.0)
    n = len(z)
    for i in range(n):
        others = [torch.exp(u[i] @ u[j] / t) for j in range(n) if not same(group, i, j)]
        negatives = sum(others) / (n - 1)
        total = total - torch.log(math.exp(1 / t) / (math.exp(1 / t) + negatives))
        total = total - 0.5 * (q.log_prob(z)[i].sum() + prior.log_prob(z)[i].sum())
        total = total - (0 if log_likelihood is None else log_likelihood[i])
    return total / n


def hard(views, t, keep, group=None):
    s, n, total = cosine(views), len(views[0]), 0.0
    for a in (0, 1):
        for i in range(n):
            negatives = [s(a, i, v, j) / t for v in (0, 1) for j in range(n) if not same(group, i, j)]
            kept = sorted(negatives, key=lambda x: -x.item())[:keep]
            positive = s(a, i, 1 - a, i) / t
            total = total + torch.logsumexp(torch.stack([positive, *kept]), 0) - positive
    return total / (2 * n)


def supcon(views, label, t):
    z, n = torch.cat(rows_of(views)), len(label)
    m, total = len(z), 0.0
    for r in range(m):
        row = [z[r] @ z[k] / t for k in range(m) if k != r]
        mine = label[r % n]
        positives = [
            z[r] @ z[k] / t for k in range(m) if k != r and (k % n == r % n or (mine >= 0 and label[k % n] == mine))
        ]
        total = total + torch.logsumexp(torch.stack(row), 0) - sum(positives) / len(positives)
    return total / m


def amcl(views, heads, d, tau, negatives, beta, targets=None, bank=None, group=None):
    """`tau(c, a, b)`: the temperature of a pair of rows in head c."""

    def energy(c, a, b):
        x = tau(c, a, b)
        return a @ b / x - beta * (d / 2 * torch.log(x) + 1 / x)

    n, total, pairs = len(views[0]), 0.0, 0
    split = lambda z: rows_of(z.split(d, 1))  # noqa: E731
    if targets is None:
        v = [split(view) for view in views]
        sides = [(v[0], v[1], (v[0], v[1])), (v[1], v[0], (v[0], v[1]))]
    else:
        sides = [(split(q), split(k), (split(k),)) for q, k in zip(views, targets, strict=True)]
    for anchors, positives, candidates in sides:
        pairs += 1
        for c in range(heads):
            for i in range(n):
                a, plus = anchors[c][i], energy(c, anchors[c][i], positives[c][i])
                if bank is None:
                    keys = [k[c][j] for k in candidates for j in range(n) if not same(group, i, j)]
                else:
                    keys = list(split(bank)[c])
                if negatives == "max":
                    push = energy(c, a, max(keys, key=lambda k: (a @ k).item()))
                else:
                    row = [energy(c, a, k) for k in keys] + ([plus] if negatives == "lse+pos" else [])
                    push = torch.logsumexp(torch.stack(row), 0)
                total = total + push - plus
    return total / (n * pairs)


def hydra(views, label, partner, gate, scale, renormalise=True, per_anchor=False, targets=None):
    pairs = [(views[0], views[1]), (views[1], views[0])] if targets is None else list(zip(views, targets, strict=True))
    result = 0.0
    for q, k in pairs:
        if not renormalise:
            q, k = rows_of([q, k])
        terms = []
        for i in range(len(q)):
            if label[i] < 0:
                continue
            logit = {}
            for j in range(len(k)):
                a, b = q[i] * gate[i], k[j] * gate[i]
                logit[j] = scale * (a @ b / (a.norm() * b.norm()) if renormalise else a @ b)
            negatives = [x for j, x in logit.items() if label[j] >= 0 and label[j] not in (label[i], partner[i])]
            mine = [
                torch.logsumexp(torch.stack([logit[j], *negatives]), 0) - logit[j]
                for j in range(len(k))
                if label[j] >= 0 and label[j] == partner[i]
            ]
            terms += [torch.stack(mine).mean()] if per_anchor and mine else [] if per_anchor else mine
        result = result + torch.stack(terms).mean()
    return result / len(pairs)


# Second list.


def whiten(z):
    centred = z - z.mean(0)
    return centred @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T


def wmse(views):
    w, total, pairs = [whiten(view) for view in views], 0.0, 0
    for a in range(len(w)):
        for b in range(a):
            total = total + (2 - 2 * torch.cosine_similarity(w[a], w[b], dim=1)).mean()
            pairs += 1
    return total / pairs


def zca(z, eps):
    centred = z - z.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(z) + eps * torch.eye(z.shape[1], dtype=z.dtype))
    return centred @ vectors @ torch.diag(values**-0.5) @ vectors.T


def grouped(z, groups, order, eps):
    parts = z[:, order].chunk(groups, 1)
    return torch.cat([zca(part, eps) for part in parts], 1)[:, torch.argsort(order)]


def weighted(views, weight, t):
    """`weight(i, j)`; anchors in view 0, keys in view 1."""
    (a, b), n, total = rows_of(views), len(views[0]), 0.0
    for i in range(n):
        inner = sum(weight(i, j) * torch.exp(a[i] @ b[j] / t) for j in range(n))
        total = total - a[i] @ b[i] / t + torch.log(inner)
    return total / n


def repulsion(z, bank, t, distance):
    n, total, count = len(z), 0.0, 0
    for i in range(n):
        for j in [*range(n), *range(n, n + len(bank))]:
            if j != i:
                q = z[j] if j < n else bank[j - n]
                close = torch.exp(-((z[i] - q) ** 2).sum() / t if distance == "euclidean" else z[i] @ q / t)
                total, count = total + close, count + 1
    return torch.log(total / count)


def simhand(views, joints, t):
    z, poses = torch.cat(rows_of(views)), torch.cat([joints[:, 0], joints[:, 1]])
    m, n, total = len(z), len(joints), 0.0
    d = torch.stack([torch.stack([(a - b).norm(dim=1).mean() for b in poses]) for a in poses])
    pairs = torch.stack([d[i, i + n] for i in range(n)])
    w_pair = (pairs.max() - pairs) / (pairs.max() - pairs.min())
    w = (d.max() - d) / (d.max() - d.min())
    for r in range(m):
        row = torch.stack([w[r, j] * (z[r] @ z[j]) / t for j in range(m) if j != r])
        total = total + row.logsumexp(0) - w_pair[r % n] * (z[r] @ z[(r + n) % m]) / t
    return total / m


def sepclr(views, salient, label, t, b_s, b_r, l_j):
    c, n = rows_of(views), len(label)
    k = lambda x, y: torch.exp(-((x - y) ** 2).sum() / (2 * t))  # noqa: E731
    unif = lambda x: torch.log(sum(k(x[i], x[j]) for i in range(n) for j in range(i)) / (n * (n - 1) / 2))  # noqa: E731

    def align(x, y, rows):
        return sum(((x[i] - y[i]) ** 2).sum() / (2 * t) for i in rows) / max(len(rows), 1)

    target = [i for i in range(n) if label[i] == 1]
    rest = [i for i in range(n) if label[i] != 1]
    masked = [torch.stack([s[i] if i in target else 0 * s[i] for i in range(n)]) for s in salient]
    common = align(c[0], c[1], range(n)) + unif(c[0]) + unif(c[1])
    apart = align(salient[0], salient[1], target) + unif(masked[0]) + unif(masked[1])
    silent = sum(align(0 * s, s, rest) for s in salient) / 2
    jem = sum(
        torch.log(sum(k(a[i], a[j]) * k(b[i], b[j]) for j in range(n)) / n)
        for a, b in zip(c, masked, strict=True)
        for i in range(n)
    )
    return common + b_s * apart + b_r * silent + l_j * jem / (2 * n)


def supremix(views, target, draws, t, delta, share_of_anchor):
    (z,), n, terms = rows_of(views), len(target), []
    share, below, above = draws
    order = sorted(range(n), key=lambda i: (target[i].item(), i))
    for i in range(n):
        positive = [z[i] @ z[p] / t for p in range(n) if p != i and abs(target[p] - target[i]) <= delta]
        low = [j for j in order if target[j] < target[i]]
        high = [j for j in order if target[j] > target[i]]
        if low and high:
            j, k = low[int(below[i] * len(low))], high[int(above[i] * len(high))]
            w = (target[k] - target[i]) / (target[k] - target[j])
            assert abs(w * target[j] + (1 - w) * target[k] - target[i]) < 1e-12
            m = w * z[j] + (1 - w) * z[k]
            positive.append(z[i] @ (m / m.norm()) / t)
        a, negative, omega = share_of_anchor * share[i], [], []
        for q in range(n):
            gap = abs(target[q] - target[i])
            if gap > delta:
                m = a * z[i] + (1 - a) * z[q]
                negative += [z[i] @ z[q] / t, z[i] @ (m / m.norm()) / t]
                omega += [gap, (1 - a) * gap]
        if positive:
            weights = [x / (sum(omega) / len(omega)) for x in omega]
            below_line = sum(torch.exp(p) for p in positive)
            below_line = below_line + sum(x * torch.exp(s) for x, s in zip(weights, negative, strict=True))
            terms.append(sum(torch.log(below_line) - p for p in positive) / len(positive))
    return sum(terms) / len(terms)


def palm(views, label, prototypes, classes, m, nearest, t, t_prototypes, epsilon):
    z, y = torch.cat(rows_of(views)), label.repeat(len(views))
    own = torch.stack([torch.tensor([float(p % classes == c) for p in range(len(prototypes))]) for c in y]).double()
    q = balanced((z @ prototypes.T).detach(), epsilon) * own
    for row in q:
        row[row < row.sort(descending=True).values[nearest - 1]] = 0
    kept = q > 0
    w = q / q.sum(1, keepdim=True)
    moved = m * prototypes + (1 - m) * (w / w.sum(0, keepdim=True).clamp_min(1e-12)).T @ z
    (moved,) = rows_of([moved])
    again = balanced((z @ moved.T).detach(), epsilon) * kept
    again = again / again.sum(1, keepdim=True)
    s = z @ moved.detach().T / t
    mle = -(((again * s).sum(1)) - s.logsumexp(1)).mean()
    total = 0.0
    for p in range(len(moved)):
        others = [k for k in range(len(moved)) if k != p]
        row = {k: moved[p] @ moved[k] / t_prototypes for k in others}
        same_class = [k for k in others if k % classes == p % classes]
        lse = torch.logsumexp(torch.stack(list(row.values())), 0)
        total = total - sum(row[k] - lse for k in same_class) / max(len(same_class), 1)
    return mle + total / len(moved)


def bacon(views, label, logits, t, t_all, w, t_prediction, balance):
    p = sum(torch.softmax(x / t_prediction, 1) for x in logits) / 2
    z, n = torch.cat(rows_of(views)), len(label)

    def soft(rows, weight):
        total = 0.0
        for r in rows:
            others = [j for j in rows if j != r]
            lse = torch.logsumexp(torch.stack([z[r] @ z[j] / t for j in others]), 0)
            ws = [weight(r % n, j % n) for j in others]
            total = total - sum(x * (z[r] @ z[j] / t - lse) for x, j in zip(ws, others, strict=True)) / sum(ws)
        return total / len(rows)

    labelled = [r for r in range(2 * n) if label[r % n] >= 0]
    supervised = soft(labelled, lambda i, j: float(label[i] == label[j]))
    guessed = soft(range(2 * n), lambda i, j: 1.0 if i == j else (p[i] @ p[j]).detach())
    mean = p.mean(0)
    known = [i for i in range(n) if label[i] >= 0]
    classified = -sum(torch.log_softmax(x / t_prediction, 1)[i, label[i]] for x in logits for i in known) / (
        2 * len(known)
    )
    entropy = -(mean * mean.log()).sum()
    contrast = (1 - w) * ntxent(views, t_all) + w / 2 * supervised + w / 2 * guessed
    distilled = 0.0
    for a, b in ((0, 1), (1, 0)):
        sharp = torch.softmax(2 * logits[a].detach() / t_prediction, 1)
        distilled = distilled - (sharp * torch.log_softmax(logits[b] / t_prediction, 1)).sum(1).mean() / 2
    unbalanced = math.log(p.shape[1]) - entropy
    return contrast + w * classified + (1 - w) * (distilled + balance * unbalanced)


def cpl(logits, features, label, noise, pair, pseudo, entropy, accept, parts):
    (z,), n = rows_of([features]), len(label)
    p, strong = torch.softmax(logits[0], 1), torch.log_softmax(logits[1], 1)
    first = second = third = 0.0
    known = [i for i in range(n) if label[i] >= 0]
    for i in range(n):
        allowed = [j for j in range(n) if j != i]
        mine = [j for j in allowed if label[i] >= 0 and label[j] == label[i]]
        allowed = mine or allowed
        partner = max(allowed, key=lambda j: (z[i] @ z[j]).item())
        votes = [max(allowed, key=lambda j: torch.cosine_similarity(a[i], a[j], dim=0).item()) for a in parts.unbind(1)]
        elected = min(range(n), key=lambda j: (-votes.count(j), j))
        partner = elected if votes.count(elected) > votes.count(partner) else partner
        first = first - torch.log(p[i] @ p[partner])
        if label[i] >= 0:
            second = second - torch.log(p[i, label[i]])
        else:
            drawn = torch.softmax(torch.log(p[i].detach()) + noise[i], 0)
            c = p[i, drawn.argmax()].item()
            third = third - (c if c > accept else 0.0) * (drawn * strong[i]).sum()
    mean = p.mean(0)
    return second / len(known) + pair * first / n + pseudo * third / n + entropy * (mean * mean.log()).sum()


def beclr(views, targets, items, cluster, prototypes, k, spread, tau, projections=None):
    losses = []
    for p, z in zip(rows_of(views), rows_of(targets), strict=True):
        cosines, n = [], len(p)
        for i in range(n):
            mine = int((prototypes @ z[i]).argmax())
            members = [j for j in range(len(items)) if cluster[j] == mine]
            near = sorted(members, key=lambda j: -(z[i] @ items[j]).item())[:k]
            cosines += [p[i] @ z[i], *(p[i] @ items[j] for j in near)]
        losses.append(-sum(cosines) / len(cosines))
    s, far = torch.stack(rows_of(views if projections is None else projections), 1), 0.0  # (n, V, D)
    others = [(i, j) for i in range(n) for j in range(n) if i != j]
    for i, j in others:
        far = far + torch.exp(s[i] @ s[j].T / tau).sum()
    return sum(losses) / len(losses) + spread * torch.log(far / (len(others) * s.shape[1] ** 2))


def dino(views, targets, centre, student, teacher):
    """Crop by crop, image by image, prototype by prototype."""
    terms = []
    for g, target in enumerate(targets):
        for v, view in enumerate(views):
            if v == g:
                continue
            for t, s in zip(target.detach(), view, strict=True):
                weights = [math.exp((t[k] - centre[k]) / teacher) for k in range(len(t))]
                total = torch.stack([(s[k] / student).exp() for k in range(len(s))]).sum()
                terms.append(sum(-w / sum(weights) * (s[k] / student - total.log()) for k, w in enumerate(weights)))
    return torch.stack(terms).mean()
