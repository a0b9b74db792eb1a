"""The two ops in a training loop of plain PyTorch: deep networks learn which two noisy views are of one point.

A point in the plane is seen twice, through a fixed nonlinear map and with noise. Two stacks learn by
info_nce to say which views belong together. Nothing but PyTorch is needed.

    python examples/ops_in_a_loop.py
"""

import sys

import torch
from torch import Tensor, nn

import deepres

WIDTH, DEPTH, VIEW, BATCH = 32, 8, 12, 64


class Tower(nn.Module):
    """x [B, VIEW] -> features [B, 16]: a projection, DEPTH residual layers in one call, a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(VIEW, WIDTH), nn.Linear(WIDTH, 16)
        # the whole stack in four tensors, whatever its depth; deepres.ResidualStack holds the same as a module
        self.weight = nn.Parameter(torch.randn(DEPTH, WIDTH, WIDTH) / WIDTH**0.5)
        self.bias = nn.Parameter(torch.zeros(DEPTH, WIDTH))
        self.gamma = nn.Parameter(torch.ones(DEPTH, WIDTH))
        self.beta = nn.Parameter(torch.zeros(DEPTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        hidden = deepres.residual_stack(hidden, self.weight, self.bias, self.gamma, self.beta)
        return self.head(hidden)


def main(steps: int = 300) -> None:
    torch.manual_seed(0)
    lens = [torch.randn(2, VIEW) for _ in range(2)]  # how each of the two views bends the plane

    def views(count: int) -> list[Tensor]:
        point = torch.randn(count, 2)
        return [torch.sin(2 * point @ one) + 0.05 * torch.randn(count, VIEW) for one in lens]

    towers = nn.ModuleList([Tower(), Tower()])
    optimizer = torch.optim.Adam(towers.parameters(), lr=1e-3)
    for step in range(steps):
        phi, psi = (tower(view) for tower, view in zip(towers, views(BATCH), strict=True))
        loss, _ = deepres.info_nce(phi, psi)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:4d}  loss {loss.item():.2f}")

    with torch.no_grad():
        phi, psi = (tower(view) for tower, view in zip(towers, views(BATCH), strict=True))
        right = torch.cdist(phi, psi).argmin(dim=1) == torch.arange(BATCH)
    print(f"pairs found among {BATCH}: {right.float().mean():.0%} (by chance {1 / BATCH:.0%})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
