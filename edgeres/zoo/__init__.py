"""Architectures of residual networks, their published weights, and loading both into a torch module.

:mod:`~edgeres.zoo.architectures`, :mod:`~edgeres.zoo.registry` and :mod:`~edgeres.zoo.download` need no torch.
"""
