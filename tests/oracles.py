"""Literal float64 oracles: plain NumPy loops written from the equations of the paper, not from the code."""

import numpy as np


def affinity(left_ND, right_MD, weight_D):
    """Equations 2 and 3 after the ReLU of equation 4, one pair of nodes and one channel at a time."""
    out_NM = np.zeros((len(left_ND), len(right_MD)))
    for i, left_D in enumerate(left_ND):
        for j, right_D in enumerate(right_MD):
            total = 0.0
            for a, w, b in zip(left_D, weight_D, right_D, strict=True):
                total += float(a) * float(w) * float(b)
            out_NM[i, j] = max(total, 0.0)
    return out_NM


def full_graph(nodes_u_ND, nodes_v_MD, intra_weight_D, cross_weight_D):
    """Equation 4: all four blocks, the lower left one computed from v to u and not by transposition."""
    upper = [
        affinity(nodes_u_ND, nodes_u_ND, intra_weight_D),
        affinity(nodes_u_ND, nodes_v_MD, cross_weight_D),
    ]
    lower = [
        affinity(nodes_v_MD, nodes_u_ND, cross_weight_D),
        affinity(nodes_v_MD, nodes_v_MD, intra_weight_D),
    ]
    return np.concatenate([np.concatenate(upper, axis=1), np.concatenate(lower, axis=1)])


def graph_conv(graph_LL, nodes_LD, theta_DF, kind):
    """Equations 6 and 7, node by node: x_i +- sum_j a_ij / sqrt(d_i d_j) x_j, then theta; an isolated node keeps x_i."""
    sign = {"discrepancy": -1.0, "normal": 1.0}[kind]
    degree_L = [sum(float(a) for a in row) for row in graph_LL]
    out_LD = []
    for i, node_D in enumerate(nodes_LD):
        total_D = np.array(node_D, np.float64)
        for j, other_D in enumerate(nodes_LD):
            if degree_L[i] > 0 and degree_L[j] > 0:
                total_D = total_D + sign * graph_LL[i][j] / np.sqrt(degree_L[i] * degree_L[j]) * other_D
        out_LD.append(total_D)
    out_LD = np.stack(out_LD)
    return out_LD if theta_DF is None else out_LD @ np.asarray(theta_DF, np.float64)


def pair_maps(nodes_u_ND, nodes_v_MD, intra_weight_D, cross_weight_D, theta_DF=None, kind="discrepancy"):
    """Equations 2-7: the conditional maps of u given v and of v given u."""
    graph_LL = full_graph(nodes_u_ND, nodes_v_MD, intra_weight_D, cross_weight_D)
    out_LF = graph_conv(graph_LL, np.concatenate([nodes_u_ND, nodes_v_MD]).astype(np.float64), theta_DF, kind)
    return out_LF[: len(nodes_u_ND)], out_LF[len(nodes_u_ND) :]


def cross_entropy(logits_I, label):
    """Equation 1 with its minus sign and without the stray 1/C."""
    exps_I = np.exp(np.asarray(logits_I, np.float64) - np.max(logits_I))
    return -np.log(exps_I[label] / exps_I.sum())


def mixup(logits_BBC, labels_B, alpha):
    """Equation 8 over the whole grid, divided by its size."""
    total = 0.0
    for u, target in enumerate(labels_B):
        for v, context in enumerate(labels_B):
            total += alpha * cross_entropy(logits_BBC[u, v], target)
            total += (1 - alpha) * cross_entropy(logits_BBC[u, v], context)
    return total / len(labels_B) ** 2


def batch_hard(distance_BB, labels_B, margin):
    """Mean over anchors with a positive and a negative of max(0, margin + furthest positive - nearest negative)."""
    losses = []
    for a, label in enumerate(labels_B):
        positives = [distance_BB[a, j] for j, other in enumerate(labels_B) if other == label and j != a]
        negatives = [distance_BB[a, j] for j, other in enumerate(labels_B) if other != label]
        if positives and negatives:
            losses.append(max(0.0, margin + max(positives) - min(negatives)))
    return sum(losses) / len(losses) if losses else 0.0


