"""KE: a network reads the edit and decides how its gradient changes the weights (De Cao et al. 2021)."""

from engramscope.edit.editors.ke.compute import Ke

COMPONENT = Ke
