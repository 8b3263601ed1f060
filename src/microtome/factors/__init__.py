"""Factors: of which sparse dictionary of directions are hidden states superpositions?

Papers: Yun et al. 2021 (one dictionary for all layers, by sparse coding) and the sparse autoencoders that came after it.
"""
