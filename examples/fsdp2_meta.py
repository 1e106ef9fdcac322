"""Initialise a ResNet-20 that no process ever holds whole, and train it on digits: meta device, FSDP2, ghn_.

    torchrun --nproc-per-node 2 examples/fsdp2_meta.py

On CUDA with nccl if there is a GPU for every process, else on the CPU with gloo.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
import torch.distributed as dist
from quickstart import digits
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

import torch_geninit as geninit
from torch_geninit.training.data.images import Split
from torch_geninit.training.networks.resnet import resnet20


def start() -> torch.device:
    """Join the process group that torchrun describes; alone without it."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    if "RANK" not in os.environ:
        os.environ.update(alone)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    return device


def build(device: torch.device) -> nn.Module:
    """Return a sharded, initialised network; nothing is sent between the processes for it."""
    with torch.device("meta"):
        model = resnet20(num_classes=10)
    graph = geninit.trace(model)
    for stage in (model.layer1, model.layer2, model.layer3):
        for block in stage:
            fully_shard(block)
    fully_shard(model)
    model.to_empty(device=device)
    # The generator's ten classes are other ones: the classifier is reset, as BatchNorm's buffers are, and
    # draws from the global random state, which has to be the same everywhere.
    torch.manual_seed(0)
    return geninit.ghn_(model, graph=graph, head="keep", unfilled="reset")


def compare(model: nn.Module) -> None:
    """Initialise the whole network too and compare every parameter."""
    whole = resnet20(num_classes=10)
    torch.manual_seed(0)
    geninit.ghn_(whole, head="keep", unfilled="reset")
    for (name, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
        if not torch.equal(p.full_tensor().cpu(), q.detach()):
            raise SystemExit(f"{name} differs from the single process's")


def mean(value: Tensor) -> float:
    dist.all_reduce(value)
    return value.item() / dist.get_world_size()


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Split, batch_size: int, epoch: int
) -> float:
    """Train one epoch on this process's images and return the mean loss over all processes."""
    losses = []
    order = torch.Generator().manual_seed(epoch)
    for images, labels in batches.shuffled_batches(batch_size, order, augment="none"):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return mean(torch.stack(losses).mean())


@torch.no_grad()
def accuracy(model: nn.Module, test: Split) -> float:
    """Average the processes' BatchNorm statistics, then measure each on its share of the test images."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()
    model.eval()
    right = torch.stack([(model(x).argmax(1) == y).float().mean() for x, y in test.batches()]).mean()
    model.train()
    return mean(right)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=8, help="over the labelled images")
    parser.add_argument(
        "--per-class", type=int, default=40, help="labelled images of each digit, all processes together"
    )
    parser.add_argument(
        "--compare", action="store_true", help="also initialise the whole network, and compare"
    )
    arguments = parser.parse_args()

    device = start()
    rank, size = dist.get_rank(), dist.get_world_size()
    begin = time.perf_counter()
    model = build(device)
    seconds = time.perf_counter() - begin
    held = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))
    total = sum(p.numel() for p in model.parameters())
    if rank == 0:
        print(
            f"{size} processes on {device.type}; the first holds {held} of {total} numbers; {seconds:.2f} s"
        )
    if arguments.compare:
        compare(model)
        if rank == 0:
            print("every shard equals its slice of the single process's network")

    training, test = (
        part.subset(torch.arange(len(part))[rank::size]).to(device)
        for part in digits(arguments.per_class, 0)[::2]
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(1, arguments.epochs + 1):
        loss = train(model, optimizer, training, min(25, len(training)), epoch)
        right = accuracy(model, test)
        if rank == 0:
            print(f"epoch {epoch}: loss {loss:.3f}, test accuracy {100 * right:.1f} %")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
