"""PyTorch: eager with fused Adam, and the whole step, with Adam in it, as one graph under `torch.compile`."""

import importlib.util
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from benchmarks.convolutional import ConvGan, Game
from benchmarks.peers import NotThere, Program, torch_images
from benchmarks.peers.torch_images import conv_layer as conv_layer, given
from benchmarks.scenarios import GAMMA, LAMBDA, SLOPE, Chain, Gan, Layers


def setup(threads: int) -> None:
    """Hold PyTorch to so many threads."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)


def gan(scenario: Gan, dtype: str, variant: str, device: str = "cpu") -> Program:
    """A step of both players."""
    g_layers, d_layers = scenario.weights(dtype)
    if variant == "eager":
        g, d = (_network(*network).to(device) for network in ((g_layers, scenario.output), (d_layers, "")))
        return _program(_eager(scenario, g, list(g.parameters()), d, list(d.parameters())))

    def generate(z: Any, weights: Any) -> Any:
        x = _layers(z, weights)
        return torch.sigmoid(x) if scenario.output else x

    weights = torch.utils._pytree.tree_map(lambda a: torch.from_numpy(a).to(device), [g_layers, d_layers])
    return _program(_compiled(scenario, dtype, weights, generate, _layers))


def conv_gan(scenario: ConvGan, dtype: str, variant: str, device: str = "cpu") -> Program:
    """A step of both players."""
    generator, discriminator = scenario.networks
    g_weights, d_weights = weights = [
        {name: torch_images.weight(a).to(device) for name, a in arrays.items()}
        for arrays in scenario.weights(dtype)
    ]

    def generate(z: Any, weights: Any) -> Any:
        return generator.apply(torch_images, weights, z)

    def judge(x: Any, weights: Any) -> Any:
        return discriminator.apply(torch_images, weights, x)

    if variant == "compiled":
        return _program(_compiled(scenario, dtype, weights, generate, judge))
    g_list, d_list = ([w.requires_grad_() for w in network.values()] for network in weights)
    return _program(
        _eager(scenario, lambda z: generate(z, g_weights), g_list, lambda x: judge(x, d_weights), d_list)
    )


def _program(step: Callable[..., Any]) -> Program:
    return Program(
        lambda *arrays: step(*map(given, arrays)), lambda losses: tuple(loss.item() for loss in losses)
    )


def _d_loss(scenario: Game, real_logits: Any, fake_logits: Any) -> Any:
    if scenario.loss == "wasserstein":
        return fake_logits.mean() - real_logits.mean()
    return _cross_entropy(real_logits, 1.0) + _cross_entropy(fake_logits, 0.0)


def _g_loss(scenario: Game, logits: Any) -> Any:
    return -logits.mean() if scenario.loss == "wasserstein" else _cross_entropy(logits, 1.0)


def _cross_entropy(logits: Any, label: float) -> Any:
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def _network(layers: Layers, output: str) -> Any:
    modules: list[Any] = []
    for weight, bias in layers:
        dense = torch.nn.Linear(*weight.shape, dtype=torch.from_numpy(bias).dtype)
        with torch.no_grad():
            dense.weight.copy_(torch.from_numpy(weight.T))
            dense.bias.copy_(torch.from_numpy(bias))
        modules += [dense, torch.nn.LeakyReLU(SLOPE)]
    modules[-1:] = [torch.nn.Sigmoid()] if output else []
    return torch.nn.Sequential(*modules)


def _eager(
    scenario: Game,
    g: Callable[[Any], Any],
    g_weights: list[Any],
    d: Callable[[Any], Any],
    d_weights: list[Any],
) -> Any:
    rate, b1, b2, eps = scenario.adam
    g_adam, d_adam = (
        torch.optim.Adam(weights, rate, betas=(b1, b2), eps=eps, fused=True, capturable=weights[0].is_cuda)
        for weights in (g_weights, d_weights)
    )

    def penalty(x: Any, fake: Any, real_logits: Any, *u: Any) -> Any:
        if scenario.penalty == "r1":
            (slope,) = torch.autograd.grad(real_logits.sum(), x, create_graph=True)
            return 0.5 * GAMMA / scenario.batch * slope.square().sum()
        points = (u[0] * x + (1 - u[0]) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(d(points).sum(), points, create_graph=True)
        return LAMBDA * (slope.norm(dim=1) - 1).square().mean()

    def update(adam: Any, weights: Any, loss: Any) -> None:
        adam.zero_grad()
        loss.backward(
            inputs=weights
        )  # into memory laid out as the weights', which fused Adam takes for granted
        adam.step()

    def step(x: Any, z1: Any, z2: Any, *u: Any) -> Any:
        with torch.no_grad():
            fake = g(z1)
        real_logits = d(x.requires_grad_(scenario.penalty == "r1"))
        d_loss = _d_loss(scenario, real_logits, d(fake))
        if scenario.penalty:
            d_loss = d_loss + penalty(x, fake, real_logits, *u)
        update(d_adam, d_weights, d_loss)
        g_loss = _g_loss(scenario, d(g(z2)))
        update(g_adam, g_weights, g_loss)
        return d_loss.detach(), g_loss.detach()

    return step


def _layers(x: Any, layers: Any) -> Any:
    """Dense layers with leaky ReLUs between them."""
    for i, (weight, bias) in enumerate(layers):
        x = x @ weight + bias
        if i + 1 < len(layers):
            x = functional.leaky_relu(x, SLOPE)
    return x


def _compiled(
    scenario: Game,
    dtype: str,
    networks: list[Any],
    generate: Callable[[Any, Any], Any],
    judge: Callable[[Any, Any], Any],
) -> Any:
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise NotThere("torch.compile needs a C++ compiler, and there is none on the path")
    tree, (rate, b1, b2, eps) = torch.utils._pytree.tree_map, scenario.adam
    device = torch.utils._pytree.tree_leaves(networks)[0].device
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise NotThere("torch.compile needs Triton on a GPU, and it is not installed")
    players = tuple(
        (weights, tree(torch.zeros_like, weights), tree(torch.zeros_like, weights)) for weights in networks
    )
    count = torch.zeros((), dtype=getattr(torch, dtype), device=device)

    def d_loss(d: Any, x: Any, fake: Any, *u: Any) -> Any:
        total = _d_loss(scenario, judge(x, d), judge(fake, d))
        if not scenario.penalty:
            return total
        slope_at = torch.func.grad(lambda points: judge(points, d).sum())
        if scenario.penalty == "r1":
            return total + 0.5 * GAMMA / scenario.batch * slope_at(x).square().sum()
        slope = slope_at(u[0] * x + (1 - u[0]) * fake)
        return total + LAMBDA * (slope.square().sum(dim=1).sqrt() - 1).square().mean()

    def g_loss(g: Any, d: Any, z: Any) -> Any:
        return _g_loss(scenario, judge(generate(z, g), d))

    def update(player: Any, gradients: Any, t: Any) -> None:
        scaled, unbias = rate / (1 - b1**t), 1 / (1 - b2**t)
        leaves = [torch.utils._pytree.tree_leaves(part) for part in (*player, gradients)]
        for p, m, v, g in zip(*leaves, strict=True):
            m.lerp_(g, 1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            p.sub_(scaled * m / ((unbias * v).sqrt() + eps))

    @torch.compile(fullgraph=True, dynamic=False)
    def whole(x: Any, z1: Any, z2: Any, *u: Any) -> Any:
        g, d = players
        count.add_(1)
        gradients, of_d = torch.func.grad_and_value(d_loss)(d[0], x, generate(z1, g[0]), *u)
        update(d, gradients, count)
        gradients, of_g = torch.func.grad_and_value(g_loss)(g[0], d[0], z2)
        update(g, gradients, count)
        return of_d, of_g

    def step(*arrays: Any) -> Any:
        with torch.no_grad():
            return whole(*arrays)

    return step


def chain(scenario: Chain, dtype: str, variant: str) -> Program:
    """Forward and backward through the chain."""

    def step(x_array: Any, w_array: Any) -> Any:
        x, w = (torch.from_numpy(a).requires_grad_() for a in (x_array, w_array))
        y = x
        for _ in range(scenario.links):
            y = torch.tanh(y * w + x)
        total = y.sum()
        return total.detach(), *torch.autograd.grad(total, [x, w])

    def read(result: Any) -> tuple[float, ...]:
        total, *gradients = result
        return (total.item(), *(g.square().sum().item() for g in gradients))

    return Program(step, read)
