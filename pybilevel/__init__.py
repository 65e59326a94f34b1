"""Fast bilevel programming: differentiate through the training of an inner model."""

__version__ = "0.1.0"
