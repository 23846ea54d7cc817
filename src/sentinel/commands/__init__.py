"""One module per command: ``add_arguments`` and ``run``. Heavy imports happen inside ``run``."""
