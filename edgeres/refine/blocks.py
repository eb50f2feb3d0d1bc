"""Where a network can be cut: the tensors that everything behind them is computed from.

    stem | block | block | ... | head        cuts: the residual stream, after every Add and its ReLU

At such a tensor nothing else is alive, so that what lies between two cuts is a function of one tensor, and can be
reconstructed alone (Li et al. 2021, BRECQ, section 3.2: a block is the unit whose layers depend on each other).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgeres.graph.graph import WEIGHTED, Graph


@dataclass(frozen=True)
class Block:
    """Consecutive nodes with one activation going in and one coming out.

    Attributes:
        name: the output tensor's.
        nodes: names, in graph order.
    """

    nodes: tuple[str, ...]
    input: str
    output: str

    @property
    def name(self) -> str:
        return self.output


def split(view: Graph) -> tuple[Block, ...]:
    """Cut a graph at its residual stream; the last block ends at the scores, ahead of a Softmax.

    A cut is a tensor that alone is alive where it stands, and either forks (a block begins) or is the result of a
    residual Add with its activation (a block ends). Nodes without weights join the block behind them, those after the
    last weights the block before. A graph without residual Adds is one block.
    """
    scores = scores_of(view)
    ends = {view.activation_after(node) for node in view.nodes if view.is_residual_add(node)}
    blocks: list[Block] = []
    nodes: list[str] = []
    start, weighted = view.input, False
    for index, tensor in _lonely(view):
        nodes.extend(node.name for node in view.nodes[index.start : index.stop])
        weighted = weighted or any(node.op_type in WEIGHTED for node in view.nodes[index.start : index.stop])
        is_cut = tensor in ends or len(view.consumers(tensor)) > 1
        if tensor == scores or (is_cut and weighted):
            blocks.append(Block(tuple(nodes), start, tensor))
            nodes, start, weighted = [], tensor, False
        if tensor == scores:
            break
    return tuple(blocks)


def whole(view: Graph) -> Block:
    """The network as one block, from the image to the scores ahead of a Softmax."""
    blocks = split(view)
    return Block(tuple(name for block in blocks for name in block.nodes), view.input, blocks[-1].output)


def scores_of(view: Graph) -> str:
    """The output, or what its Softmax reads: an error of scores is the same at every confidence."""
    last = view.producer(view.output)
    return str(last.input[0]) if last is not None and last.op_type == "Softmax" else view.output


def _lonely(view: Graph) -> Iterator[tuple[slice, str]]:
    """Every tensor that alone is alive behind its node, with the nodes since the one before."""
    last_reader = {name: index for index, node in enumerate(view.nodes) for name in node.input}
    last_reader[view.output] = len(view.nodes)
    alive: set[str] = {view.input}
    begin = 0
    for index, node in enumerate(view.nodes):
        alive.update(node.output)
        alive = {name for name in alive if last_reader.get(name, -1) > index}
        if len(alive) == 1:
            yield slice(begin, index + 1), next(iter(alive))
            begin = index + 1
