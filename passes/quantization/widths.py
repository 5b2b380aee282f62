"""How many bits the codes of each layer and of each activation have."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class BitWidths:
    """Widths of codes: one for all weights and one for all activations, and what differs.

    Attributes:
        weights: of layers that ``of_layer`` does not name.
        activations: of groups that ``of_group`` does not name.
        of_layer: key of a layer -> width of its weights.
        of_group: representative of a group of values -> width of their codes.
    """

    weights: int
    activations: int
    of_layer: dict[str, int] = field(default_factory=dict)
    of_group: dict[str, int] = field(default_factory=dict)

    def weight(self, layer: str) -> int:
        """Width of a layer's weights."""
        return self.of_layer.get(layer, self.weights)

    def activation(self, group: str) -> int:
        """Width of the codes of a group of values."""
        return self.of_group.get(group, self.activations)


__all__ = ["BitWidths"]
