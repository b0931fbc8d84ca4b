"""Augmentation of face crops: other cameras, poses and light, and damage.

Computed on the crops' device, with one generator of that device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

DAMAGES = ("blur", "dark", "occluded", "side light", "small", "turned")
_LIGHT = 0.35  # fraction of crops with a mild blur, and likewise with a small covered patch


def augment(crops: Tensor, generator: torch.Generator, damaged: float) -> tuple[Tensor, Tensor]:
    """Vary every crop, and damage some of them.

    Every crop is mirrored, rotated, scaled, shifted and toned at random, with some blur, noise and a covered patch. A
    fraction of them is damaged in one of the ways of `DAMAGES`, enough to make people less certain of the emotion.

    Args:
        crops: (B, 1, 48, 48) float32, 0 ... 255.
        generator: on the crops' device.
        damaged: the fraction to damage.

    Returns:
        The crops, (B, 1, 48, 48), and the severity of each one's damage (B,), 0 ... 1; 0 if undamaged.
    """
    draw = _Draw(len(crops), generator, crops.device)
    severity = torch.where(draw.uniform(0, 1) < damaged, draw.uniform(0.15, 1), 0.0)
    kind = draw.uniform(0, len(DAMAGES)).long().clamp(max=len(DAMAGES) - 1)
    by_kind = {name: torch.where(kind == n, severity, 0.0) for n, name in enumerate(DAMAGES)}
    seen = _warp(crops, _flat(draw), by_kind["turned"] * _TURN * draw.sign())
    seen = 255 * (seen / 255).clamp(1e-4, 1) ** draw.uniform(-0.45, 0.45, 1, 1, 1).exp()
    seen = _side_light(seen, draw, by_kind["side light"])
    everyday = torch.where(draw.uniform(0, 1) < _LIGHT, draw.uniform(0, 0.3), 0.0)
    seen = _blur(seen, torch.maximum(by_kind["blur"], everyday))
    seen = _small(seen, by_kind["small"])
    seen = _cover(seen, draw, by_kind["occluded"])
    seen = seen + draw.normal(seen.shape) * draw.uniform(0, 8, 1, 1, 1)
    return _dark(seen, draw, by_kind["dark"]), severity


_TURN = math.radians(42)  # maximum yaw of a damaged crop's head
_RADIUS = 1.15  # of the head, in coordinates where the crop spans -1 to 1
_SIGMA = 4.0  # standard deviation of the strongest blur in pixels
_SIDES = (24, 16, 12, 8)  # pixels of a small face's side, from the mildest damage to the strongest


class _Draw:
    """Random numbers, one set per crop."""

    def __init__(self, count: int, generator: torch.Generator, device: torch.device) -> None:
        self._count, self._generator, self._device = count, generator, device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(self._count, *shape, generator=self._generator, device=self._device)
        return drawn * (high - low) + low

    def normal(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self._device)

    def sign(self) -> Tensor:
        return torch.where(self.uniform(0, 1) < 0.5, -1.0, 1.0)


def _flat(draw: _Draw) -> Tensor:
    """Affine maps (B, 2, 3) of the image plane: a mirror, a rotation, a scale and a shift."""
    angle = draw.uniform(-0.35, 0.35)
    scale, aspect = draw.uniform(-0.22, 0.22).exp(), draw.uniform(-0.08, 0.08).exp()
    mirror = draw.sign()
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = draw.uniform(-0.125, 0.125, 2)
    rows = [torch.stack([cos * mirror * aspect, -sin, shift[:, 0]], 1),
            torch.stack([sin * mirror * aspect, cos, shift[:, 1]], 1)]  # fmt: skip
    return torch.stack(rows, 1)


def _warp(crops: Tensor, affine: Tensor, yaw: Tensor) -> Tensor:
    """Transform crops in their plane, and rotate their content about the vertical axis, as if on a cylinder."""
    grid = F.affine_grid(affine, list(crops.shape), align_corners=False)
    yaw = yaw[:, None, None]
    # The crop is aligned by eyes and mouth: keep them in its middle and at their distance, for any yaw.
    closer = yaw.cos().sqrt()
    shown = grid[..., 0] * closer / _RADIUS + yaw.sin()
    # Beyond the profile is background, for which a reflection will do.
    shown = torch.where(shown.abs() > 1, shown.sign() * (2 - shown.abs()), shown).clamp(-0.999, 0.999)
    across = torch.where(yaw == 0, grid[..., 0], _RADIUS * torch.sin(torch.asin(shown) - yaw))
    grid = torch.stack([across, grid[..., 1] * closer], 3)
    return F.grid_sample(crops.contiguous(), grid, padding_mode="reflection", align_corners=False)


def _blur(crops: Tensor, severity: Tensor) -> Tensor:
    """Gaussian blur; its standard deviation grows with the severity up to `_SIGMA` pixels."""
    count, side = len(crops), crops.shape[-1]
    reach = torch.arange(-9, 10, device=crops.device)
    sigma = (severity * _SIGMA).clamp(min=1e-2)[:, None]
    kernel = torch.exp(-0.5 * (reach / sigma) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    # One group per crop: each has its own kernel.
    padded = F.pad(crops.reshape(1, count, side, side), (9, 9, 9, 9), mode="replicate")
    across = F.conv2d(padded, kernel[:, None, None], groups=count)
    return F.conv2d(across, kernel[:, None, :, None], groups=count).reshape(crops.shape)


def _small(crops: Tensor, severity: Tensor) -> Tensor:
    """Simulate faces that were small in the picture."""
    seen = crops
    for step, side in enumerate(_SIDES):
        small = F.interpolate(F.interpolate(crops, size=(side, side), mode="area"), size=crops.shape[-2:],
                              mode="bilinear", align_corners=False)  # fmt: skip
        seen = torch.where((severity > step / len(_SIDES))[:, None, None, None], small, seen)
    return seen


def _side_light(crops: Tensor, draw: _Draw, severity: Tensor) -> Tensor:
    """One side darker than the other, at any angle."""
    side = crops.shape[-1]
    axis = torch.linspace(-1, 1, side, device=crops.device)
    angle = draw.uniform(0, 2 * math.pi)[:, None, None]
    along = axis[None, None, :] * angle.cos() + axis[None, :, None] * angle.sin()
    shade = torch.sigmoid(along / draw.uniform(0.15, 0.5, 1, 1)) * 0.97 + 0.03
    return crops * (1 - severity[:, None, None] * (1 - shade))[:, None]


def _cover(crops: Tensor, draw: _Draw, severity: Tensor) -> Tensor:
    """A uniform grey rectangle: small in some of the crops, up to two thirds of a side in damaged ones."""
    side = crops.shape[-1]
    axis = torch.arange(side, device=crops.device)
    little = torch.where(draw.uniform(0, 1) < 0.5, draw.uniform(0.15, 0.4), 0.0)
    share = torch.maximum(little, torch.where(severity > 0, 0.25 + 0.4 * severity, 0.0))
    inside = []
    for _ in range(2):
        length = (share * draw.uniform(0.8, 1.2) * side)[:, None]
        first = draw.uniform(0, 1, 1) * (side - length)
        inside.append((axis >= first) & (axis < first + length))
    covered = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
    own = crops.mean(dim=(2, 3), keepdim=True)
    grey = torch.where(draw.uniform(0, 1, 1, 1, 1) < 0.5, own, draw.uniform(0, 255, 1, 1, 1))
    return torch.where(covered, grey, crops)


def _dark(crops: Tensor, draw: _Draw, severity: Tensor) -> Tensor:
    """Low light, at worst a hundredth, with sensor noise and quantisation."""
    severity = severity[:, None, None, None]
    light = torch.exp(-severity * math.log(100.0))
    noise = draw.normal(crops.shape) * 2.0 * (severity > 0)
    dim = torch.round(crops * light + noise)
    return torch.where(severity > 0, dim, crops).clamp(0, 255)
