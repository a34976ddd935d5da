"""The one error of whoever describes a model or types a command."""


class ConfigError(ValueError):
    """A configuration cannot be priced; the message names the field, its value and the remedy."""
