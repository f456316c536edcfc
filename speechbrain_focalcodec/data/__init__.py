"""Data preparation and the datasets that training reads."""

# Modules of version 0.1.0 that recipes import are found there.
__path__.append(f"{__path__[0]}/earlier")
