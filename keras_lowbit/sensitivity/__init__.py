"""Which layers suffer from few bits, and how many bits each gets."""

from keras_lowbit.sensitivity.assign import assign_bits, bit_choices
from keras_lowbit.sensitivity.choices import BitChoices, Chosen
from keras_lowbit.sensitivity.effects import Effect, Sensitivity
from keras_lowbit.sensitivity.measure import sensitivity

__all__ = ["BitChoices", "Chosen", "Effect", "Sensitivity", "assign_bits", "bit_choices", "sensitivity"]
