"""What a network looks at, measured: on which pixels its features depend, and where its attention goes."""

from minigan.analysis.looking import attention_maps as attention_maps, receptive_field as receptive_field