def pair_case(case, seed=0, num_u=5, num_v=4, channels=3):
    """Nodes of two images and the weights w, w' of a named situation, float64."""
    rng = np.random.default_rng(seed)
    if case == "one_node":
        num_u = num_v = 1
    nodes_u_ND, nodes_v_MD = rng.standard_normal((num_u, channels)), rng.standard_normal((num_v, channels))
    weights = [rng.standard_normal(channels) for _ in range(2)]
    if case == "isolated":  # some nodes of either image are zero, as after a ReLU
        nodes_u_ND[1], nodes_v_MD[-1] = 0, 0
    elif case == "all_isolated":
        nodes_u_ND, nodes_v_MD = abs(nodes_u_ND), abs(nodes_v_MD)
        weights = [-abs(w) for w in weights]
    elif case == "identical":
        nodes_v_MD = nodes_u_ND.copy()
    elif case == "positive":  # what a network starts from: maps after a ReLU, w = w' = 1
        nodes_u_ND, nodes_v_MD, weights = abs(nodes_u_ND), abs(nodes_v_MD), [np.ones(channels)] * 2
    elif case == "cross_only":  # no affinity within an image
        nodes_u_ND, nodes_v_MD = abs(nodes_u_ND), abs(nodes_v_MD)
        weights = [-abs(weights[0]), abs(weights[1])]
    elif case not in ("mixed", "one_node"):
        raise ValueError(case)
    return nodes_u_ND, nodes_v_MD, *weights


PAIR_CASES = ("mixed", "isolated", "all_isolated", "identical", "one_node", "positive", "cross_only")


def finite_difference(function, argument, direction, step=1e-6):
    """Central difference of a scalar function along a direction."""
    return (float(function(argument + step * direction)) - float(function(argument - step * direction))) / (2 * step)


def max_relative(found, expected):
    """Largest difference relative to the largest expected magnitude (at least 1e-30)."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.max(abs(found - expected), initial=0.0) / max(np.max(abs(expected), initial=0.0), 1e-30))


def literal_clues(regions_u, regions_v, power=4):
    """The formula of clues.py, one region at a time."""

    def square(x):
        return sum(float(a) * float(a) for a in x)

    def one_side(own, other):
        total, result = sum(square(x) for x in own), 0.0
        for x in own:
            best = -np.inf
            for y in other:
                scale = np.sqrt(square(x) * square(y))
                best = max(best, sum(a * b for a, b in zip(x, y, strict=True)) / scale if scale else 0.0)
            if total:
                result += square(x) / total * max(1 - best, 0.0) ** power
        return result ** (1 / power)

    return (one_side(regions_u, regions_v) + one_side(regions_v, regions_u)) / 2


def literal_evidence(judge, value_u, key_u, value_v, key_v):
    """The formulas of evidence.py, one region at a time: evidence(u | v)."""
    log_tau, judge_kernel, judge_bias, judge_out, choose_kernel, choose_bias, choose_out = judge
    relu = lambda x: np.maximum(x, 0.0)
    found, choice = [], []
    for own, key in zip(value_u, key_u, strict=True):
        weights = [np.exp(np.exp(log_tau) * sum(a * b for a, b in zip(key, other, strict=True))) for other in key_v]
        shown = sum(w / sum(weights) * other for w, other in zip(weights, value_v, strict=True))
        compared = np.concatenate([abs(own - shown), own * shown])
        found.append(relu(compared @ judge_kernel + judge_bias) @ judge_out)
        choice.append(relu(np.concatenate([own, shown]) @ choose_kernel + choose_bias) @ choose_out)
    return sum(e * np.exp(c) for e, c in zip(found, choice, strict=True)) / sum(np.exp(c) for c in choice)


def list_loss(score_BB, labels_B):
    """Mean over anchors of the mean over positives of -log( e^p / (e^p + sum of e^n) )."""
    losses = []
    for a, label in enumerate(labels_B):
        positives = [score_BB[a, j] for j, other in enumerate(labels_B) if other == label and j != a]
        negatives = sum(np.exp(score_BB[a, j]) for j, other in enumerate(labels_B) if other != label)
        if positives and negatives:
            losses.append(np.mean([-np.log(np.exp(p) / (np.exp(p) + negatives)) for p in positives]))
    return sum(losses) / len(losses) if losses else 0.0
