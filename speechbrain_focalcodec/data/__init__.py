"""Data preparation and the datasets that training reads."""
