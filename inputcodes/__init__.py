"""The machinery behind the commands: one idea, one file; nothing here imports a command."""
