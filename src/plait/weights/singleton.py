"""A key rule for layouts that differ in dimensions of size 1, such as a linear layer saved as a convolution."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from plait.weights.keymap import Rename


@dataclass(frozen=True)
class Singleton(Rename):
    """The same numbers where one side has dimensions of size 1 that the other lacks, at the places named."""

    official_dims: tuple[int, ...] = ()
    native_dims: tuple[int, ...] = ()

    def there(self, tensors: list[Tensor]) -> list[Tensor]:
        return [self._moved(tensors[0], self.official_dims, self.native_dims)]

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        return [self._moved(tensors[0], self.native_dims, self.official_dims)]

    def _moved(self, tensor: Tensor, away: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
        if any(dim >= tensor.ndim or tensor.shape[dim] != 1 for dim in away):
            raise ValueError(f"expected {self.source} with size 1 at {away}, got {tuple(tensor.shape)}")
        for dim in sorted(away, reverse=True):
            tensor = tensor.squeeze(dim)
        for dim in sorted(new):
            tensor = tensor.unsqueeze(dim)
        return tensor
