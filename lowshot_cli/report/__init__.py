"""Reports of sweeps and models: tables, plots and pages."""
