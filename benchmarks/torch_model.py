"""CACE-Net and its training step in plain PyTorch, following the paper's equations: the baseline of torch_step.py.

Written from the paper and the equations of this package, every pair with its whole graph (`literal`); `exact` takes the mean
over positions first, as cacenet_jax does. Parameter names of the backbone are torchvision's, so that torch_parity.py can
load ours.

Legend: B images, N positions of a map, D channels, P unordered pairs of images (with themselves), F embedding size.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as fn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MARGIN, ALPHA = 0.5, 0.9


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 with four times the channels."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or inputs != 4 * width:
            convolution = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        y = fn.relu(self.bn1(self.conv1(x)))
        y = fn.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return fn.relu(y + (x if self.downsample is None else self.downsample(x)))


class Backbone(nn.Module):
    """A bottleneck ResNet up to its last map, stride 1 in the last stage; (3, 4, 6, 3) and 64 are ResNet-50."""

    def __init__(self, stages: Sequence[int] = (3, 4, 6, 3), width: int = 64):
        super().__init__()
        self.channels = 4 * width * 2 ** (len(stages) - 1)
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for index, blocks in enumerate(stages):
            inner, stride = width * 2**index, 2 if 0 < index < len(stages) - 1 else 1
            layer = [Bottleneck(inputs, inner, stride)]
            inputs = 4 * inner
            layer += [Bottleneck(inputs, inner, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*layer))
        self.num_stages = len(stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, D, h, w) maps."""
        x = fn.max_pool2d(fn.relu(self.bn1(self.conv1(images))), 3, 2, padding=1)
        for index in range(self.num_stages):
            x = getattr(self, f"layer{index + 1}")(x)
        return x


class Embedded(NamedTuple):
    """Embeddings and scores of the identities, both float32."""

    embedding: Tensor
    logits: Tensor


class Head(nn.Module):
    """1x1 convolution on a pooled map, batch norm, classifier."""

    def __init__(self, channels: int, embed_dim: int, identities: int):
        super().__init__()
        self.conv, self.bn = nn.Linear(channels, embed_dim, bias=False), nn.BatchNorm1d(embed_dim)
        self.classifier = nn.Linear(embed_dim, identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, pooled: Tensor) -> Embedded:
        """(rows, D) to (rows, F) and (rows, identities)."""
        embedding = self.bn(to_float32(self.conv(pooled)))
        return Embedded(embedding, to_float32(self.classifier(embedding)))


