"""Where a network can be cut into blocks: at tensors that everything behind them is computed from.

    stem | block | block | ... | head        cuts: the residual stream, behind every Add and its ReLU

No other tensor is alive at a cut, so what lies between two cuts is a function of one tensor, and can be reconstructed
alone (Li et al. 2021, BRECQ, section 3.2: a block is the unit whose layers depend on each other).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgeres.graph.graph import WEIGHTED, Graph


@dataclass(frozen=True)
class Block:
    """Consecutive nodes, by name and in graph order, with one input and one output."""

    nodes: tuple[str, ...]
    input: str
    output: str

    @property
    def name(self) -> str:
        return self.output


def split(graph: Graph) -> tuple[Block, ...]:
    """Cut a graph at its residual stream; the last block ends at the scores, before a Softmax.

    A cut is a tensor with no other alive beside it that either has several readers (a block begins) or is the output of
    a residual Add or of the Add's activation (a block ends). Nodes without weights belong to the block behind them;
    those behind the last weights belong to the last block. A graph without residual Adds is one block.
    """
    scores = scores_of(graph)
    ends = {graph.activation_after(node) for node in graph.nodes if graph.is_residual_add(node)}
    blocks: list[Block] = []
    nodes: list[str] = []
    start, weighted = graph.input, False
    for between, tensor in _alone_alive(graph):
        nodes.extend(node.name for node in graph.nodes[between])
        weighted = weighted or any(node.op_type in WEIGHTED for node in graph.nodes[between])
        is_cut = tensor in ends or len(graph.consumers(tensor)) > 1
        if tensor == scores or (is_cut and weighted):
            blocks.append(Block(tuple(nodes), start, tensor))
            nodes, start, weighted = [], tensor, False
        if tensor == scores:
            break
    return tuple(blocks)


def whole(graph: Graph) -> Block:
    """The network as one block, from the image to the scores before a Softmax."""
    blocks = split(graph)
    return Block(tuple(name for block in blocks for name in block.nodes), graph.input, blocks[-1].output)


def scores_of(graph: Graph) -> str:
    """The output, or the input of its Softmax: there, an error counts the same at every confidence."""
    last = graph.producer(graph.output)
    return str(last.input[0]) if last is not None and last.op_type == "Softmax" else graph.output


def _alone_alive(graph: Graph) -> Iterator[tuple[slice, str]]:
    """Every tensor with no other alive beside it, and the nodes from the one before up to its own."""
    alive: set[str] = {graph.input}
    begin = 0
    for index, node in enumerate(graph.nodes):
        alive.update(node.output)
        alive = {name for name in alive if graph.last_use(name) > index}
        if len(alive) == 1:
            yield slice(begin, index + 1), next(iter(alive))
            begin = index + 1
