"""What tests of plans share: small networks and who fills them."""

from __future__ import annotations

from torch import Tensor, nn

from torch_geninit.planning.plan import Plan


def net(classes: int = 10) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


class Aliased(nn.Module):
    """The first layer under a second name."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body
        self.again = body[0]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def routes(plan: Plan) -> dict[str, str]:
    return {entry.name: entry.route.value for entry in plan.entries}
