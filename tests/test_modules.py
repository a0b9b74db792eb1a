"""The modules as PyTorch's own behave: shapes, options, starts, layers in and out, and optimisers over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deepres import Actor, Encoder, ResidualStack, residual_stack
from deepres.networks import NetworkOptions, Networks, Value, Values
from deepres.parameters import LayerMuon, matrices, parameter_groups


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 1, 3), (2, 0, 3)], ids=str)
def test_leading_dimensions_are_rows(leading, impl):
    stack = ResidualStack(8, 4, impl=impl)
    x = torch.randn(*leading, 8, requires_grad=True)
    y = stack(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y.reshape(-1, 8), stack(x.reshape(-1, 8)), rtol=0, atol=0)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.shape == x.shape


def test_leading_dimensions_of_a_group_and_of_networks():
    group = ResidualStack(8, 4, members=2)
    x = torch.randn(2, 5, 3, 8)
    torch.testing.assert_close(group(x).flatten(1, 2), group(x.flatten(1, 2)), rtol=0, atol=0)
    assert group(x[0, 0]).shape == (2, 3, 8) and group(x[0, 0, 0]).shape == (2, 8)
    x = torch.randn(5, 4, 6)
    assert Encoder(6, 3, width=8, depth=4)(x).shape == (5, 4, 3) and Encoder(6, 3, width=8, depth=4)(
        x[0, 0]
    ).shape == (3,)
    assert Value(6, width=8, depth=4)(x).shape == (5, 4)
    assert Actor(6, 2, width=8, depth=4)(x)[1].shape == (5, 4, 2)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"precison": "bf16"}, TypeError, r"no option 'precison'; did you mean precision\?"),
        ({"dropout": 0.1}, TypeError, "no option 'dropout'; there are skip_every, activation,"),
        ({"depth": 6}, ValueError, "multiple of skip_every=4, got 6 layers; use 4 or 8"),
        ({"depth": 3}, ValueError, "multiple of skip_every=4, got 3 layers; use 4$"),
        ({"depth": 0}, ValueError, "depth must be a whole number >= 1, got 0"),
        ({"width": 8.0}, ValueError, "width must be a whole number >= 1, got 8.0"),
        ({"members": 0}, ValueError, "members must be a number of networks >= 1, got 0"),
        ({"precision": "bfloat16"}, ValueError, "precision must be one of .*, got 'bfloat16'; pass 'bf16'"),
        ({"precision": torch.float16}, ValueError, "got torch.float16; pass 'fp16'"),
        ({"norm": "no"}, TypeError, "norm must be True or False, got 'no'"),
        ({"impl": "fast"}, ValueError, "impl must be one of auto, .*, got 'fast'"),
        ({"recompute": 0}, ValueError, "recompute must be 'none', 'auto' or a number of blocks"),
        ({"recompute": 2**70}, ValueError, f"blocks >= 1, and at most 2147483647, got {2**70}"),
        ({"members": 2**70}, ValueError, f"networks >= 1, and at most 2147483647, got {2**70}"),
        ({"skip_every": True}, ValueError, "skip_every must be a number of layers >= 1, .* got True"),
        ({"eps": 10**400}, ValueError, "eps must be a finite number > 0, got 1000"),
        ({"eps": "1e-6"}, TypeError, "eps must be a number, got '1e-6'"),
        ({"eps": True}, TypeError, "eps must be a number, got True"),
    ],
    ids=lambda value: f"{value}"[:60],
)
def test_options_are_checked_where_they_are_given(options, error, sentence):
    with pytest.raises(error, match=sentence):
        ResidualStack(**{"width": 8, "depth": 4, **options})


def test_numpy_numbers_are_numbers():
    sizes = {"width": np.int64(8), "depth": np.int32(4), "skip_every": np.int64(2), "eps": np.float32(0.5)}
    torch.manual_seed(0)
    stack, encoder = ResidualStack(**sizes, recompute=np.int64(1)), Encoder(np.int64(3), np.int64(2), **sizes)
    x = torch.randn(5, 8)
    plain = {"skip_every": 2, "eps": 0.5}
    parameters = (stack.weight, stack.bias, stack.gamma, stack.beta)
    assert torch.equal(stack(x), residual_stack(x, *parameters, **plain))
    assert encoder(x[:, :3]).shape == (5, 2) and type(encoder.head.in_features) is int
    for made, sentence in (
        (lambda: Actor(0, 2), "in_dim must be a whole number >= 1, got 0"),
        (lambda: Encoder(3, 2.0), r"out_dim must be a whole number >= 1, got 2\.0"),
        (lambda: Encoder(3, 2, width=0), "width must be a whole number >= 1, got 0"),
        (lambda: Values(3, members=2**70), "members must be a number of networks >= 1, and at most"),
    ):
        with pytest.raises(ValueError, match=sentence):
            made()


def test_misspelt_options_of_networks_are_told():
    with pytest.raises(TypeError, match=r"no option 'depht'; did you mean depth\?"):
        Encoder(3, 2, depht=4)


def test_the_old_keyword_is_taken_once_with_a_warning(recwarn):
    with pytest.warns(FutureWarning, match="checkpoint= is called recompute= now"):
        stack = ResidualStack(8, 4, checkpoint="auto")
    recwarn.clear()
    stack(torch.ones(2, 8))
    assert stack.options == {"recompute": "auto"} and not recwarn


@pytest.mark.parametrize(
    ("x", "error", "sentence"),
    [
        (torch.zeros(2, 9), ValueError, r"x must have 8 features in its last dimension, got \[2, 9\]"),
        (torch.zeros(()), ValueError, "x must have 8 features"),
        (
            np.zeros((2, 8), np.float32),
            TypeError,
            r"x must be a torch.Tensor, got numpy.ndarray; pass torch.from_numpy",
        ),
        ([[0.0] * 8], TypeError, r"x must be a torch.Tensor, got list; pass torch.as_tensor"),
        (
            torch.zeros(2, 8, dtype=torch.long),
            TypeError,
            r"x must be float32 .*, got torch.int64; call x.float\(\)",
        ),
        (
            torch.zeros(2, 8).half(),
            TypeError,
            r"call x.float\(\), and pass precision= for products in 16 bits",
        ),
    ],
    ids=["width", "scalar", "numpy", "list", "int", "half"],
)
def test_input_that_does_not_fit_is_told(x, error, sentence):
    with pytest.raises(error, match=sentence):
        ResidualStack(8, 4)(x)


@pytest.mark.parametrize(
    ("x", "error", "sentence"),
    [
        (
            np.zeros((2, 8), np.float32),
            TypeError,
            "x must be a torch.Tensor, got numpy.ndarray; pass torch.from",
        ),
        (
            torch.zeros(2, 8).long(),
            TypeError,
            "x must be torch.float32, as the network's weights, got torch.int64",
        ),
        (torch.zeros(2, 8).double(), TypeError, r"got torch.float64; pass x.to\(torch.float32\)"),
        (torch.zeros(()), ValueError, r"x must have 8 columns, the network's in_dim, got shape \[\]"),
    ],
    ids=["numpy", "int", "double", "scalar"],
)
@pytest.mark.parametrize("trunk", ["residual", "plain"])
def test_input_that_fits_no_network_is_told(trunk, x, error, sentence):
    with pytest.raises(error, match=sentence):
        Encoder(8, 2, width=8, depth=4, trunk=trunk)(x)


def test_device_and_dtype_reach_every_parameter():
    made = {"width": 8, "depth": 4, "dtype": torch.float64, "device": "meta"}
    for network in (
        ResidualStack(**made),
        Encoder(3, 2, **made),
        Encoder(3, 2, members=2, **made),
        Actor(3, 2, **made),
    ):
        assert all(p.is_meta and p.dtype == torch.float64 for p in network.parameters())
    double = ResidualStack(8, 4, dtype=torch.float64)
    assert double(torch.ones(2, 8, dtype=torch.float64)).dtype == torch.float64


def test_networks_of_a_run_are_float32_whatever_the_default_is():
    torch.set_default_dtype(torch.float64)
    try:
        made = Networks(NetworkOptions(depth=4, width=8))
        networks = [made.actor(3, 2), made.encoder(3, 2), made.values(3), made.linear(3, 2)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for network in networks for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("members", [None, 2])
def test_a_reset_is_a_start(members):
    def made() -> Encoder:
        return Encoder(3, 2, members=members, width=8, depth=4, generator=torch.Generator().manual_seed(0))

    network, fresh = made(), made()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1)
    network.reset_parameters(torch.Generator().manual_seed(0))
    for name, p in fresh.named_parameters():
        assert torch.equal(dict(network.named_parameters())[name], p), name
    for part in network.modules():  # as who materialises a network from the device "meta" does
        if any(True for _ in part.parameters(recurse=False)):
            part.reset_parameters()
    head = network.head
    assert head.weight.abs().max() <= 8**-0.5 and not head.bias.any()


@pytest.mark.parametrize("activation", ["swish", "relu"])
@pytest.mark.parametrize("norm", [True, False])
def test_layers_become_a_stack_and_again_layers(norm, activation):
    torch.manual_seed(0)
    layers = []
    for _ in range(4):
        layers += [nn.Linear(8, 8), *([nn.LayerNorm(8, eps=1e-3)] if norm else [])]
        layers.append(nn.SiLU() if activation == "swish" else nn.ReLU())
    with torch.no_grad():
        for layer in layers:
            for p in layer.parameters():
                p.add_(0.1 * torch.randn(p.shape))
    stack = ResidualStack.from_layers(nn.Sequential(*layers), skip_every=2)
    x = torch.randn(5, 8)
    a = x
    for half in (layers[: len(layers) // 2], layers[len(layers) // 2 :]):
        a = a + nn.Sequential(*half)(a)
    torch.testing.assert_close(stack(x), a)
    again = ResidualStack.from_layers(stack.to_layers(), skip_every=2, activation=activation)
    assert torch.equal(again(x), stack(x)) and len(stack.to_layers()) == (8 if norm else 4)


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([nn.Linear(8, 9)], "layer 0 must be 8 x 8, got 8 x 9"),
        ([nn.Linear(8, 8), nn.Linear(9, 9)], "layer 1 must be 8 x 8, got 9 x 9"),
        ([nn.LayerNorm(8)], "layer 0 must follow a Linear"),
        (
            [nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)],
            "each with a LayerNorm or none with one, and an activation likewise, got 2, 1 and 0",
        ),
        (
            [nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8, eps=1)],
            "the others' eps 1e-05, got 1",
        ),
        (
            [nn.Linear(8, 8), nn.Dropout()],
            "layer 1 must be a Linear, a LayerNorm, a SiLU or a ReLU, got Drop",
        ),
        (
            [nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8), nn.ReLU()],
            "layer 3 must be the others' activation, swish, got ReLU",
        ),
        ([nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8)], "an activation likewise, got 2, 0 and 1"),
        ([nn.Linear(8, 8), nn.SiLU(), nn.LayerNorm(8)], "layer 2 must follow a Linear and be of its width"),
        ([nn.SiLU(), nn.Linear(8, 8)], "layer 0 must follow a Linear or its LayerNorm, got SiLU"),
        ([], "layers must be Linears"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_that_make_no_stack_are_told(layers, sentence):
    with pytest.raises(ValueError, match=sentence):
        ResidualStack.from_layers(layers, skip_every=1)
    with pytest.raises(ValueError, match="to_layers is of one stack, got a group of 2"):
        ResidualStack(8, 4, members=2).to_layers()
    relu = [nn.Linear(8, 8), nn.ReLU()]
    with pytest.raises(
        ValueError, match="activation must be that of the layers, 'relu', got 'swish'; leave it"
    ):
        ResidualStack.from_layers(relu, skip_every=1, activation="swish")


def test_only_matrices_decay():
    net = nn.Sequential(Encoder(3, 2, width=8, depth=4), Encoder(2, 2, members=2, width=8, depth=4))
    decayed, others = parameter_groups(net, weight_decay=0.1)
    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0.0
    names = {p: name for name, p in net.named_parameters()}
    assert {names[p] for p in decayed["params"]} == {
        f"{k}.{part}.weight" for k in "01" for part in ("trunk.stem", "trunk.stack", "head")
    }
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    torch.optim.AdamW([decayed, others], lr=0.1)
    assert [len(group["params"]) for group in parameter_groups(nn.LayerNorm(3), weight_decay=0.1)] == [2]


def test_muon_takes_each_layer_by_itself():
    torch.manual_seed(0)
    stack = ResidualStack(8, 4)
    linears = [nn.Parameter(w.detach().clone()) for w in stack.weight]
    optimizer, plain = LayerMuon(matrices(stack), lr=0.1), torch.optim.Muon(linears, lr=0.1)
    x = torch.randn(5, 8)
    for _ in range(3):
        optimizer.zero_grad()
        stack(x).square().sum().backward()
        for layer, gradient in zip(linears, stack.weight.grad, strict=True):
            layer.grad = gradient.clone()
        optimizer.step()
        plain.step()
    torch.testing.assert_close(stack.weight.detach(), torch.stack(linears).detach(), rtol=0, atol=0)
    with torch.no_grad():
        stack.weight.data = stack.weight.data.clone()
    with pytest.raises(RuntimeError, match="moved after LayerMuon was made"):
        optimizer.step()


def test_names_in_checkpoints_are_those_of_version_0_1():
    names = set(Actor(3, 2, width=8, depth=4).state_dict())
    stack = {f"trunk.stack.{name}" for name in ("weight", "bias", "gamma", "beta")}
    linears = {
        f"{part}.{name}"
        for part in ("trunk.stem", "trunk.norm", "mean", "log_std")
        for name in ("weight", "bias")
    }
    assert names == stack | linears
    assert isinstance(Encoder(3, 2, width=8, depth=4).head, nn.Linear)
