"""Editors that are networks: what they read of a model, how they are trained, and how trained ones are kept.

An editor network is given the gradient of an edit's loss, as one pair of vectors for each token and edited matrix, and
the words of the edit; it gives the change of each matrix, as a sum of outer products. It is trained by
differentiating through the edited model.
"""
