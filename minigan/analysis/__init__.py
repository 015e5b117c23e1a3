"""What networks compute, and where their game goes: eigenvalues, feature functions, characteristic functions."""

from minigan.analysis.features import (
    covariance_eigenvalues as covariance_eigenvalues,
    effective_rank as effective_rank,
    feature_matching as feature_matching,
    features as features,
    linear_probe as linear_probe,
    singular_values as singular_values,
)
from minigan.analysis.game import Field as Field, stable_step as stable_step
from minigan.analysis.looking import attention_maps as attention_maps, receptive_field as receptive_field
from minigan.ops.characteristic import (
    characteristic_distance as characteristic_distance,
    characteristic_function as characteristic_function,
)