def to_float32(x: Tensor) -> Tensor:
    """At least float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def inverse_root(degree: Tensor) -> Tensor:
    """d^(-1/2), 0 where the degree is 0."""
    positive = degree > 0
    return torch.where(positive, torch.where(positive, degree, 1).rsqrt(), 0)


def literal_means(nodes: Tensor, intra_weight: Tensor, cross_weight: Tensor, theta: Tensor, chunk: int = 0) -> Tensor:
    """Means of the conditional maps of all pairs by equations 2 to 7 as they stand; each unordered pair once.

    Args:
        nodes: maps, (B, N, D).
        intra_weight: diagonal of W, (D,).
        cross_weight: diagonal of W', (D,).
        theta: filter, (D, D).
        chunk: pairs at a time, computed again in the backward pass; 0 for all at once.

    Returns:
        (B, B, D), of u (first axis) given v.
    """
    count = nodes.shape[0]
    sum_type = torch.promote_types(nodes.dtype, torch.float32)
    intra = fn.relu((nodes * intra_weight.to(nodes.dtype)) @ nodes.mT)  # equation 2
    u, v = torch.triu_indices(count, count, device=nodes.device)

    def of_pairs(u: Tensor, v: Tensor) -> Tensor:
        cross = fn.relu((nodes[u] * cross_weight.to(nodes.dtype)) @ nodes[v].mT)  # equation 3
        above, below = torch.cat([intra[u], cross], 2), torch.cat([cross.mT, intra[v]], 2)
        graph = torch.cat([above, below], 1)  # equation 4: (P, 2N, 2N)
        root = inverse_root(graph.sum(2, dtype=sum_type))
        both = torch.cat([nodes[u], nodes[v]], 1)  # (P, 2N, D)
        normalised = root[:, :, None] * graph * root[:, None, :]
        maps = (both - normalised @ both) @ theta  # equation 7
        return maps.reshape(len(u), 2, -1, maps.shape[-1]).mean(2, dtype=sum_type)

    pieces = zip(u.split(chunk), v.split(chunk), strict=True) if chunk else [(u, v)]
    run = functools.partial(checkpoint, of_pairs, use_reentrant=False) if chunk else of_pairs
    means = torch.cat([run(*piece) for piece in pieces])  # (P, 2, D)
    where = torch.empty(count, count, dtype=torch.long, device=nodes.device)
    order = torch.arange(len(u), device=nodes.device)
    where[v, u], where[u, v] = 2 * order + 1, 2 * order
    return means.flatten(0, 1)[where]


def exact_means(nodes: Tensor, intra_weight: Tensor, cross_weight: Tensor, theta: Tensor, chunk: int = 0) -> Tensor:
    """The same by the pooled algebra of pair_stages/conditional/pair.py: one Gram product for all pairs."""
    del chunk
    count, positions, _ = nodes.shape
    intra = to_float32(fn.relu((nodes * intra_weight.to(nodes.dtype)) @ nodes.mT))
    flat = nodes.flatten(0, 1)
    gram = fn.relu((flat * cross_weight.to(nodes.dtype)) @ flat.T)
    cross = to_float32(gram).view(count, positions, count, positions).transpose(1, 2)  # (B, B, N, N), u first
    degree = intra.sum(2)
    root_u = inverse_root(degree[:, None] + cross.sum(3))  # (B, B, N): of u's nodes given v
    root_v = inverse_root(degree[None] + cross.sum(2))  # of v's nodes
    own = root_u * torch.einsum("uvn,unm->uvm", root_u, intra)
    other = root_v * torch.einsum("uvn,uvnm->uvm", root_u, cross)
    near = torch.einsum("uvn,und->uvd", own.to(nodes.dtype), nodes)
    near = to_float32(near) + to_float32(torch.einsum("uvn,vnd->uvd", other.to(nodes.dtype), nodes))
    return to_float32((to_float32(nodes).mean(1)[:, None] - near / positions) @ theta)


MEANS: dict[str, Callable[..., Tensor]] = {"literal": literal_means, "exact": exact_means}


class CACENet(nn.Module):
    """The paper's network."""

    def __init__(self, backbone: Backbone, embed_dim: int, identities: int, chunk: int = 0):
        super().__init__()
        channels = backbone.channels
        self.backbone, self.chunk = backbone, chunk
        self.individual_head = Head(channels, embed_dim, identities)
        self.theta = nn.Parameter(torch.eye(channels))
        self.conditional_head = Head(channels, embed_dim, identities)
        self.intra_weight = nn.Parameter(torch.ones(channels))  # in units of 1/D, as ours
        self.cross_weight = nn.Parameter(torch.ones(channels))

    def forward(self, images: Tensor, pairs: str = "literal") -> tuple[Embedded, Embedded]:
        """f(I) of the images, and f(u|v) of all pairs, (B, B, ...), by `literal` or `exact` arithmetic."""
        maps = self.backbone(images)
        count, channels = maps.shape[:2]
        individual = self.individual_head(to_float32(maps).mean((2, 3)))
        nodes = maps.flatten(2).mT
        weights = self.intra_weight / channels, self.cross_weight / channels
        means = MEANS[pairs](nodes, *weights, self.theta, self.chunk)
        conditional = self.conditional_head(means.flatten(0, 1))
        return individual, Embedded(*(x.view(count, count, -1) for x in conditional))


def normalise(x: Tensor) -> Tensor:
    """x / |x|, a zero vector stays zero."""
    return x * inverse_root((x * x).sum(-1, keepdim=True))


def euclidean(left: Tensor, right: Tensor) -> Tensor:
    """|left - right|, with a zero gradient at distance 0."""
    square = ((left - right) ** 2).sum(-1)
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


def batch_hard(distance: Tensor, labels: Tensor) -> Tensor:
    """Mean of relu(margin + hardest positive - hardest negative) over anchors that have both."""
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    far = torch.where(positive, distance, -torch.inf).amax(1)
    near = torch.where(same, torch.inf, distance).amin(1)
    valid = positive.any(1) & (~same).any(1)
    loss = torch.where(valid, fn.relu(torch.where(valid, far - near, 0) + MARGIN), 0)
    return loss.sum() / valid.sum().clamp(min=1)


def losses(individual: Embedded, conditional: Embedded, labels: Tensor) -> dict[str, Tensor]:
    """The four terms of the paper's loss."""
    embedding = normalise(individual.embedding)
    log_p = conditional.logits.log_softmax(-1)
    count = len(labels)
    target = log_p.gather(2, labels[:, None, None].expand(count, count, 1))
    context = log_p.gather(2, labels[None, :, None].expand(count, count, 1))
    pair = normalise(conditional.embedding)
    return {
        "identity": fn.cross_entropy(individual.logits, labels),
        "triplet": batch_hard(euclidean(embedding[:, None], embedding[None]), labels),
        "pair_identity": -(ALPHA * target + (1 - ALPHA) * context).mean(),
        "pair_triplet": batch_hard(euclidean(pair, pair.transpose(0, 1)), labels),
    }


def optimizer(model: CACENet, rate: float, fused: bool = False) -> torch.optim.Optimizer:
    """SGD with momentum, L2 decay on all but w and w'."""
    attention = [model.intra_weight, model.cross_weight]
    others = [p for p in model.parameters() if all(p is not a for a in attention)]
    groups = [{"params": others, "weight_decay": 5e-4}, {"params": attention, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, fused=fused)
