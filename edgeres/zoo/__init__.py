"""Architectures, the weights that exist for them, and how to get both into a network.

:mod:`~edgeres.zoo.architectures`, :mod:`~edgeres.zoo.registry` and :mod:`~edgeres.zoo.download` need no torch.
"""
