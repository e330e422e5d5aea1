"""MEND: a trained network turns the gradient of the edit into a better one (Mitchell et al. 2022)."""

from engramscope.edit.editors.mend.compute import Mend

COMPONENT = Mend
