"""What networks look at, and where their game goes: receptive fields and attention, vector fields and eigenvalues."""

from minigan.analysis.game import Field as Field, stable_step as stable_step
from minigan.analysis.looking import attention_maps as attention_maps, receptive_field as receptive_field
