"""Config files: plain assignments, read by configurator.py."""
