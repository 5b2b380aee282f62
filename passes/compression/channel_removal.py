"""Takes removed channels out of a network: constants, attributes and shapes shrink."""

from __future__ import annotations

import numpy as np

from dlcc.ir import Graph
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from passes.compression.channel_constants import store
from passes.compression.channels import Channels, keeper


def shrink(graph: Graph, channels: Channels, kept: Array) -> None:
    """Remove the groups that are not kept, in place; the shapes of all values are inferred anew.

    Args:
        graph: the network.
        channels: its groups, as :func:`passes.compression.channel_rules.analyse` found them.
        kept: bool [groups].
    """
    keep = keeper(channels, kept)
    for cut in channels.cuts:
        places = keep(cut.atoms)
        if not places.all() and cut.node.optional_input(cut.operand) is not None:
            values = cut.node.input(cut.operand).decoded()
            store(graph, cut, np.compress(places, values, axis=cut.axis))
    for resize in channels.resizes:
        node, defaults = resize.node, op_of(resize.node).attributes
        for name, attribute in resize.attributes(keep).items():
            node.attrs[name] = attribute
            if defaults[name] == attribute:
                del node.attrs[name]
    for node in graph.nodes:
        for value, type_ in zip(node.outputs, op_of(node).infer(node), strict=True):
            value.type = value.type.with_(shape=type_.shape)


def shrink_moments(
    channels: Channels, kept: Array, moments: dict[str, tuple[Array, Array]]
) -> None:
    """Remove the same channels from what is known of layers' outputs.

    Args:
        channels: the groups.
        kept: bool [groups].
        moments: see :attr:`passes.PassContext.channel_moments`.
    """
    for side in channels.layers():
        places = kept[channels.groups(side.results)]
        mean, deviation = moments.get(side.node.loc, (np.zeros(0), np.zeros(0)))
        if len(mean) == len(places):
            moments[side.node.loc] = (mean[places], deviation[places])


__all__ = ["shrink", "shrink_moments"]
