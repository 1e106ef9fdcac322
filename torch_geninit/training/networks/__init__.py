"""The networks that generators are trained for and measured on."""

from torch_geninit.training.networks.resnet import resnet20

__all__ = ["resnet20"]
